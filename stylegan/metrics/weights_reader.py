"""Tensors out of a PyTorch archive (`torch.save`, TorchScript), as data: nothing in it is run.

    with open("default_1.pt", "rb") as stream:
        tensors = read_tensors(stream)  # {"net.layers.conv.weight": ..., ...}

The pickle inside may build tensors, numbers, strings and containers. Classes of TorchScript
(`__torch__...`) become inert records, and every other global is refused by name. Files of
torch < 1.6, which are pickles in a row instead of a zip archive, are read as well.
"""

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from stylegan.data_pickle import (
    ArchiveError,
    Budget,
    DataUnpickler,
    Record,
    brief,
    children,
    ordered,
)

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Element type by the class name of a stored storage."""

MAX_PICKLE_BYTES, MAX_NODES = 64 * 2**20, 1_000_000
"""What no set of weights comes near; a file beyond is built to fill the memory."""

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file of torch < 1.6 begins with."""
_COUNT_BYTES, _MAX_PATH = 8, 512
_REBUILD = "_rebuild_tensor_v2"
_PICKLED_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
"""Functions of torch.jit._pickle that stand for a typed list."""


@runtime_checkable
class Readable(Protocol):
    """An open binary file: of the disk, in memory or of an object store."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


def read_tensors(stream: Readable) -> dict[str, Tensor]:
    """All tensors of an archive by their dotted path; numbers and strings are left out.

    Raises:
        ArchiveError: No zip archive of PyTorch, damaged, or its pickle asks for more than data.
    """
    leaves = flatten(read_object(stream))
    return {name: value for name, value in leaves if isinstance(value, Tensor)}


def read_object(stream: Readable) -> Any:
    """The pickled object of an archive: tensors, plain values, containers and `Record`s."""
    try:
        if stream.read(len(_PICKLED_MAGIC)) == _PICKLED_MAGIC:
            stream.seek(0)
            return _read_pickles(stream.read())
        stream.seek(0)
        with zipfile.ZipFile(stream) as archive:
            prefix = _prefix(archive)
            if f"{prefix}byteorder" in archive.namelist():
                with archive.open(f"{prefix}byteorder") as member:
                    order = member.read(len(b"little") + 1)
                if order != b"little":
                    raise ArchiveError(f"byte order is {order!r}, but only little endian is read")
            if archive.getinfo(f"{prefix}data.pkl").file_size > MAX_PICKLE_BYTES:
                raise ArchiveError(f"{prefix}data.pkl is larger than {MAX_PICKLE_BYTES} bytes")
            pickled = io.BytesIO(archive.read(f"{prefix}data.pkl"))
            budget = Budget(stream.seek(0, io.SEEK_END))
            return _Unpickler(pickled, budget, archive, prefix).load()
    except ArchiveError:
        raise
    except zipfile.BadZipFile as err:
        raise ArchiveError(
            f"not a zip archive of PyTorch ({err}); choose a file of torch.save"
        ) from err
    except Exception as err:  # a damaged pickle fails in any way it likes
        raise ArchiveError(f"damaged archive: {type(err).__name__}: {err}") from err


def flatten(tree: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of nested records, dicts and lists with their dotted paths, in order."""
    stack = [("", tree)]
    for _ in range(MAX_NODES):
        if not stack:
            return
        path, node = stack.pop()
        if len(path) > _MAX_PATH:
            raise ArchiveError(f"the name {brief(path)} is longer than {_MAX_PATH} characters")
        node = node.fields if isinstance(node, Record) else node
        if not isinstance(node, dict | list | tuple):
            yield path, node
            continue
        names, below = node if isinstance(node, dict) else range(len(node)), children(node)
        prefix = f"{path}." if path else ""
        named = [(f"{prefix}{name}", child) for name, child in zip(names, below, strict=True)]
        stack.extend(reversed(named))
    raise ArchiveError(f"more than {MAX_NODES} objects; this is no set of weights")


def _prefix(archive: zipfile.ZipFile) -> str:
    """Folder of the archive's records, with its slash."""
    names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(names) != 1:
        raise ArchiveError(
            f"{len(names)} members are called data.pkl, but an archive of torch.save has one"
        )
    return names[0].removesuffix("data.pkl")


