"""Which form a source has, and several sources as one."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data_prep import storage
from data_prep.manifest import Label
from data_prep.sources import datasets, ffhq, folders, lmdbs, tars, tfrecords, zips
from data_prep.sources.base import (
    Entry,
    Listing,
    Source,
    SourceError,
    included,
    make_listing,
)
from data_prep.sources.ranges import local_file, open_seekable

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class Several(Source):
    """Sources one beside the other."""

    parts: tuple[Source, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """Paths and URLs of all of them."""
        return tuple(place for part in self.parts for place in part.places)

    def _read(self, entry: Entry) -> bytes:
        return self.parts[entry.part].read(entry)


@dataclass(frozen=True)
class _Part:
    """One source, and the folder in which its images appear."""

    folder: str
    listing: Listing


def list_source(url: str | Path, scratch: Path, include: str = "") -> Listing:
    """List one source; see `list_sources`."""
    return list_sources([str(url)], scratch, include)


def list_sources(urls: Sequence[str], scratch: Path, include: str = "") -> Listing:
    """List folders, archives and the other forms, by path or URL, as one source.

    The names of several are those inside each, below its own name.

    Args:
        urls: The sources; `{000..122}` in one stands for all these numbers.
        scratch: Folder for the plain copy of a compressed tar, which has no random access.
        include: Pattern that the names of images match; empty: all.

    Raises:
        SourceError: One is nothing of the kind, or damaged as a whole.
    """
    each = [url for pattern in urls for url in _expanded(pattern)]
    parts: list[_Part] = []
    for url, name in zip(each, _short_names(each), strict=True):
        for part in _parts(url, scratch, include):
            outer = name if len(each) > 1 else ""
            folder = "/".join(filter(None, [outer, part.folder]))
            parts.append(_Part(folder, included(part.listing, include)))
    if [part.folder for part in parts] == [""]:
        return parts[0].listing
    return _joined(", ".join(urls), parts)


def _parts(url: str, scratch: Path, include: str) -> list[_Part]:
    """What a source consists of: itself, or the archives in a folder that holds nothing else."""
    try:
        if not _is_folder(url):
            return [_Part("", _list_file(url, scratch, include))]
        names = storage.listdir(url)
        listing = _list_folder(url, names, include)
        archives = [name for name in names if name.endswith(_ARCHIVES)]
        if listing.entries or not archives:
            return [_Part("", listing)]
        inside = [_list_file(storage.join(url, name), scratch, include) for name in archives]
    except storage.MissingError as err:
        raise SourceError(f"source {url} does not exist; check the path or URL") from err
    except storage.StorageError:
        raise
    except OSError as err:
        raise SourceError(f"source {url} cannot be read: {err}") from err
    return [_Part(name, part) for name, part in zip(archives, inside, strict=True)]


def _is_folder(url: str) -> bool:
    path = local_file(url)
    if path is None:
        return storage.is_folder(url)
    if not path.exists():
        raise SourceError(f"source {url} does not exist; check the path or URL")
    return path.is_dir()


def _list_folder(url: str, names: Sequence[str], include: str) -> Listing:
    if "manifest.json" in names and _is_data_set(storage.join(url, "manifest.json")):
        return datasets.list_data_set(url)
    if lmdbs.FILE in names:
        entries = sorted(lmdbs.lmdb_entries(url), key=lambda entry: entry.name)
        return Listing(source=lmdbs.Lmdb(url=url), entries=tuple(entries))
    if any(tfrecords.LEVEL.fullmatch(name) for name in names):
        return _list_tfrecords(storage.join(url, tfrecords.full_level(url, names)))
    if ffhq.FILE in names:
        return make_listing(ffhq.Ffhq(url=url), ffhq.ffhq_entries(url, include))
    return make_listing(folders.Folder(url=url), folders.folder_entries(url))


def _list_file(url: str, scratch: Path, include: str) -> Listing:
    folder, _, name = url.rpartition("/")
    if name in (ffhq.FILE, lmdbs.FILE):
        return _list_folder(folder or ".", [name], include)
    if name == "manifest.json":
        return datasets.list_data_set(url)
    if tfrecords.LEVEL.fullmatch(name):
        return _list_tfrecords(url)
    try:
        with open_seekable(url) as file:
            listing = _list_archive(file, url, scratch)
    except SourceError as err:
        raise SourceError(f"source {url} is damaged: {err}; get it again") from err
    if listing is None:
        raise SourceError(
            f"source {url} is none of the known forms: folder, zip, tar, WebDataset, LMDB, "
            f"official TFRecords, FFHQ, data set of data_prep"
        )
    return listing


def _list_archive(file: BinaryIO, url: str, scratch: Path) -> Listing | None:
    # A tar that ends in a zip would pass for a zip, so tar comes first.
    if tars.is_tar(file):
        return make_listing(tars.Tar(url=url), tars.tar_entries(file))
    directory = zips.find_directory(file)
    if directory is not None:
        return make_listing(zips.Zip(url=url), zips.zip_entries(file, directory))
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":
        raise SourceError("a zip whose end is missing")
    plain = tars.unpacked(file, url, scratch)
    if plain is None:
        return None
    with plain.open("rb") as unpacked:
        if not tars.is_tar(unpacked):
            return None
        return make_listing(tars.Tar(url=str(plain)), tars.tar_entries(unpacked))


def _list_tfrecords(url: str) -> Listing:
    with open_seekable(url) as file:
        prefix = PurePosixPath(url).stem
        entries = tuple(tfrecords.tfrecord_entries(file, prefix))
    labels = tfrecords.tfrecord_labels(url, entries)
    return Listing(source=tfrecords.TFRecords(url=url), entries=entries, labels=labels)


def _is_data_set(url: str) -> bool:
    """Whether a manifest.json is one of ours, intact or not."""
    try:
        content = json.loads(storage.read_bytes(url))
    except ValueError:
        return False
    return isinstance(content, dict) and "samples_per_shard" in content


def _joined(url: str, parts: Sequence[_Part]) -> Listing:
    entries: list[Entry] = []
    sidecars: dict[str, Entry] = {}
    labels: dict[str, Label] = {}
    for number, part in enumerate(parts):
        listing, folder = part.listing, part.folder

        def here(entry: Entry, number: int = number, folder: str = folder) -> Entry:
            return replace(entry, name=f"{folder}/{entry.name}", member=entry.key, part=number)

        entries += map(here, listing.entries)
        sidecars |= {f"{folder}/{name}": here(entry) for name, entry in listing.sidecars.items()}
        labels |= {f"{folder}/{name}": label for name, label in listing.labels.items()}
    called = {part.listing.label_names for part in parts}
    return Listing(
        source=Several(url=url, parts=tuple(part.listing.source for part in parts)),
        entries=tuple(sorted(entries, key=lambda entry: entry.name)),
        ignored=sum(part.listing.ignored for part in parts),
        sidecars=sidecars,
        labels=labels,
        label_names=called.pop() if len(called) == 1 else (),
    )


def _expanded(url: str) -> list[str]:
    """`x-{08..10}.tar` as x-08.tar, x-09.tar, x-10.tar."""
    match = _RANGE.search(url)
    if match is None:
        return [url]
    first, last = match[1], match[2]
    numbers = range(int(first), int(last) + 1)
    return [
        rest
        for number in numbers
        for rest in _expanded(url.replace(match[0], f"{number:0{len(first)}d}", 1))
    ]


def _short_names(urls: Sequence[str]) -> list[str]:
    """The last components of each, as many as it takes to tell them apart.

    Raises:
        SourceError: Two are the same.
    """
    paths = [
        PurePosixPath(url.partition("://")[2])
        if "://" in url
        else Path(os.path.normpath(Path(url).absolute()))
        for url in urls
    ]
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    doubled = next(url for url, path in zip(urls, paths, strict=True) if paths.count(path) > 1)
    raise SourceError(f"source {doubled} is given twice; name it once")
