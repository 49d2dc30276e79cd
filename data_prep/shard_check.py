"""Verify one shard at all levels: indices, tars, every image, labels."""

import hashlib
import io
import tarfile
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep import storage
from data_prep.images import MODES
from data_prep.manifest import (
    DigestError,
    Label,
    Level,
    Manifest,
    ShardIndex,
    index_url,
    sample_digest,
    sample_key,
    shard_url,
)
from data_prep.pyramid import pyramid
from data_prep.report import Finding, fingerprint, is_flat, thumbnail

LOSSLESS = frozenset({"npy", "png", "webp"})


class CheckedShard(NamedTuple):
    """What was found in one shard at all levels."""

    number: int
    findings: tuple[Finding, ...] = ()
    fingerprints: tuple[int | None, ...] = ()
    """Of the samples at the full level; None where it cannot be decoded."""
    labels: tuple[Label, ...] = ()


def check_shard(base: str, manifest: Manifest, number: int) -> CheckedShard:
    """Verify shard `number` of every level of the data set at `base`."""
    findings: list[Finding] = []
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow's doubts about metadata and size
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="data_prep-")))
        opened = [
            stack.enter_context(level_shard)
            for level in manifest.levels
            if (level_shard := _open(base, level, number, folder, findings)) is not None
        ]
        for shard in opened:
            findings += shard.tar_findings(manifest, number)
        if opened:
            findings += _same_columns(opened)
        findings_of_samples, fingerprints = _check_samples(opened, manifest, number)
        findings += findings_of_samples
        labels = opened[-1].index.labels if opened else None
        labels, wrong = _valid_labels(labels, manifest, number)
    return CheckedShard(number, (*findings, *wrong), fingerprints, labels)


