"""A network pickle as data: arrays, numbers, strings, containers and inert records.

    tree = read_pickle(Path("network.pkl").read_bytes())

Official pickles hold objects of classes that come with their source code. Of those only the fields
are kept; the source remains a string, or is dropped. Whatever else a pickle asks for is refused by
name, also inside the pickles that PyTorch nests in a pickle for each of its tensors.
"""

import functools
import gzip
import io
import math
import re
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylegan import data_pickle
from stylegan.data_pickle import (
    ArchiveError,
    Budget,
    DataUnpickler,
    Inert,
    brief,
    members,
    ordered,
    refusal,
)
from stylegan.metrics.weights_reader import DTYPES, MAGIC, PROTOCOL, rebuild_tensor

MAX_BYTES = 2**30
"""What no official file comes near; a file beyond is built to fill the memory."""

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_COUNT_BYTES, _HEAD_BYTES = 8, 4096
"""The latter: the five pickles in front of a storage, and more."""
_MAX_NDIM = 32
_DTYPE_STATES = (8, 9)
"""Fields of an element type, without metadata and with."""


class Array(Inert):
    """A NumPy array in the making: BUILD brings the content after the object."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Of its content."""
        return 0 if self.value is None else self.value.nbytes

    def fill(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ArchiveError(f"an array holds {type(state).__name__} instead of its five fields")
        _version, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


class DType(Inert):
    """A NumPy element type: of numbers alone, in either byte order."""

    __slots__ = ("value",)

    def __init__(self, code: str) -> None:
        self.value = np.dtype(code)

    def fill(self, state: Any) -> None:
        known = isinstance(state, tuple) and len(state) in _DTYPE_STATES
        if (
            not known
            or state[1] not in ("<", ">", "|", "=")
            or any(part is not None for part in state[2:5])
        ):
            raise ArchiveError(
                f"an array's element type is {brief(state)}, but only numbers are read"
            )
        self.value = self.value.newbyteorder(state[1])


class Record(data_pickle.Record):
    """An object of an official class."""

    __slots__ = ("class_name",)

    def __init__(self) -> None:
        super().__init__()
        self.class_name = ""

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
        unpacked = _unpacked(content)
        return _load(io.BytesIO(unpacked), Budget(len(unpacked)))
    except ArchiveError:
        raise
    except Exception as err:  # a damaged pickle fails in any way it likes
        raise ArchiveError(f"damaged pickle: {type(err).__name__}: {err}") from err


def _unpacked(content: bytes) -> bytes:
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                content = stream.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as err:
            raise ArchiveError(f"damaged gzip file: {err}") from err
    if len(content) > MAX_BYTES:
        raise ArchiveError(f"unpacked, the file is larger than {MAX_BYTES} bytes")
    return content


def _load(stream: io.BytesIO, budget: Budget) -> Any:
    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): ordered,
        ("builtins", "set"): members,
        ("__builtin__", "set"): members,
        ("__builtin__", "bytes"): lambda: b"",  # of protocol 2
        ("dnnlib", "EasyDict"): dict,
        ("dnnlib.util", "EasyDict"): dict,
        ("dnnlib.tflib.network", "Network"): TensorFlowNetwork,
        ("tfutil", "Network"): TensorFlowNetwork,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _torch_module,
        ("torch.storage", "_load_from_bytes"): functools.partial(_torch_storage, budget),
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _dtype,
        ("numpy", "ndarray"): _refuse_call,
    }
    for package in ("numpy.core", "numpy._core"):
        known |= {
            (f"{package}.multiarray", "_reconstruct"): lambda *_: Array(),
            (f"{package}.multiarray", "scalar"): _scalar,
            (f"{package}.numeric", "_frombuffer"): _filled,
        }
    return DataUnpickler(stream, budget, known).load()


class _Storage(NamedTuple):
    """What a nested pickle of PyTorch says of the bytes behind it."""

    dtype: torch.dtype
    key: str
    length: int


class _StorageUnpickler(DataUnpickler):
    """For the pickles in front of a storage's bytes; they need element types alone."""

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, length, view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise ArchiveError(f"unknown persistent object {brief(pid)}")
        if not isinstance(key, str) or not isinstance(length, int):
            raise ArchiveError(f"a storage is called {brief(key)} and has length {brief(length)}")
        return _Storage(dtype, key, length)


def _torch_storage(budget: Budget, content: bytes) -> Tensor:
    """A storage as `torch.save` wrote it before version 1.6: five pickles, a count, the bytes."""
    known = {("torch", name): dtype for name, dtype in DTYPES.items()}
    head = io.BytesIO(content[:_HEAD_BYTES])
    magic, protocol, system, storage, keys = (
        _StorageUnpickler(head, budget, known).load() for _ in range(5)
    )
    if (magic, protocol) != (MAGIC, PROTOCOL) or not system["little_endian"]:
        raise ArchiveError("a tensor's bytes are not those that torch.save writes")
    if not isinstance(storage, _Storage) or keys != [storage.key]:
        raise ArchiveError(
            f"a tensor's bytes hold {type(storage).__name__} and {type(keys).__name__} instead of "
            "one storage and its key"
        )
    start = head.tell() + _COUNT_BYTES
    count = int.from_bytes(content[head.tell() : start], "little")
    raw = memoryview(content)[start:]
    if count != storage.length or len(raw) != count * storage.dtype.itemsize:
        raise ArchiveError(
            f"a storage has {len(raw)} bytes, but {storage.length} x {storage.dtype} are announced"
        )
    if not raw:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(raw), dtype=storage.dtype)


def _torch_module(meta: Any) -> TorchModule:
    module = TorchModule()
    module.fill(meta["state"])
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
    sizes = isinstance(shape, tuple) and len(shape) <= _MAX_NDIM
    if not (
        isinstance(dtype, DType) and sizes and all(isinstance(n, int) and n >= 0 for n in shape)
    ):
        raise ArchiveError(
            f"impossible array: element type {type(dtype).__name__}, shape {brief(shape)}"
        )
    if len(raw) != math.prod(shape) * dtype.value.itemsize:
        raise ArchiveError(
            f"an array has {len(raw)} bytes, but its shape {brief(shape)} of {dtype.value} needs "
            f"{math.prod(shape) * dtype.value.itemsize}"
        )
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    flat: np.ndarray = np.frombuffer(raw, dtype.value).astype(dtype.value.newbyteorder("="))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _encode(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 hold bytes that are not empty."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ArchiveError(f"bytes are encoded as {brief(encoding)}, but only latin1 is read")
    return text.encode("latin1")


def _refuse_call(*_: Any) -> Any:
    raise refusal("numpy", "ndarray")
