"""An LMDB as LSUN comes in: a folder with data.mdb whose values are image files (extra `lmdb`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.images import BadImageError
from data_prep.sources.base import Entry, Source, SourceError, check_size, checked
from data_prep.sources.ranges import local_file

FILE = "data.mdb"


@dataclass(frozen=True, kw_only=True)
class Lmdb(Source):
    """Values of an LMDB on this machine."""

    def _read(self, entry: Entry) -> bytes:
        try:
            with _environment(self.url).begin() as transaction:
                value: bytes | None = transaction.get(bytes.fromhex(entry.member))
        except _lmdb().Error as err:
            raise BadImageError(f"damaged: the LMDB does not give it: {err}") from err
        if value is None:
            raise BadImageError("changed: the LMDB no longer has it")
        return check_size(value, entry.size)


def lmdb_entries(url: str) -> Iterator[Entry]:
    """All values in the order of their keys, which give the names.

    Raises:
        SourceError: It cannot be opened.
    """
    environment = _environment(url)
    stamp = (_folder(url) / FILE).stat().st_mtime_ns
    try:
        # Buffers point into the file: the values are not read here.
        with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            for key, value in cursor.iternext():
                raw = bytes(key)
                text = raw.decode("utf-8", "surrogateescape").replace("/", "%2F")
                yield checked(Entry(text, len(value), stamp, member=raw.hex()))
    except _lmdb().Error as err:
        raise SourceError(f"source {url} is damaged: {err}; get it again") from err


_environments: dict[str, tuple[int, Any]] = {}


def _environment(url: str) -> Any:
    """The open LMDB; one per process, as the library wants."""
    folder = _folder(url)
    try:
        stamp = (folder / FILE).stat().st_mtime_ns
        known, environment = _environments.get(url, (None, None))
        if known != stamp:
            if environment is not None:
                environment.close()
            # Without locks it can lie on a file system that is read-only.
            environment = _lmdb().open(
                str(folder), readonly=True, lock=False, readahead=False, max_spare_txns=1
            )
            _environments[url] = stamp, environment
    except (_lmdb().Error, OSError) as err:
        raise SourceError(f"source {url} is no LMDB that can be read: {err}") from err
    return environment


def _folder(url: str) -> Path:
    path = local_file(url)
    if path is None:
        raise SourceError(
            f"source {url} is an LMDB in a store, but LMDB reads files only; copy it here"
        )
    return path


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as err:
        raise SourceError(
            "reading an LMDB needs the package lmdb; pip install -e '.[lmdb]'"
        ) from err
    return lmdb
