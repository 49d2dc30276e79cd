"""Tensors out of a PyTorch zip archive (`torch.save`, TorchScript), as data: nothing in it is run.

    with open("default_1.pt", "rb") as stream:
        tensors = read_tensors(stream)  # {"net.layers.conv.weight": ..., ...}

The pickle inside may build tensors, numbers, strings and containers. Classes of TorchScript
(`__torch__...`) become inert records, and every other global is refused by name.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
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
            f"not a zip archive of PyTorch ({err}); a file of torch < 1.6 must be saved anew"
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
