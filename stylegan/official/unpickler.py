"""A network pickle as data: arrays, numbers, strings, containers and inert records.

    tree = read_pickle(Path("network.pkl").read_bytes())

Official pickles hold objects of classes that come with their source code. Of those only the fields
are kept; the source remains a string, or is dropped. Whatever else a pickle asks for is refused by
name, also inside the pickles that PyTorch nests in a pickle for each of its tensors.
"""

import collections
import gzip
import io
import math
import pickle
import pickletools
import re
import reprlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylegan.metrics.weights_reader import DTYPES, ArchiveError, frozen, rebuild_tensor, refusal

MAX_BYTES, MAX_MEMO = 4 * 2**30, 10_000_000
"""What no official file comes near; a file beyond is built to fill the memory."""

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_COUNT_BYTES = 8


def brief(thing: Any) -> str:
    """What a file has in a place, for a message; written out it may be longer than the file."""
    return _BRIEF.repr(thing)


class Array:
    """A NumPy array in the making: BUILD brings the content after the object."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ArchiveError(f"an array holds {type(state).__name__} instead of its five fields")
        _version, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


class DType:
    """A NumPy element type: of numbers alone, in either byte order."""

    __slots__ = ("value",)

    def __init__(self, code: str) -> None:
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _version, order, *fields = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in fields[:3]):
            raise ArchiveError(
                f"an array's element type is {brief(state)}, but only numbers are read"
            )
        self.value = self.value.newbyteorder(order)


class Record:
    """An object of an official class: its fields, and nothing that could be called."""

    __slots__ = ("class_name", "fields")

    class_name: str
    fields: dict[str, Any]

    def __new__(cls) -> "Record":
        record = super().__new__(cls)  # all that a pickle calls
        record.class_name, record.fields = "", {}
        return record

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ArchiveError(f"a network holds {type(state).__name__} instead of its fields")
        self.fields = state

    def field(self, name: str, expected: type) -> Any:
        """A field that official snapshots have.

        Raises:
            ArchiveError: It is missing or of another type.
        """
        value = self.fields.get(name)
        if not isinstance(value, expected):
            raise ArchiveError(
                f"{name} of a {self.class_name or 'network'} is {type(value).__name__}, not "
                f"{expected.__name__}: the file is no official snapshot"
            )
        return value


class TensorFlowNetwork(Record):
    """A Network of `dnnlib.tflib` (StyleGAN, StyleGAN2) or of `tfutil` (Progressive GAN)."""

    __slots__ = ()


class TorchModule(Record):
    """A module that `torch_utils.persistence` stored with its source, which is not kept."""

    __slots__ = ()


def read_pickle(content: bytes) -> Any:
    """What a pickle holds; it may be packed by gzip.

    NumPy arrays come as `Array`s, PyTorch's as tensors, official networks as records.

    Raises:
        ArchiveError: It is damaged, or asks for more than data; names what.
    """
    try:
        return _load(_Unpickler, io.BytesIO(_unpacked(content)))
    except ArchiveError:
        raise
    except Exception as err:  # a damaged pickle fails in any way it likes
        raise ArchiveError(f"damaged pickle: {type(err).__name__}: {err}") from err


def _unpacked(content: bytes) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            unpacked = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as err:
        raise ArchiveError(f"damaged gzip file: {err}") from err
    if len(unpacked) > MAX_BYTES:
        raise ArchiveError(f"unpacked, the file is larger than {MAX_BYTES} bytes")
    return unpacked


def _load(unpickler: type[pickle.Unpickler], stream: io.BytesIO) -> Any:
    """The next pickle of a stream, once its memo is known to be small."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name.endswith("PUT") and int(argument or 0) > MAX_MEMO:
            raise ArchiveError(f"the pickle numbers {argument} objects, which fills the memory")
    stream.seek(start)
    return unpickler(stream).load()


