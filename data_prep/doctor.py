"""Look at the images of sources before they are sharded: what is unusable, unusual or twice there.

Nothing is written and nothing stops it: every image is decoded as the sharding job would do it, and
what that refuses is counted by its reason. Memory is bounded as there: one image per process, and
8 bytes of each for finding copies.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.align import Points, points_of, read_landmarks
from data_prep.images import (
    SUFFIXES,
    SUFFIXES_BY_FORMAT,
    TOLD_BY,
    BadImageError,
    ImageConfig,
    Picture,
    decode_image,
    fit_image,
    kind_of,
)
from data_prep.labels import read_labels
from data_prep.report import (
    THUMBNAILS,
    Finding,
    LabelBalance,
    Report,
    Severity,
    copies,
    fingerprint,
    is_flat,
    thumbnail,
)
from data_prep.sources import Entry, Source, SourceError, list_sources
from data_prep.workers import Progress, in_order, process_pool, unordered

_CHUNK = 32
_LONG_SHAPE = 3
_WARNINGS = frozenset(
    {"several pictures", "unreadable EXIF", "unreadable colour profile", "colour mode CMYK"}
)
_MOST_SIZES = 100_000


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to look at, and for what."""

    sources: tuple[str, ...]
    """Paths and URLs (see `data_prep.sources`)."""
    image: ImageConfig | None = None
    """What is to be made of the images; None if that is open: any shape and size will do."""
    include: str = ""
    """Pattern that the names of images match; all if empty."""
    labels: str = "none"
    """none, folder, source or the URL of a table (see `data_prep.labels`)."""
    landmarks: str = ""
    """For the crop face: URL of the landmarks."""
    workers: int | None = 1
    """Processes; None: as many as there are CPUs."""


class Task(NamedTuple):
    """Some entries of a source."""

    number: int
    entries: tuple[Entry, ...]
    faces: tuple[Points | None, ...]


class Seen(NamedTuple):
    """One usable image."""

    size: tuple[int, int]
    format: str
    mode: str
    fingerprint: int


class Chunk(NamedTuple):
    """What became of a task."""

    number: int
    images: tuple[Seen | None, ...]
    """None for an unusable one."""
    findings: tuple[Finding, ...]


def examine(config: DoctorConfig, progress: Progress) -> Report:
    """Look at every image of the sources.

    Raises:
        SourceError: A source cannot be used at all.
        storage.StorageError: The store failed for longer than its patience.
    """
    report = Report(title=", ".join(config.sources))
    with tempfile.TemporaryDirectory(prefix="data_prep-") as scratch:
        listing = list_sources(config.sources, Path(scratch), config.include)
        entries, source = listing.entries, listing.source
        if not entries:
            raise SourceError(f"source {report.title} holds no images; {TOLD_BY}")
        faces = read_landmarks(config.landmarks) if config.landmarks else {}
        seen = _Seen(len(entries))
        look = partial(_look, source, config.image)
        with process_pool(config.workers) as executor:
            tasks = _tasks(entries, faces)
            results = unordered(executor, look, tasks)
            for chunk in in_order(results):
                report.add(chunk.findings)
                seen.add(chunk)
                progress(seen.done, len(entries), "looking")
        report.facts = {
            "images": len(entries),
            "usable": seen.usable,
            "other files": listing.ignored,
            **seen.facts(),
        }
        report.add(_copies(seen, source, entries, config.image))
        try:
            labels = read_labels(config.labels, listing)
        except SourceError as err:
            report.add([Finding("error", f"no labels: {err}", config.labels)])
        else:
            if labels is not None:
                balance = LabelBalance()
                balance.add([labels.by_name[entry.name] for entry in entries if not entry.refused])
                report.facts |= balance.facts()
    return report


def _tasks(entries: tuple[Entry, ...], faces: Mapping[str, Points]) -> Iterator[Task]:
    for number, first in enumerate(range(0, len(entries), _CHUNK)):
        some = entries[first : first + _CHUNK]
        yield Task(number, some, tuple(points_of(entry.name, faces) for entry in some))


