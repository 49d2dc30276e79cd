"""How networks are run: eagerly, or with their blocks compiled.

Blocks are compiled one by one. None of them knows the lod, so that a fade compiles nothing again;
DDP exchanges the gradients of one block while those of the next are computed. What is
differentiated twice (R1, WGAN-GP, path lengths) stays eager: compiled functions have no second
derivative.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

Speed = Literal["eager", "compile", "max"]

_MODES: dict[str, str] = {"compile": "default", "max": "max-autotune-no-cudagraphs"}
_COMPILATIONS = 1024
"""Most that are kept: every block has some, with and without gradients and for two batch sizes."""


def compile_blocks(network: nn.Module, speed: Speed, *, backend: str = "inductor") -> None:
    """Compile what a network's images pass through, each part when it is first used.

    Args:
        network: A generator or discriminator with blocks; its parameters stay what they are.
        speed: `eager` does nothing, `max` also tries kernels out.
        backend: Of `torch.compile`.
    """
    if speed == "eager":
        return
    # Late, because it costs a second.
    from torch._dynamo import config as dynamo_config

    dynamo_config.recompile_limit = _COMPILATIONS
    dynamo_config.accumulated_recompile_limit = _COMPILATIONS
    options = {"mode": _MODES[speed]} if backend == "inductor" else {}
    for part in _parts(network):
        part.compile(backend=backend, dynamic=False, **options)


def check_compiler() -> None:
    """See that there is what compiling needs.

    Raises:
        ValueError: There is no C++ compiler.
    """
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    if not any(map(shutil.which, names)):
        raise ValueError(
            f"step.speed other than eager needs a C++ compiler, and none of {', '.join(names)} is "
            "here; install g++ or set step.speed=eager"
        )


def twice_differentiable() -> AbstractContextManager[Any]:
    """Inside, compiled parts run as if they were not."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleDict):
            yield from child.values()
        elif name == "synthesis":
            yield from _parts(child)
        else:
            yield child