class _OpenShard:
    """One shard of one level: its index and its tar as a local file."""

    def __init__(self, level: Level, url: str, path: Path, index: ShardIndex):
        self.level, self.url, self.path, self.index = level, url, path, index

    def __enter__(self) -> "_OpenShard":
        self.file: BinaryIO = self.path.open("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def payload(self, row: int) -> bytes:
        self.file.seek(self.index.offsets[row])
        return self.file.read(self.index.lengths[row])

    def tar_findings(self, manifest: Manifest, number: int) -> Iterator[Finding]:
        """Whether the tar lists what the index says."""
        first = number * manifest.samples_per_shard
        expected = {
            f"{sample_key(first + row)}.{self.level.encoding}": (offset, length)
            for row, (offset, length) in enumerate(
                zip(self.index.offsets, self.index.lengths, strict=True)
            )
        }
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    place = expected.pop(member.name, None)
                    key, _, kind = member.name.partition(".")
                    if place is not None and place != (member.offset_data, member.size):
                        yield self._error("tar and index differ: in where images lie", key)
                    elif place is None and kind == "cls":
                        yield from self._class_findings(tar, member, first)
                    elif place is None and kind != "json":
                        yield self._error("tar and index differ: a member more", member.name)
        except (tarfile.TarError, EOFError) as err:
            yield self._error(f"unreadable tar: {err}", "")
        for name in expected:
            yield self._error("tar and index differ: a member less", name)

    def _class_findings(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, first: int
    ) -> Iterator[Finding]:
        content = tar.extractfile(member)
        text = content.read(32).decode(errors="replace") if content is not None else ""
        row = int(member.name.partition(".")[0]) - first if member.name[:9].isdecimal() else -1
        labels = self.index.labels or ()
        if not 0 <= row < len(labels) or text != str(labels[row]):
            yield self._error("tar and index differ: in a class", member.name)

    def _error(self, reason: str, name: str) -> Finding:
        return Finding("error", reason, f"{self.url} {name}".rstrip())


def _open(
    base: str, level: Level, number: int, folder: Path, findings: list[Finding]
) -> _OpenShard | None:
    """A shard whose index is intact; what else is wrong with it goes to the findings."""
    expected = level.shards[number]
    url = shard_url(base, level.resolution, number)
    where = index_url(base, level.resolution, number)
    try:
        index = ShardIndex.from_bytes(storage.read_bytes(where), expected, url=where)
        path = folder / f"{level.resolution}.tar"
        if storage.is_local(url):
            path, where = storage.local_path(url), url
            size = path.stat().st_size if path.exists() else storage.size_bytes(url)
        else:
            where = url
            storage.download(url, path)
            size = path.stat().st_size
    except storage.MissingError:
        findings.append(Finding("error", "missing file", where))
        return None
    except (DigestError, KeyError, TypeError, ValueError) as err:
        findings.append(Finding("error", f"altered index: {err}", where))
        return None
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if (size, sha256) != (expected.bytes, expected.sha256):
        reason = (
            f"altered tar: {size} bytes with the SHA-256 {sha256}, the manifest says "
            f"{expected.bytes} with {expected.sha256}"
        )
        findings.append(Finding("error", reason, url))
    columns = {index.keys, index.sources, index.offsets, index.lengths, index.sha256}
    if {len(column) for column in columns} != {expected.samples}:
        findings.append(Finding("error", "wrong count: columns of the index", where))
        return None
    return _OpenShard(level, url, path, index)


def _same_columns(opened: Sequence[_OpenShard]) -> Iterator[Finding]:
    full = opened[-1].index
    for shard in opened[:-1]:
        for name in ("keys", "sources", "labels"):
            if getattr(shard.index, name) != getattr(full, name):
                yield Finding("error", f"levels differ: in their {name}", shard.url)


def _check_samples(
    opened: Sequence[_OpenShard], manifest: Manifest, number: int
) -> tuple[list[Finding], tuple[int | None, ...]]:
    """Digest, decoding, size and downsampling of every image."""
    findings: list[Finding] = []
    fingerprints: list[int | None] = []
    first = number * manifest.samples_per_shard
    for row in range(manifest.levels[-1].shards[number].samples):
        key = sample_key(first + row)
        images: dict[int, NDArray[np.uint8]] = {}
        found: list[tuple[str, str]] = []
        for shard in opened:
            try:
                images[shard.level.resolution] = _image(shard, row, manifest.channels)
            except _SampleError as err:
                found.append((str(err), f"{shard.url} {key}"))
            if shard.index.keys[row] != key:
                found.append((f"wrong key: {shard.index.keys[row]}", f"{shard.url} {key}"))
        full = images.get(manifest.resolution)
        fingerprints.append(None if full is None else fingerprint(full))
        where = f"{key} {opened[-1].index.sources[row]}" if opened else key
        if full is not None and manifest.levels[-1].encoding in LOSSLESS:
            found += [(reason, where) for reason in _off_the_rule(images, full, manifest)]
        findings += [Finding("error", *one, _small(images)) for one in found]
        if full is not None and is_flat(full):
            findings.append(Finding("warning", "one colour", where, _small(images)))
    return findings, tuple(fingerprints)


class _SampleError(ValueError):
    """An image is not what it is to be; the message is the reason."""


def _image(shard: _OpenShard, row: int, channels: int) -> NDArray[np.uint8]:
    payload = shard.payload(row)
    if sample_digest(payload) != shard.index.sha256[row]:
        raise _SampleError("altered image: its SHA-256 is not the one of the index")
    try:
        if shard.level.encoding == "npy":
            image: NDArray[np.uint8] = np.load(io.BytesIO(payload), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(payload)) as file:
                kind = file.format
                image = np.asarray(file.convert(MODES[channels]))
                image = image.reshape(*image.shape[:2], channels)
            if kind != {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}.get(shard.level.encoding):
                raise _SampleError(f"wrong encoding: {kind} in a level of {shard.level.encoding}")
    except (_SampleError, MemoryError):
        raise
    except Exception as err:
        raise _SampleError(f"undecodable image: {type(err).__name__}") from err
    width, height = shard.level.size
    if image.shape != (height, width, channels) or image.dtype != np.uint8:
        raise _SampleError(f"wrong size: {image.dtype} {'x'.join(map(str, image.shape))}")
    return image


def _off_the_rule(
    images: dict[int, NDArray[np.uint8]], full: NDArray[np.uint8], manifest: Manifest
) -> Iterator[str]:
    expected = {image.shape[1]: image for image in pyramid(full, manifest.resample)}
    for level in manifest.levels[:-1]:
        image = images.get(level.resolution)
        if (
            image is not None
            and level.encoding in LOSSLESS
            and not np.array_equal(image, expected.get(level.resolution, image))
        ):
            yield f"levels differ: {level.resolution} px is not the full one made smaller"


def _small(images: dict[int, NDArray[np.uint8]]) -> bytes:
    if not images:
        return b""
    largest = images[max(images)]
    return thumbnail(Image.fromarray(largest[:, :, 0] if largest.shape[2] == 1 else largest))


def _valid_labels(
    labels: tuple[Label, ...] | None, manifest: Manifest, number: int
) -> tuple[tuple[Label, ...], list[Finding]]:
    kind = manifest.labels
    where = f"shard {number}"
    if kind is None or labels is None:
        wrong = kind is not None or labels is not None
        return (), [Finding("error", "labels missing or too many", where)] if wrong else []
    first = number * manifest.samples_per_shard
    findings = []
    good: list[Label] = []
    for row, label in enumerate(labels):
        if kind.kind == "class":
            fits = isinstance(label, int) and 0 <= label < kind.size
        else:
            fits = not isinstance(label, int) and len(label) == kind.size
            fits = fits and bool(np.isfinite(label).all())
        if fits:
            good.append(label)
        else:
            reason = f"wrong label: {label} is no {kind.kind} of {kind.size}"
            findings.append(Finding("error", reason, sample_key(first + row)))
    return tuple(good), findings
