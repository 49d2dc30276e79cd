"""Small pickles in the shape of official ones, written with stand-in classes."""

import contextlib
import copyreg
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

SOURCE = "import pathlib\npathlib.Path({marker!r}).touch()\n"
"""Code that a file may carry along; whoever runs it leaves a mark."""


class Network:
    """A network of TensorFlow: its pickled state and nothing else."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return copyreg.__newobj__, (Network,), dict(self.state)


class ProgressiveNetwork(Network):
    def __reduce__(self) -> Any:
        return copyreg.__newobj__, (ProgressiveNetwork,), dict(self.state)


class EasyDict(dict):
    pass


class Module:
    """A module as persistence stores it: class name, source, fields."""

    def __init__(self, class_name: str, fields: Mapping[str, Any], source: str = "") -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": dict(fields),
        }

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,), None


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("only its name is needed")


NAMES = {
    Network: ("dnnlib.tflib.network", "Network"),
    ProgressiveNetwork: ("tfutil", "Network"),
    EasyDict: ("dnnlib.util", "EasyDict"),
    _reconstruct_persistent_obj: ("torch_utils.persistence", "_reconstruct_persistent_obj"),
}


@contextlib.contextmanager
def official_names() -> Iterator[None]:
    """Pickle finds the stand-ins under the official names."""
    before = dict(sys.modules)
    try:
        for thing, (module, name) in NAMES.items():
            parts = module.split(".")
            for count in range(1, len(parts) + 1):
                part = ".".join(parts[:count])
                sys.modules.setdefault(part, types.ModuleType(part))
            setattr(sys.modules[module], name, thing)
            thing.__module__, thing.__qualname__ = module, name
        yield
    finally:
        for module in set(sys.modules) - set(before):
            del sys.modules[module]


def dumps(tree: Any, *, protocol: int = 4) -> bytes:
    """A pickle as the official tools would have written it."""
    with official_names():
        return pickle.dumps(tree, protocol=protocol)


def torch_fields(tensors: Mapping[str, Tensor], **fields: Any) -> dict[str, Any]:
    """Fields of a module with tensors by their dotted names; parts are modules of their own."""
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(head, {})[rest] = tensor
    return {
        "training": False,
        "_parameters": {n: t for n, t in own.items() if t.requires_grad} | {"absent": None},
        "_buffers": {n: t for n, t in own.items() if not t.requires_grad},
        "_non_persistent_buffers_set": set(),
        "_modules": {head: Module("Part", torch_fields(part)) for head, part in parts.items()},
        **fields,
    }
