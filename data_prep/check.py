"""Verify a data set: manifest, indices, tars, every image at every level, labels, copies.

Everything is read once, shard by shard, each with all its levels; a remote tar is a temporary local
file meanwhile. Memory is bounded: one image with its levels per process, the index of one shard at
every level, and 9 bytes for each sample.
"""

import io
import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep import storage
from data_prep.manifest import Manifest, ShardIndex, folder_url, sample_key, shard_url
from data_prep.report import THUMBNAILS, Finding, LabelBalance, Report, copies, thumbnail
from data_prep.shard_check import LOSSLESS, check_shard
from data_prep.workers import Progress, in_order, process_pool, unordered

_FILES = frozenset({"manifest.json", "job.json", "quarantine.json"})
_UNBALANCED = 10


def check(url: str, progress: Progress, *, workers: int | None = 1) -> Report:
    """Verify the data set at `url`.

    Raises:
        ValueError: Its manifest cannot be used, so that nothing else can be told.
        storage.StorageError: There is none, or the store failed for longer than its patience.
    """
    manifest, base = Manifest.load(url), folder_url(url)
    report = Report(title=f"{manifest.name} at {base}", facts=_facts(manifest))
    report.add(_manifest_findings(manifest))
    report.add(_beside(base, manifest))
    fingerprints = np.zeros(manifest.samples, np.uint64)
    known = np.zeros(manifest.samples, np.bool_)
    labels = LabelBalance()
    with process_pool(workers) as executor:
        look = partial(check_shard, base, manifest)
        results = unordered(executor, look, range(manifest.num_shards))
        for shard in in_order(results):
            report.add(shard.findings)
            first = shard.number * manifest.samples_per_shard
            for row, value in enumerate(shard.fingerprints):
                if value is not None:
                    fingerprints[first + row], known[first + row] = value, True
            labels.add(shard.labels)
            done = min(first + manifest.samples_per_shard, manifest.samples)
            progress(done, manifest.samples, "checking")
    if manifest.labels is not None:
        classes = manifest.labels.size if manifest.labels.kind == "class" else 0
        report.facts |= labels.facts(classes)
        report.add(_balance(labels, classes))
    report.add(_copies(base, manifest, fingerprints, known))
    return report


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "digest": manifest.digest,
        "samples": manifest.samples,
        "shards of a level": manifest.num_shards,
        "size": "x".join(map(str, manifest.levels[-1].size)),
        "channels": manifest.channels,
        "downsampling": manifest.resample,
        "source images": dict(manifest.source_transform),
        "MiB of a level": {
            f"{level.resolution} px {level.encoding}": round(level.bytes / 2**20, 1)
            for level in manifest.levels[::-1]
        },
    }


def _manifest_findings(manifest: Manifest) -> Iterator[Finding]:
    for level in manifest.levels:
        where = f"level {level.resolution}"
        if level.bytes != sum(shard.bytes for shard in level.shards):
            yield Finding("error", "level and shards differ: in their bytes", where)
        if level.encoding not in {*LOSSLESS, "jpg"}:
            yield Finding("error", f"unknown encoding: {level.encoding}", where)
    widths = [level.resolution for level in manifest.levels]
    if widths[-1] != manifest.resolution or any(2 * a != b for a, b in pairwise(widths)):
        yield Finding("error", f"levels missing: only {widths} are there", "manifest.json")


def _beside(base: str, manifest: Manifest) -> Iterator[Finding]:
    """What lies in the folder without being named by the manifest."""
    levels = {str(level.resolution) for level in manifest.levels}
    names = {f"{n:06d}.{kind}" for n in range(manifest.num_shards) for kind in ("tar", "json")}
    for name in storage.listdir(base):
        if name == "quarantine.json":
            try:
                rows = json.loads(storage.read_bytes(storage.join(base, name)))["images"]
                for row in rows:
                    yield Finding(
                        "note", f"left out when it was made: {row['reason']}", row["source"]
                    )
            except (ValueError, KeyError, TypeError):
                yield Finding("warning", "unreadable quarantine.json", name)
        elif name not in _FILES and name not in levels:
            yield Finding("warning", "no part of the data set", name)
    for level in sorted(levels, key=int):
        for name in storage.listdir(storage.join(base, level)):
            if name not in names:
                yield Finding("warning", "no part of the data set", f"{level}/{name}")


def _balance(labels: LabelBalance, classes: int) -> Iterator[Finding]:
    for number in range(classes):
        if not labels.counts[number]:
            yield Finding("warning", "class without images", f"class {number}")
    if labels.counts:
        (most, many), (least, few) = (labels.counts.most_common()[place] for place in (0, -1))
        if many > _UNBALANCED * few:
            reason = f"unbalanced classes: {many} images of class {most}, {few} of class {least}"
            yield Finding("note", reason, "labels")


def _copies(
    base: str, manifest: Manifest, fingerprints: NDArray[np.uint64], known: NDArray[np.bool_]
) -> Iterator[Finding]:
    numbers = np.flatnonzero(known)
    for place, (again, first) in enumerate(copies(fingerprints[numbers])):
        sample, original = int(numbers[again]), int(numbers[first])
        small = b""
        if place < THUMBNAILS:
            number, row = manifest.locate(sample)
            level = manifest.levels[-1]
            index = ShardIndex.load(base, level.resolution, number, manifest)
            url = shard_url(base, level.resolution, number)
            content = storage.read_range(url, index.offsets[row], index.lengths[row])
            if level.encoding != "npy":
                small = thumbnail(Image.open(io.BytesIO(content)))
        reason = f"copy: the same pixels as {sample_key(original)}"
        yield Finding("warning", reason, sample_key(sample), small)
