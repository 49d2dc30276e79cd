"""Tensors out of a PyTorch archive (`torch.save`, TorchScript), as data: nothing in it is run.

    with open("default_1.pt", "rb") as stream:
        tensors = read_tensors(stream)  # {"net.layers.conv.weight": ..., ...}

The pickle inside may build tensors, numbers, strings and containers. Classes of TorchScript
(`__torch__...`) become inert records, and every other global is refused by name. Files of
torch < 1.6, which are pickles in a row instead of a zip archive, are read as well.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

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

MAX_PICKLE_BYTES, MAX_NODES, MAX_DEPTH = 64 * 2**20, 1_000_000, 64
"""What no set of weights comes near; a file beyond is built to fill the memory."""

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file of torch < 1.6 begins with."""
_COUNT_BYTES = 8
_PICKLED_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
"""Functions of torch.jit._pickle that stand for a typed list."""


@runtime_checkable
class Readable(Protocol):
    """An open binary file: of the disk, in memory or of an object store."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class ArchiveError(ValueError):
    """The archive is damaged, or holds something that is not data."""


class Record:
    """An object of a TorchScript class: its fields, and nothing that could be called."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ArchiveError(f"a TorchScript object holds {type(state).__name__}, not its fields")
        self.fields = state


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
            return _read_pickles(io.BytesIO(stream.read()))
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
            with archive.open(f"{prefix}data.pkl") as pickled:
                return _Unpickler(pickled, archive, prefix).load()
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
    stack = [("", 0, tree)]
    for _ in range(MAX_NODES):
        if not stack:
            return
        path, depth, node = stack.pop()
        if isinstance(node, Record):
            children = list(node.fields.items())
        elif isinstance(node, dict):
            children = list(node.items())
        elif isinstance(node, list | tuple):
            children = [(str(i), child) for i, child in enumerate(node)]
        else:
            yield path, node
            continue
        if depth > MAX_DEPTH:
            raise ArchiveError(f"nested deeper than {MAX_DEPTH}, or containing itself: {path}")
        prefix = f"{path}." if path else ""
        stack.extend((f"{prefix}{key}", depth + 1, child) for key, child in reversed(children))
    raise ArchiveError(f"more than {MAX_NODES} objects; this is no set of weights")


def _prefix(archive: zipfile.ZipFile) -> str:
    """Folder of the archive's records, with its slash."""
    names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(names) != 1:
        raise ArchiveError(
            f"{len(names)} members are called data.pkl, but an archive of torch.save has one"
        )
    return names[0].removesuffix("data.pkl")


class _Unpickler(pickle.Unpickler):
    """Knows a handful of globals; what they are is made anew for each archive."""

    def __init__(self, pickled: Any, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(pickled)
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}
        self._globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): frozen(rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): frozen(lambda data, *_: data),
            **{("torch", name): dtype for name, dtype in DTYPES.items()},
            **{("torch.jit._pickle", name): frozen(list) for name in LISTS},
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            # A fresh class for each: a pickle can change no class that outlives it.
            return type(name, (Record,), {"__slots__": ()})
        if (module, name) in self._globals:
            return self._globals[module, name]
        raise refusal(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        """One storage as a flat tensor: ("storage", dtype, key, device, number of elements)."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ArchiveError(f"unknown persistent object {pid!r}")
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
        return torch.frombuffer(bytearray(self._archive.read(info)), dtype=dtype)


class _OldUnpickler(pickle.Unpickler):
    """For the pickles of torch < 1.6, whose storages come behind them."""

    def __init__(self, stream: io.BytesIO, storages: Mapping[str, Tensor] | None = None) -> None:
        """Without `storages` it only learns what they are, in `announced`."""
        super().__init__(stream)
        self.announced: dict[str, tuple[torch.dtype, int]] = {}
        self._storages = storages
        self._globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): frozen(
                rebuild_tensor if storages else _nothing
            ),
            ("torch._utils", "_rebuild_parameter"): frozen(lambda data, *_: data),
            **{("torch", name): dtype for name, dtype in DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise refusal(module, name)
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _device, count, view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise ArchiveError(f"unknown persistent object {pid!r}")
        if self.announced.setdefault(key, (dtype, count)) != (dtype, count):
            raise ArchiveError(f"storage {key} is named with two different types or sizes")
        return self._storages[key] if self._storages else None


def _read_pickles(stream: io.BytesIO) -> Any:
    """What a file of torch < 1.6 holds; the stream is behind its magic number.

    Protocol, system, the object, the keys of its storages; then each one's length and bytes.
    """
    protocol, system = (_OldUnpickler(stream).load() for _ in range(2))
    if protocol != PROTOCOL or not system["little_endian"]:
        raise ArchiveError(f"the file is of protocol {protocol}, {system}; save it anew")
    start = stream.tell()
    learning = _OldUnpickler(stream)
    learning.load()
    keys = _OldUnpickler(stream).load()
    if sorted(keys) != sorted(learning.announced):
        raise ArchiveError(f"storages are {keys}, announced were {sorted(learning.announced)}")
    storages = {key: _next_storage(stream, key, *learning.announced[key]) for key in keys}
    stream.seek(start)
    return _OldUnpickler(stream, storages).load()


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


def refusal(module: str, name: str) -> ArchiveError:
    """What is raised when a pickle asks for more than data."""
    return ArchiveError(
        f"the pickle asks for {module}.{name}, which is not data; the file is not what it "
        f"claims to be or needs converting to safetensors by someone who trusts it"
    )


def frozen(function: Callable[..., Any]) -> Any:
    """A callable without attributes to set, so that BUILD in a pickle cannot alter it."""

    class Call:
        __slots__ = ()

        def __call__(self, *args: Any) -> Any:
            return function(*args)

    return Call()


def rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any
) -> Tensor:
    """A part of a storage, copied; its last element must lie inside."""
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ArchiveError(f"impossible tensor: offset {offset}, size {size}, stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = math.prod(n for n in size)
    if elements > storage.numel() or (elements and last >= storage.numel()):
        raise ArchiveError(
            f"a tensor of size {size}, stride {stride} at {offset} does not fit into its storage "
            f"of {storage.numel()} elements"
        )
    return storage.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


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