def _look(source: Source, config: ImageConfig | None, task: Task) -> Chunk:
    images: list[Seen | None] = []
    findings: list[Finding] = []
    for entry, face in zip(task.entries, task.faces, strict=True):
        if not _is_utf8(entry.name):
            findings.append(Finding("warning", "name is not UTF-8", entry.name))
        try:
            picture = decode_image(source.read(entry), config or ImageConfig(resolution=4))
        except BadImageError as err:
            findings.append(Finding("error", str(err), entry.name))
            images.append(None)
            continue
        pixels = np.asarray(picture.image)
        size = picture.image.size
        remarks = list(_remarks(picture, entry.name, flat=is_flat(pixels)))
        seen: Seen | None = Seen(size, picture.format, picture.mode, fingerprint(pixels))
        if config is not None:
            try:
                _, enlarged = fit_image(picture.image, config, face)
            except BadImageError as err:
                remarks.append(("error", str(err)))
                seen = None
            else:
                if enlarged:
                    small = f"smaller than the full level: {size[0]}x{size[1]}"
                    remarks.append(("warning", small))
        images.append(seen)
        small_one = thumbnail(picture.image) if any(r[0] != "note" for r in remarks) else b""
        findings += [Finding(*remark, entry.name, small_one) for remark in remarks]
    return Chunk(task.number, tuple(images), tuple(findings))


def _remarks(picture: Picture, name: str, *, flat: bool) -> Iterator[tuple[Severity, str]]:
    for remark in picture.remarks:
        yield ("warning" if kind_of(remark) in _WARNINGS else "note"), remark
    suffix = "." + name.rpartition(".")[2].partition("#")[0].lower()
    kind = "JPEG" if picture.format == "MPO" else picture.format
    if suffix in SUFFIXES and suffix not in SUFFIXES_BY_FORMAT[kind]:
        yield "warning", f"wrong suffix: {suffix} of a {picture.format}"
    width, height = picture.image.size
    if max(width, height) > _LONG_SHAPE * min(width, height):
        yield "warning", f"long shape: {width}x{height}"
    if flat:
        yield "warning", "one colour"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Seen:
    """What is counted over all images, in memory that does not grow with what they hold."""

    def __init__(self, count: int):
        self.fingerprints = np.zeros(count, np.uint64)
        self.known = np.zeros(count, np.bool_)
        self.done = self.usable = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()

    def add(self, chunk: Chunk) -> None:
        for seen in chunk.images:
            if seen is not None:
                self.usable += 1
                self.fingerprints[self.done] = seen.fingerprint
                self.known[self.done] = True
                if seen.size in self.sizes or len(self.sizes) < _MOST_SIZES:
                    self.sizes[seen.size] += 1
                self.formats[seen.format] += 1
                self.modes[seen.mode] += 1
            self.done += 1

    def facts(self) -> dict[str, object]:
        if not self.usable:
            return {}
        sides = np.array([min(size) for size in self.sizes.elements()])
        return {
            "formats": dict(self.formats.most_common()),
            "colour modes": dict(self.modes.most_common()),
            "sizes": {f"{w}x{h}": count for (w, h), count in self.sizes.most_common(20)},
            "shorter side in px": {
                "least": int(sides.min()),
                "median": int(np.median(sides)),
                "greatest": int(sides.max()),
            },
        }


def _copies(
    seen: _Seen, source: Source, entries: tuple[Entry, ...], config: ImageConfig | None
) -> Iterator[Finding]:
    numbers = np.flatnonzero(seen.known)
    for place, (again, first) in enumerate(copies(seen.fingerprints[numbers])):
        entry, original = entries[numbers[again]], entries[numbers[first]]
        small = b""
        if place < THUMBNAILS:
            image = decode_image(source.read(entry), config or ImageConfig(resolution=4)).image
            small = thumbnail(image)
        yield Finding("warning", f"copy: the same pixels as {original.name}", entry.name, small)
