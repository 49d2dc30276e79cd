"""A zip: its central directory is read once, its members at their places.

Read without `zipfile`, which keeps the whole directory in every process, gives up at one name that
is not UTF-8, and unpacks some methods without bound.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from data_prep.images import BadImageError
from data_prep.sources.base import Entry, Source, SourceError, check_size, checked
from data_prep.sources.ranges import length_bytes, read_at

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_MEMBER = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 2**16
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11
_FULL = 0xFFFFFFFF
_LARGEST_RATIO = 200


@dataclass(frozen=True, kw_only=True)
class Zip(Source):
    """Members of a zip."""

    def _read(self, entry: Entry) -> bytes:
        stored = entry.packed or entry.size
        # What follows a member in a whole zip, the end record at least, is longer than this slack.
        slack = _MEMBER.size + _END.size
        content = read_at(self.url, entry.offset, _LOCAL.size + stored + slack)
        if content[:4] != b"PK\x03\x04" or len(content) < _LOCAL.size:
            raise BadImageError("damaged: no file begins where the zip says it does")
        *_, name_bytes, extra_bytes = _LOCAL.unpack_from(content)
        start = _LOCAL.size + name_bytes + extra_bytes
        missing = start + stored - len(content)
        if missing > 0:
            content += read_at(self.url, entry.offset + len(content), missing)
        packed = content[start : start + stored]
        if entry.packed:
            packed = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.size + 1)
        if zlib.crc32(check_size(packed, entry.size)) != entry.stamp:
            raise BadImageError("damaged: its CRC-32 is another than the zip says")
        return packed


@dataclass(frozen=True)
class Directory:
    """Where the central directory of a zip lies."""

    start: int
    members: int
    shift: int
    """Bytes before the zip proper, as in a self-extracting one."""


def find_directory(file: BinaryIO) -> Directory | None:
    """The central directory of an open file, None if it is no zip.

    Raises:
        SourceError: It is one, but damaged.
    """
    length = length_bytes(file)
    tail_start = max(0, length - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        return None
    _, _, _, _, members, size, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    if end >= _END64.size + _LOCATOR64.size:
        file.seek(end - _LOCATOR64.size - _END64.size)
        fields = _END64.unpack(file.read(_END64.size))
        if fields[0] == b"PK\x06\x06" and file.read(4) == b"PK\x06\x07":
            members, size, offset = fields[7:]
            end -= _END64.size + _LOCATOR64.size
    if end - size - offset < 0:
        raise SourceError("its beginning is missing")
    return Directory(end - size, members, end - size - offset)


def zip_entries(file: BinaryIO, directory: Directory) -> Iterator[Entry]:
    """All files of a zip.

    Raises:
        SourceError: Its directory is damaged.
    """
    file.seek(directory.start)
    for number in range(directory.members):
        head = file.read(_MEMBER.size)
        if head[:4] != b"PK\x01\x02" or len(head) < _MEMBER.size:
            raise SourceError(f"its directory ends after {number} of {directory.members} files")
        fields = _MEMBER.unpack(head)
        name_bytes, extra_bytes, comment_bytes = fields[12:15]
        raw_name, extra = file.read(name_bytes), file.read(extra_bytes)
        file.read(comment_bytes)
        if raw_name.endswith(b"/"):
            continue
        flags, method = fields[5:7]
        packed, size, offset = _sizes(fields[10], fields[11], fields[18], extra)
        name = raw_name.decode("utf-8", "surrogateescape") if flags & _UTF8 else ""
        entry = checked(
            Entry(
                name or raw_name.decode("cp437"),
                size,
                fields[9],
                offset + directory.shift,
                refused=_refusal(flags, method, fields[17] >> 16, size / max(packed, 1)),
                packed=packed if method == _DEFLATED else 0,
            )
        )
        inside = entry.offset + _LOCAL.size + packed <= directory.start
        yield (
            entry
            if inside
            else replace(entry, refused="damaged: it would lie behind the end of the zip")
        )


def _sizes(packed: int, size: int, offset: int, extra: bytes) -> tuple[int, int, int]:
    """The three with their 64-bit values in place (section 4.5.3 of PKWARE's APPNOTE)."""
    values = [size, packed, offset]
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
            for place, value in enumerate(values):
                if value == _FULL and len(wide) >= 8:
                    (values[place],) = struct.unpack_from("<Q", wide)
                    wide = wide[8:]
        extra = extra[4 + length :]
    size, packed, offset = values
    return packed, size, offset


def _refusal(flags: int, method: int, mode: int, ratio: float) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if flags & _ENCRYPTED:
        return "encrypted"
    if method not in (_STORED, _DEFLATED):
        return f"unknown packing: method {method}; zip it again, deflated or stored"
    if ratio > _LARGEST_RATIO:
        return f"decompression bomb: unpacks to {ratio:.0f} times its length"
    return ""
