"""A tar: its headers are read once, its members at their places."""

import bz2
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.sources.base import Entry, Source, SourceError, check_size, checked, rest_of_archive
from data_prep.sources.ranges import length_bytes, read_small

_PACKED = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}
_DAMAGE = (tarfile.TarError, ValueError, RuntimeError, OverflowError, EOFError)
_LARGEST_HEADER_BYTES = 2**24
_LARGEST_RATIO = 100
_BOMB_BYTES = 2**26
_PIECE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Tar(Source):
    """Members of a tar that is not compressed."""

    def _read(self, entry: Entry) -> bytes:
        return check_size(read_small(self.url, entry.offset, entry.size), entry.size)


def is_tar(file: BinaryIO) -> bool:
    """Whether an open file begins as a tar."""
    file.seek(0)
    try:
        with tarfile.open(fileobj=_headers(file), mode="r:"):
            return True
    except _DAMAGE:
        return False


def tar_entries(file: BinaryIO) -> Iterator[Entry]:
    """All files of a tar, and one that stands for the rest if it is cut off or damaged."""
    length = length_bytes(file)
    file.seek(0)
    try:
        with tarfile.open(fileobj=_headers(file), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
                if member.isdir():
                    continue
                refused = "" if member.isreg() else "a link or a device"
                refused = "a sparse file" if member.issparse() else refused
                offset, size = member.offset_data, member.size
                yield checked(Entry(member.name, size, member.mtime, offset, refused))
            # tarfile takes whatever is no header for the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield rest_of_archive(
                    f"truncated archive: no tar goes on at byte {tar.offset} of {length}"
                )
    except _DAMAGE as err:
        yield rest_of_archive(f"truncated archive: {err}")


def unpacked(file: BinaryIO, url: str, scratch: Path) -> Path | None:
    """A plain copy of a compressed tar in `scratch`, None if the file is none.

    Raises:
        SourceError: It is damaged, or a decompression bomb.
    """
    length = length_bytes(file)
    file.seek(0)
    opener: Any = _PACKED.get(file.read(3))
    file.seek(0)
    if opener is None:
        return None
    plain = scratch / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    limit = max(_BOMB_BYTES, _LARGEST_RATIO * length)
    try:
        with opener(file, "rb") as packed, plain.open("wb") as target:
            while piece := packed.read(_PIECE_BYTES):
                target.write(piece)
                if target.tell() > limit:
                    raise SourceError(
                        f"it unpacks to more than {limit} bytes, as a decompression bomb does"
                    )
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as err:
        plain.unlink(missing_ok=True)
        raise SourceError(str(err)) from err
    return plain


def _headers(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, _Headers(file))


class _Headers:
    """What tarfile needs of a file to read headers; one larger than any honest one is refused."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)
