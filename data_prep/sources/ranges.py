"""Bytes at a place of a file, here or in a store."""

import functools
import io
from pathlib import Path
from typing import BinaryIO, cast

from data_prep import storage

_BLOCK_BYTES = 2**20


@functools.lru_cache(maxsize=4096)
def local_file(url: str) -> Path | None:
    """The path of a local URL, None for one in a store."""
    return storage.local_path(url) if storage.is_local(url) else None


def read_at(url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; fewer where a local file ends before."""
    path = local_file(url)
    if path is not None:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    return storage.read_range(url, offset, length)


def read_small(url: str, offset: int, length: int) -> bytes:
    """As `read_at`, for many small reads in order: a store is asked for a megabyte at a time."""
    if local_file(url) is not None or length > _BLOCK_BYTES // 4:
        return read_at(url, offset, length)
    first, last = offset // _BLOCK_BYTES, (offset + length - 1) // _BLOCK_BYTES
    blocks = b"".join(_block(url, number) for number in range(first, last + 1))
    start = offset - first * _BLOCK_BYTES
    return blocks[start : start + length]


def open_seekable(url: str) -> BinaryIO:
    """A file to be read here and there."""
    path = local_file(url)
    if path is not None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Ranges(url), _BLOCK_BYTES))


def length_bytes(file: BinaryIO) -> int:
    """Length of an open file."""
    return file.seek(0, io.SEEK_END)


@functools.lru_cache(maxsize=4)
def _block(url: str, number: int) -> bytes:
    start = number * _BLOCK_BYTES
    return storage.read_range(url, start, min(_BLOCK_BYTES, _size(url) - start))


@functools.lru_cache(maxsize=64)
def _size(url: str) -> int:
    return storage.size_bytes(url)


class _Ranges(io.RawIOBase):
    """An object of a store, read by ranges with the retries of the storage module."""

    def __init__(self, url: str):
        self.url = url
        self.size = storage.size_bytes(url)
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self.size - self.position))
        buffer[:length] = storage.read_range(self.url, self.position, length)
        self.position += length
        return length
