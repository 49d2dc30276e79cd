"""The sharding job: list, shard on all cores of a machine or a cluster, commit.

Numbers of samples are ranks among the readable images, so they are final only when all images have
been decoded. The job hopes for the best: shards are written at once. When an image turns out bad,
the shards before it stay, what follows is only looked at, and a second round writes the rest. That
costs at most one decoding more, and nothing where all images are good.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep import ray_start, storage
from data_prep.align import Points, check_face_model, points_of, read_landmarks
from data_prep.images import TOLD_BY, BadImageError, kind_of, load_image
from data_prep.job_config import JobConfig
from data_prep.labels import LabelTable, read_labels
from data_prep.manifest import Labels, Level, Manifest, manifest_url
from data_prep.pyramid import encoding, stored_sizes
from data_prep.shards import ShardConfig, ShardResult, ShardTask, make_shard
from data_prep.sources import Entry, Listing, list_sources
from data_prep.workers import Executor, Progress, process_pool, unordered, workplace

logger = logging.getLogger(__name__)


class TooManyBadError(ValueError):
    """More images cannot be used than the user allows."""

    def __init__(self, message: str, bad: dict[str, str]):
        super().__init__(message)
        self.bad = bad


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What the job did."""

    manifest: Manifest
    seconds: float
    reused_shards: int = 0
    """Found complete from an earlier, interrupted run."""
    enlarged: int = 0
    """Images smaller than the resolution."""
    ignored: int = 0
    """Files that are no images by their names."""
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by name of the images left out."""
    already_complete: bool = False


def run_job(config: JobConfig, progress: Progress) -> JobReport:
    """Make the data set, or what is missing of it.

    Raises:
        ValueError: The source or the parameters do not fit.
        TooManyBadError: More than `max_bad` images cannot be used; no manifest was written.
        storage.StorageError: The store failed for longer than its patience.
    """
    start_s = time.monotonic()
    storage.check_reachable(config.dest)
    with workplace(config.dest) as scratch, _executor(config) as executor:
        listing = list_sources(config.sources, scratch, config.include)
        if not listing.entries:
            raise ValueError(f"source {config.shown} holds no images; {TOLD_BY}")
        labels = read_labels(config.labels, listing)
        faces = read_landmarks(config.landmarks) if config.landmarks else {}
        if config.image.face_model:
            check_face_model(config.image.face_model)
        manifest = _claim(config, listing, labels, faces)
        if manifest is not None:
            storage.delete(storage.join(config.dest, "_work"), recursive=True)
            return JobReport(manifest=manifest, seconds=0, already_complete=True)

        rounds = _Rounds(config, listing, labels, faces, scratch=scratch, progress=progress)
        results = rounds.run(executor)
        manifest = _manifest(config, results, None if labels is None else labels.kind)
        _commit(config, manifest, rounds.bad)
    return JobReport(
        manifest=manifest,
        seconds=time.monotonic() - start_s,
        reused_shards=sum(result.reused for result in results),
        enlarged=sum(result.enlarged for result in results),
        ignored=listing.ignored,
        bad=rounds.bad,
    )


def _executor(config: JobConfig) -> AbstractContextManager[Executor]:
    if not config.ray:
        return process_pool(config.workers)
    ray_start.prepare()
    from data_prep.ray_tasks import ray_cluster

    return ray_cluster(config.ray, config.workers)


class _Rounds:
    """Shard until a round meets no image that was not known to be bad."""

    def __init__(
        self,
        config: JobConfig,
        listing: Listing,
        labels: LabelTable | None,
        faces: Mapping[str, Points],
        *,
        scratch: Path,
        progress: Progress,
    ):
        self.config = config
        self.listing = listing
        self.labels = labels
        self.progress = progress
        here = not config.ray or storage.is_local(config.dest)
        self.shard_config = ShardConfig(
            source=listing.source,
            dest=config.dest,
            scratch=scratch if here else None,
            image=config.image,
        )
        self.faces = faces
        self.bad = self._known_bad()
        self.finished: dict[str, ShardResult] = {}

    def run(self, executor: Executor) -> list[ShardResult]:
        """Results of all shards, in order."""
        for number in (1, 2, 3):
            what = "sharding" if number == 1 else f"sharding, round {number}"
            found = self._one_round(executor, what)
            self.bad |= found
            if self.bad:
                self._report_bad()
            if not found:
                break
        else:
            raise storage.StorageError(
                f"{self.config.shown} gives other bytes at each reading; check its disk"
            )
        return [self.finished[task.key(self.config.image)] for task in self._tasks()]

    def _one_round(self, executor: Executor, what: str) -> dict[str, str]:
        found: dict[str, str] = {}
        good = len(self.listing.entries) - len(self.bad)
        done = 0
        self.progress(done, good, what)
        tasks = self._pending(found)
        make = partial(make_shard, self.shard_config)
        for result in unordered(executor, make, tasks):
            found |= result.bad
            done += result.images
            if result.levels:
                self.finished[result.key] = result
            self.progress(done, good, what)
        return found

    def _pending(self, found: dict[str, str]) -> Iterator[ShardTask]:
        for task in self._tasks(found):
            if task.key(self.config.image) not in self.finished:
                yield task

    def _tasks(self, found: dict[str, str] | None = None) -> Iterator[ShardTask]:
        """All shards of the good images; once something is `found`, only to be looked at."""
        good = [entry for entry in self.listing.entries if entry.name not in self.bad]
        size = self.config.samples_per_shard
        for number, first in enumerate(range(0, len(good), size)):
            entries = tuple(good[first : first + size])
            labels = None if self.labels is None else self.labels.by_name
            yield ShardTask(
                number=number,
                first_sample=first,
                entries=entries,
                labels=None if labels is None else tuple(labels[entry.name] for entry in entries),
                faces=tuple(map(self._face, entries)) if self.faces else None,
                check_only=bool(found),
            )

    def _face(self, entry: Entry) -> Points | None:
        return points_of(entry.name, self.faces)

    def _known_bad(self) -> dict[str, str]:
        """Images refused by the listing, and those an earlier run found that are still bad."""
        bad = {entry.name: entry.refused for entry in self.listing.entries if entry.refused}
        try:
            earlier = json.loads(storage.read_bytes(_quarantine_url(self.config.dest)))
            names = {row["source"] for row in earlier["images"]}
        except (storage.MissingError, ValueError, KeyError, TypeError):
            return bad
        for entry in self.listing.entries:
            if entry.name in names and entry.name not in bad:
                try:
                    content = self.listing.source.read(entry)
                    load_image(content, self.config.image, self._face(entry))
                except BadImageError as err:
                    bad[entry.name] = str(err)
        return bad

    def _report_bad(self) -> None:
        _write_quarantine(self.config.dest, self.bad)
        if len(self.bad) == len(self.listing.entries):
            raise TooManyBadError(f"no image of {self.config.shown} can be used", self.bad)
        if len(self.bad) > self.config.max_bad:
            raise TooManyBadError(
                f"{len(self.bad)} of {len(self.listing.entries)} images cannot be used, but only "
                f"{self.config.max_bad} may be left out, so no manifest was written; repair or "
                f"remove them, or allow it by --max-bad {len(self.bad)}, and run the same command "
                f"again",
                self.bad,
            )


def _quarantine_url(dest: str) -> str:
    return storage.join(dest, "quarantine.json")


def _write_quarantine(dest: str, bad: dict[str, str]) -> None:
    url = _quarantine_url(dest)
    if not bad:
        storage.delete(url)
        return
    rows = [
        {"source": name, "kind": kind_of(bad[name]), "reason": bad[name]} for name in sorted(bad)
    ]
    storage.write_atomic(url, (json.dumps({"format": 1, "images": rows}, indent=1) + "\n").encode())


def _claim(
    config: JobConfig,
    listing: Listing,
    labels: LabelTable | None,
    faces: Mapping[str, Points],
) -> Manifest | None:
    """Make sure `dest` is this job's; its manifest if the job is complete already.

    Raises:
        ValueError: Another data set is there.
    """
    rows: list[Any] = [entry.identity for entry in listing.entries]
    if labels is not None and config.labels != "folder":
        rows.append(list(labels.by_name.values()))
    if config.landmarks:
        rows.append([points_of(entry.name, faces) for entry in listing.entries])
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    job = {"format": 1, "parameters": config.parameters(), "listing_sha256": digest}
    url = storage.join(config.dest, "job.json")
    remedy = "choose another DEST or delete that one"
    try:
        earlier = json.loads(storage.read_bytes(url))
        begun, now = earlier["parameters"], config.parameters()
        differences = [
            f"--{key} {begun.get(key, 'left out')} instead of {now.get(key, 'leaving it out')}"
            for key in {**begun, **now}
            if begun.get(key) != now.get(key)
        ]
    except storage.MissingError:
        earlier, differences = None, []
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{url} was not written by this program; {remedy}") from err
    if differences:
        raise ValueError(f"{config.dest} was begun with {', '.join(differences)}; {remedy}")

    if storage.exists(manifest_url(config.dest)):
        if earlier is None:
            raise ValueError(f"{config.dest} holds another data set; {remedy}")
        if earlier["listing_sha256"] != digest:
            raise ValueError(
                f"{config.dest} was made from other images, or they were written again since "
                f"(names, sizes, times of change, labels or landmarks differ); {remedy}"
            )
        manifest = Manifest.load(config.dest)
        if config.name not in ("", manifest.name):
            raise ValueError(
                f"{config.dest} is complete and its name is {manifest.name}, not {config.name}; "
                f"leave --name out, or {remedy}"
            )
        return manifest
    storage.write_atomic(url, (json.dumps(job, indent=1) + "\n").encode())
    return None


def _manifest(config: JobConfig, results: list[ShardResult], labels: Labels | None) -> Manifest:
    return Manifest(
        name=config.name or config.dest.rstrip("/").rsplit("/", 1)[-1],
        samples=sum(result.images for result in results),
        resolution=config.image.resolution,
        height=config.image.height,
        channels=config.image.channels,
        samples_per_shard=config.samples_per_shard,
        source_transform=config.image.source_transform(),
        resample=config.image.downsampling,
        labels=labels,
        levels=tuple(
            Level(
                resolution=size[0],
                height=None if size[0] == size[1] else size[1],
                encoding=encoding(size, config.image),
                bytes=sum(result.levels[number].bytes for result in results),
                shards=tuple(result.levels[number] for result in results),
            )
            for number, size in enumerate(stored_sizes(config.image))
        ),
    )


def _commit(config: JobConfig, manifest: Manifest, bad: dict[str, str]) -> None:
    # Shards beyond the last one, of a round that did not know all bad images yet, and files that a
    # killed run has left half written.
    levels = [storage.join(config.dest, str(level.resolution)) for level in manifest.levels]
    for folder in (config.dest, *levels):
        for name in storage.listdir(folder):
            number, _, kind = name.partition(".")
            beyond = kind in {"tar", "json"} and number.isdecimal()
            beyond = beyond and int(number) >= manifest.num_shards
            if beyond or storage.is_temporary(name):
                storage.delete(storage.join(folder, name))
    _write_quarantine(config.dest, bad)
    storage.write_atomic(manifest_url(config.dest), manifest.to_json().encode())
    storage.delete(storage.join(config.dest, "_work"), recursive=True)
