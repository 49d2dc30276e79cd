"""What all forms of sources share: entries, listings, and which names are images."""

import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from data_prep import storage
from data_prep.images import SUFFIXES, BadImageError
from data_prep.manifest import Label

LARGEST_FILE_BYTES = 2**30
LARGEST_SIDECAR_BYTES = 2**28
_SIDECARS = frozenset({".cls", ".json"})
_REST = "[rest of the archive].png"
# OSError: the file or its store. ValueError: no array where one is to be, or the SourceError of an
# LMDB that is gone. EOFError: an array without a byte. zlib.error: a member that does not inflate.
_READ_ERRORS = (OSError, ValueError, EOFError, zlib.error)


class SourceError(ValueError):
    """A source cannot be used at all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file of a source."""

    name: str
    """Path inside the source, with forward slashes."""
    size: int
    """Bytes."""
    stamp: int | float | str = 0
    """Tells changed bytes: a checksum if the source has one, else a time of change or an ETag."""
    offset: int = 0
    """First byte in an archive."""
    refused: str = ""
    """Why it is not even opened; empty if it is."""
    member: str = ""
    """What its own source calls it, if that is not its name."""
    packed: int = 0
    """Bytes in a zip where it is deflated; 0: stored as it is."""
    part: int = 0
    """Which of several sources it is in."""
    metadata: Mapping[str, Any] | None = None
    """What the source says about it besides (author, licence); goes along with the sample."""

    @property
    def identity(self) -> list[Any]:
        """What tells it from another image, or from itself before a change."""
        known = [self.name, self.size, self.stamp]
        return known if self.metadata is None else [*known, dict(self.metadata)]

    @property
    def key(self) -> str:
        """What its own source calls it."""
        return self.member or self.name


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A place to read entries from; travels to other processes."""

    url: str
    """Local path or URL."""

    def read(self, entry: Entry) -> bytes:
        """The bytes of one entry, an image file in a format that Pillow knows.

        Raises:
            BadImageError: It cannot be read in full.
            storage.StorageError: The store failed for longer than its patience.
        """
        if entry.refused:
            raise BadImageError(entry.refused)
        try:
            return self._read(entry)
        except BadImageError:
            raise
        except _READ_ERRORS as err:
            lasting = isinstance(err.__cause__, FileNotFoundError | PermissionError)
            if isinstance(err, storage.StorageError) and not lasting:
                raise
            raise BadImageError(f"cannot be read: {err}") from err

    @property
    def places(self) -> tuple[str, ...]:
        """Paths and URLs that it reads."""
        return (self.url,)

    @abstractmethod
    def _read(self, entry: Entry) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All image files of a source, sorted by name."""

    source: Source
    entries: tuple[Entry, ...]
    ignored: int = 0
    """Number of other files."""
    sidecars: Mapping[str, Entry] = field(default_factory=dict)
    """Files that may hold labels, by name."""
    labels: Mapping[str, Label] = field(default_factory=dict)
    """By name, where the form of the source has them."""
    label_names: tuple[str, ...] = ()
    """Of classes, or of the numbers of a vector, where the source has them."""


def make_listing(source: Source, found: Iterable[Entry]) -> Listing:
    """Sort the image files of a source from its other files."""
    ignored = 0
    entries: dict[str, Entry] = {}
    again: list[Entry] = []
    copies: Counter[str] = Counter()
    sidecars: dict[str, Entry] = {}
    for entry in found:
        if not _is_image_name(entry.name):
            ignored += 1
            if suffix(entry.name) in _SIDECARS and not entry.refused:
                sidecars.setdefault(entry.name, entry)
        elif entry.name in entries:
            copies[entry.name] += 1
            name = f"{entry.name}#{copies[entry.name] + 1}"
            refused = "another file has the same name"
            again.append(Entry(name, entry.size, entry.stamp, refused=refused))
        else:
            entries[entry.name] = entry
    ordered = sorted([*entries.values(), *again], key=lambda entry: entry.name)
    return Listing(source=source, entries=tuple(ordered), ignored=ignored, sidecars=sidecars)


def checked(entry: Entry) -> Entry:
    """An entry of an archive or a folder under its plain name, refused if that is hostile."""
    root = "/" if entry.name.startswith("/") else ""
    parts = [part for part in entry.name.split("/") if part not in ("", ".")]
    name, refused = root + "/".join(parts), entry.refused
    if root or ".." in parts:
        refused = "its path leaves the archive"
    elif entry.size > LARGEST_FILE_BYTES:
        refused = f"too long: {entry.size} bytes are more than {LARGEST_FILE_BYTES}"
    if (name, refused) == (entry.name, entry.refused):
        return entry
    return replace(entry, name=name, refused=refused)


def rest_of_archive(reason: str) -> Entry:
    """What stands for the images behind a damage, so that they are counted and named."""
    return Entry(_REST, 0, refused=reason)


def included(listing: Listing, pattern: str) -> Listing:
    """The listing with the images only whose names match (`*` stands for slashes, too)."""
    if not pattern:
        return listing
    kept = tuple(
        entry
        for entry in listing.entries
        if fnmatchcase(entry.name, pattern) or entry.name == _REST
    )
    dropped = len(listing.entries) - len(kept)
    return replace(listing, entries=kept, ignored=listing.ignored + dropped)


def check_size(content: bytes, size: int) -> bytes:
    """The content, which must be as long as it was when it was listed."""
    if len(content) < size:
        raise BadImageError(f"truncated: only {len(content)} of {size} bytes could be read")
    if len(content) > size:
        raise BadImageError(f"changed: longer than the {size} bytes it had when it was listed")
    return content


def suffix(name: str) -> str:
    """Last dot of a name and what follows it, in small letters; empty if there is none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return (dot + last).lower() if stem else ""


def printable(name: str) -> str:
    """A file name that any terminal can show."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_image_name(name: str) -> bool:
    if suffix(name) not in SUFFIXES:
        return False
    parts = name.split("/")
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    return not hidden and "__MACOSX" not in parts