class _Unpickler(DataUnpickler):
    """Of a zip archive, whose storages are members of it."""

    def __init__(
        self, stream: io.BytesIO, budget: Budget, archive: zipfile.ZipFile, prefix: str
    ) -> None:
        super().__init__(stream, budget, _KNOWN | {("torch._utils", _REBUILD): rebuild_tensor})
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return Record
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        """One storage as a flat tensor: ("storage", dtype, key, device, number of elements)."""
        key, dtype, count = _storage(pid, 5)
        if key not in self._storages:
            self._storages[key] = self._read_storage(key, dtype, count)
        storage = self._storages[key]
        if storage.dtype != dtype or storage.numel() != count:
            raise ArchiveError(f"storage {key} is named with two different types or sizes")
        return storage

    def _read_storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = self._archive.getinfo(f"{self._prefix}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ArchiveError(f"{info.filename} is compressed; torch.save stores it plainly")
        if info.file_size != count * dtype.itemsize:
            raise ArchiveError(
                f"{info.filename} has {info.file_size} bytes, but {count} x {dtype} are announced"
            )
        if count == 0:
            return torch.empty(0, dtype=dtype)
        self.budget.spend(info.file_size)  # members may share their bytes
        return torch.frombuffer(bytearray(self._archive.read(info)), dtype=dtype)


class _OldUnpickler(DataUnpickler):
    """For the pickles of torch < 1.6, whose storages come behind them."""

    def __init__(
        self, stream: io.BytesIO, budget: Budget, storages: Mapping[str, Tensor] | None = None
    ) -> None:
        """Without `storages` it only learns what they are, in `announced`."""
        rebuild = rebuild_tensor if storages else _nothing
        super().__init__(stream, budget, _KNOWN | {("torch._utils", _REBUILD): rebuild})
        self.announced: dict[str, tuple[torch.dtype, int]] = {}
        self._storages = storages

    def persistent_load(self, pid: Any) -> Any:
        key, dtype, count = _storage(pid, 6)
        if pid[5] is not None:
            raise ArchiveError(f"unknown persistent object {brief(pid)}")
        if self.announced.setdefault(key, (dtype, count)) != (dtype, count):
            raise ArchiveError(f"storage {key} is named with two different types or sizes")
        return self._storages[key] if self._storages else None


def _storage(pid: Any, fields: int) -> tuple[str, torch.dtype, int]:
    """Key, element type and count that a persistent id has for a storage."""
    if isinstance(pid, tuple) and len(pid) == fields and pid[0] == "storage":
        _, dtype, key, _device, count, *_view = pid
        if isinstance(dtype, torch.dtype) and isinstance(key, str) and isinstance(count, int):
            return key, dtype, count
    raise ArchiveError(f"unknown persistent object {brief(pid)}")


def _read_pickles(content: bytes) -> Any:
    """What a file of torch < 1.6 holds.

    Magic number, protocol, system, the object, the keys of its storages; then each one's length
    and bytes.
    """
    stream, budget = io.BytesIO(content), Budget(len(content))
    magic, protocol, system = (_OldUnpickler(stream, budget).load() for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not system["little_endian"]:
        raise ArchiveError(f"the file is of protocol {brief(protocol)}; save it anew")
    start = stream.tell()
    learning = _OldUnpickler(stream, budget)
    learning.load()
    keys = _OldUnpickler(stream, budget).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ArchiveError(f"keys of storages are {brief(keys)}, not a list of text")
    if sorted(keys) != sorted(learning.announced):
        raise ArchiveError(
            f"storages are {brief(keys)}, announced were {brief(sorted(learning.announced))}"
        )
    storages = {key: _next_storage(stream, key, *learning.announced[key]) for key in keys}
    stream.seek(start)
    return _OldUnpickler(stream, budget, storages).load()


def _next_storage(stream: io.BytesIO, key: str, dtype: torch.dtype, count: int) -> Tensor:
    stored = int.from_bytes(stream.read(_COUNT_BYTES), "little")
    if stored != count:
        raise ArchiveError(f"storage {key} has {stored} elements, but {count} are announced")
    raw = stream.read(count * dtype.itemsize)
    if len(raw) != count * dtype.itemsize:
        raise ArchiveError(f"the file ends within storage {key}; fetch it again")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _nothing(*_: Any) -> None:
    """In place of a tensor whose content is not known yet."""


def _typed_list(items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise ArchiveError(f"a typed list is {type(items).__name__}")
    return items


def rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any
) -> Tensor:
    """A part of a storage, copied; its last element must lie inside."""
    axes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not axes or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise ArchiveError(
            f"impossible tensor: offset {brief(offset)}, size {brief(size)}, stride {brief(stride)}"
        )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = math.prod(n for n in size)
    if elements > storage.numel() or (elements and last >= storage.numel()):
        raise ArchiveError(
            f"a tensor of size {brief(size)}, stride {brief(stride)} at {offset} does not fit into "
            f"its storage of {storage.numel()} elements"
        )
    return storage.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): ordered,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **{("torch.jit._pickle", name): _typed_list for name in LISTS},
}
"""Globals that all of the files may ask for."""


def required(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of a file.

    Raises:
        ValueError: It is not there.
    """
    if name not in tensors:
        raise ValueError(f"{name} is missing among the weights; it is another network's file")
    return tensors[name]


def check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], network: str) -> None:
    """Refuse weights with other names or shapes, naming the first."""
    ours = {name: tuple(value.shape) for name, value in expected.items()}
    theirs = {name: tuple(value.shape) for name, value in found.items()}
    if ours != theirs:
        name, _ = min(set(ours.items()) ^ set(theirs.items()))
        raise ValueError(
            f"these are not the weights of {network}: {name} is {theirs.get(name, 'missing')}, "
            f"not {ours.get(name, 'there')}"
        )
