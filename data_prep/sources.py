"""Where images come from: a folder, a zip or a tar, listed once and read at any place.

Archives are read in memory member by member; nothing is extracted, so a member cannot be written
anywhere, whatever its name. Members that are links or whose names leave the archive are refused.
The order of a listing is that of the sorted names, whatever the order on disk.
"""

import bz2
import functools
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_prep.images import SUFFIXES, BadImageError

LARGEST_FILE_BYTES = 2**30
_READ_ERRORS = (
    *(OSError, RuntimeError, NotImplementedError, EOFError, KeyError, ValueError),
    *(zipfile.BadZipFile, lzma.LZMAError, zlib.error),
)


class SourceError(ValueError):
    """A source cannot be used at all."""


@dataclass(frozen=True)
class Entry:
    """One image file of a source."""

    name: str
    """Path inside the source, with forward slashes."""
    size: int
    """Bytes."""
    stamp: int | float = 0
    """Tells changed bytes: time of change (ns of a file, s in a tar), or CRC-32 (in a zip)."""
    offset: int = 0
    """First byte in a tar."""
    refused: str = ""
    """Why it is not even opened; empty if it is."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A place to read entries from; travels to other processes."""

    kind: Literal["folder", "zip", "tar"]
    path: Path
    stamp: tuple[int, int] = (0, 0)
    """Length and time of change of an archive."""

    def read(self, entry: Entry) -> bytes:
        """The bytes of one entry.

        Raises:
            BadImageError: It cannot be read in full.
        """
        if entry.refused:
            raise BadImageError(entry.refused)
        try:
            content = self._read(entry)
        except _READ_ERRORS as err:
            raise BadImageError(f"cannot be read: {err}") from err
        if len(content) != entry.size:
            raise BadImageError(f"only {len(content)} of {entry.size} bytes could be read")
        return content

    def _read(self, entry: Entry) -> bytes:
        if self.kind == "folder":
            return (self.path / entry.name).read_bytes()
        if self.kind == "zip":
            archive, members = _open_zip(self.path, self.stamp)
            with archive.open(members[entry.name]) as member:
                return member.read(entry.size + 1)
        with self.path.open("rb") as tar:
            tar.seek(entry.offset)
            return tar.read(entry.size)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All image files of a source, sorted by name."""

    source: Source
    entries: tuple[Entry, ...]
    ignored: int
    """Number of other files."""


def list_source(path: Path, scratch: Path) -> Listing:
    """List a folder (with its subfolders), a zip or a tar.

    Args:
        path: The source.
        scratch: Folder for the plain copy of a compressed tar, which has no random access.

    Raises:
        SourceError: There is no such thing, or it is damaged.
    """
    if path.is_dir():
        return _listing(Source(kind="folder", path=path), _walk(path))
    if not path.exists():
        raise SourceError(f"source {path} does not exist")
    try:
        # A tar that ends in a zip would pass for a zip, so tar comes first.
        if _is_plain_tar(path):
            return _listing(_archive("tar", path), _tar_members(path))
        if zipfile.is_zipfile(path):
            return _listing(_archive("zip", path), _zip_members(path))
        if tarfile.is_tarfile(path):
            plain = _unpacked(path, scratch / "source.tar")
            return _listing(_archive("tar", plain), _tar_members(plain))
        if _begins_as_zip(path):
            raise SourceError(f"source {path} is damaged: a zip whose end is missing; get it again")
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as err:
        raise SourceError(f"source {path} is damaged: {err}") from err
    except OSError as err:
        raise SourceError(f"source {path} cannot be read: {err}") from err
    raise SourceError(f"source {path} is neither a folder nor a zip nor a tar")


def folder_labels(names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Class of each name: the rank of its first folder among all of them, sorted.

    Raises:
        SourceError: A name has no folder.
    """
    first = {name: name.partition("/")[0] if "/" in name else None for name in names}
    for name, folder in first.items():
        if folder is None:
            raise SourceError(
                f"{printable(name)} lies in no folder, but with --labels folder the first folder "
                f"is the class; move it or use --labels none"
            )
    classes = sorted({folder for folder in first.values() if folder is not None})
    rank = {folder: number for number, folder in enumerate(classes)}
    return {name: rank[folder] for name, folder in first.items() if folder is not None}, classes


def printable(name: str) -> str:
    """A file name that any terminal can show."""
    return name.encode("utf-8", "backslashreplace").decode()


def _listing(source: Source, found: Iterator[Entry]) -> Listing:
    ignored = 0
    entries: dict[str, Entry] = {}
    again: list[Entry] = []
    copies: Counter[str] = Counter()
    for entry in found:
        if not _is_image_name(entry.name):
            ignored += 1
        elif entry.name in entries:
            copies[entry.name] += 1
            name = f"{entry.name}#{copies[entry.name] + 1}"
            again.append(
                Entry(name, entry.size, entry.stamp, refused="another file has the same name")
            )
        else:
            entries[entry.name] = entry
    ordered = sorted([*entries.values(), *again], key=lambda entry: entry.name)
    return Listing(source=source, entries=tuple(ordered), ignored=ignored)


def _is_image_name(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden and "__MACOSX" not in path.parts


def _checked(
    name: str, size: int, *, stamp: int | float, offset: int = 0, refused: str = ""
) -> Entry:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        refused = "its path leaves the archive"
    elif size > LARGEST_FILE_BYTES:
        refused = f"{size} bytes are more than {LARGEST_FILE_BYTES}"
    return Entry(str(path), size, stamp, offset, refused)


def _walk(root: Path) -> Iterator[Entry]:
    def stop(err: OSError) -> None:
        raise SourceError(f"source {root} cannot be listed: {err}") from err

    for folder, folders, files in os.walk(root, onerror=stop, followlinks=True):
        folders[:] = [name for name in folders if not _is_loop(root, Path(folder, name))]
        relative = Path(folder).relative_to(root)
        for file in files:
            try:
                status, refused = Path(folder, file).stat(), ""
                size, stamp = status.st_size, status.st_mtime_ns
                if not Path(folder, file).is_file():
                    refused = "neither a file nor a link to one"
            except OSError as err:
                size, stamp, refused = 0, 0, f"cannot be read: {err.strerror}"
            yield _checked((relative / file).as_posix(), size, stamp=stamp, refused=refused)


def _is_loop(root: Path, folder: Path) -> bool:
    """Whether a folder is a link back to one on the way to it, or to something around that."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    way = [root, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return any(parent.resolve().is_relative_to(target) for parent in way)


def _archive(kind: Literal["zip", "tar"], path: Path) -> Source:
    status = path.stat()
    return Source(kind=kind, path=path, stamp=(status.st_size, status.st_mtime_ns))


def _zip_members(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                refused = "a link" if stat.S_ISLNK(info.external_attr >> 16) else ""
                yield _checked(info.filename, info.file_size, stamp=info.CRC, refused=refused)


def _tar_members(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            refused = "" if member.isreg() else "a link or a device"
            refused = "a sparse file" if member.issparse() else refused
            yield _checked(
                member.name,
                member.size,
                stamp=member.mtime,
                offset=member.offset_data,
                refused=refused,
            )


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _unpacked(path: Path, plain: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(3)
    opener: Any = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}[magic]
    with opener(path, "rb") as packed, plain.open("wb") as target:
        shutil.copyfileobj(packed, target, 2**20)
    return plain


@functools.lru_cache(maxsize=1)
def _open_zip(
    path: Path, stamp: tuple[int, int]
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    archive = zipfile.ZipFile(path)
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        members.setdefault(str(PurePosixPath(info.filename)), info)
    return archive, members