class _Unpickler(pickle.Unpickler):
    """Knows a handful of globals; what can be altered is made anew for each file."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")  # files of 2018 hold bytes as text
        network = type("Network", (TensorFlowNetwork,), {"__slots__": ()})
        self._globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("__builtin__", "bytes"): frozen(lambda: b""),  # of protocol 2
            ("dnnlib", "EasyDict"): dict,
            ("dnnlib.util", "EasyDict"): dict,
            ("dnnlib.tflib.network", "Network"): network,
            ("tfutil", "Network"): network,
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): frozen(_torch_module),
            ("torch.storage", "_load_from_bytes"): frozen(_torch_storage),
            ("torch._utils", "_rebuild_tensor_v2"): frozen(rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): frozen(lambda data, *_: data),
            ("_codecs", "encode"): frozen(_encode),
            ("numpy", "dtype"): frozen(_dtype),
            ("numpy", "ndarray"): frozen(_refuse_call),
        }
        for package in ("numpy.core", "numpy._core"):
            self._globals |= {
                (f"{package}.multiarray", "_reconstruct"): frozen(lambda *_: Array()),
                (f"{package}.multiarray", "scalar"): frozen(_scalar),
                (f"{package}.numeric", "_frombuffer"): frozen(_filled),
            }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise refusal(module, name)
        return self._globals[module, name]


class _Storage(NamedTuple):
    """What a nested pickle of PyTorch says of the bytes behind it."""

    dtype: torch.dtype
    key: str
    length: int


class _StorageUnpickler(pickle.Unpickler):
    """For the pickles in front of a storage's bytes; they need element types alone."""

    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in DTYPES:
            raise refusal(module, name)
        return DTYPES[name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, length, view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise ArchiveError(f"unknown persistent object {brief(pid)}")
        return _Storage(dtype, key, length)


def _torch_storage(content: bytes) -> Tensor:
    """A storage as `torch.save` wrote it before version 1.6: five pickles, a count, the bytes."""
    stream = io.BytesIO(content)
    magic, protocol, system, storage, keys = (_load(_StorageUnpickler, stream) for _ in range(5))
    if (magic, protocol) != (_TORCH_MAGIC, _TORCH_PROTOCOL) or not system["little_endian"]:
        raise ArchiveError("a tensor's bytes are not those that torch.save writes")
    if not isinstance(storage, _Storage) or keys != [storage.key]:
        raise ArchiveError(
            f"a tensor's bytes hold {type(storage).__name__} and {type(keys).__name__} instead of "
            "one storage and its key"
        )
    count = int.from_bytes(stream.read(_COUNT_BYTES), "little")
    raw = stream.read()
    if count != storage.length or len(raw) != count * storage.dtype.itemsize:
        raise ArchiveError(
            f"a storage has {len(raw)} bytes, but {storage.length} x {storage.dtype} are announced"
        )
    if not raw:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(raw), dtype=storage.dtype)


def _torch_module(meta: Any) -> TorchModule:
    module = TorchModule()
    module.__setstate__(meta["state"])
    module.class_name = meta["class_name"]
    if not isinstance(module.class_name, str):
        raise ArchiveError(f"a module's class is {type(module.class_name).__name__}, not a name")
    return module


def _dtype(code: Any, *_flags: Any) -> DType:
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        raise ArchiveError(f"an array's element type is {brief(code)}, but only numbers are read")
    return DType(code)


def _scalar(dtype: DType, raw: Any) -> Any:
    return _array(raw, dtype, (), "C")[()]


def _filled(raw: Any, dtype: DType, shape: Any, order: str) -> Array:
    array = Array()
    array.value = _array(raw, dtype, shape, order)
    return array


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array of its own in this machine's byte order; its bytes must be as many as it needs."""
    if not isinstance(raw, bytes | bytearray | str):
        raise ArchiveError(f"an array's bytes are {type(raw).__name__}: the file is damaged")
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    if not isinstance(dtype, DType) or not isinstance(shape, tuple) or min((0, *shape)) < 0:
        raise ArchiveError(
            f"impossible array: element type {type(dtype).__name__}, shape {brief(shape)}"
        )
    if len(raw) != math.prod(shape) * dtype.value.itemsize:
        raise ArchiveError(
            f"an array has {len(raw)} bytes, but its shape {brief(shape)} of {dtype.value} needs "
            f"{math.prod(shape) * dtype.value.itemsize}"
        )
    flat: np.ndarray = np.frombuffer(raw, dtype.value).astype(dtype.value.newbyteorder("="))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _encode(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 hold bytes that are not empty."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ArchiveError(f"bytes are encoded as {brief(encoding)}, but only latin1 is read")
    return text.encode("latin1")


def _refuse_call(*_: Any) -> Callable[..., Any]:
    raise refusal("numpy", "ndarray")
