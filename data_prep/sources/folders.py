"""A folder with its subfolders: on this machine, or the objects below a URL."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from data_prep import storage
from data_prep.sources.base import Entry, Source, SourceError, check_size, checked
from data_prep.sources.ranges import local_file


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Files below a folder."""

    def _read(self, entry: Entry) -> bytes:
        root = local_file(self.url)
        if root is None:
            return check_size(storage.read_bytes(storage.join(self.url, entry.key)), entry.size)
        with (root / entry.key).open("rb") as file:
            return check_size(file.read(entry.size + 1), entry.size)


def folder_entries(url: str) -> Iterator[Entry]:
    """All files below a folder.

    Raises:
        SourceError: A folder cannot be listed.
    """
    root = local_file(url)
    if root is not None:
        yield from _walk(root)
        return
    for path, found in storage.find(url).items():
        name = unquote(path) if url.startswith(("http://", "https://")) else path
        yield checked(Entry(name, found.size, found.version, member=path))


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
            yield checked(Entry((relative / file).as_posix(), size, stamp, refused=refused))


def _is_loop(root: Path, folder: Path) -> bool:
    """Whether a folder is a link back to one on the way to it, or to something around that."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    way = [root, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return any(parent.resolve().is_relative_to(target) for parent in way)
