"""One shard of the data set, at all its levels: the unit of work of a process.

Tars are written to a local file and then put in place as a whole; the receipt comes last. A shard
whose receipt is there and whose files are those it names is not made again.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from data_prep import storage
from data_prep.align import Points
from data_prep.images import BadImageError, ImageConfig, load_image
from data_prep.manifest import (
    Label,
    Shard,
    ShardIndex,
    index_url,
    sample_digest,
    sample_key,
    shard_url,
)
from data_prep.pyramid import encoding, payloads, stored_sizes
from data_prep.sources import Entry, Source

logger = logging.getLogger(__name__)

TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What all shards of a job share."""

    source: Source
    dest: str
    """URL of the data set's folder."""
    scratch: Path | None
    """Local folder for tars in the making; on the file system of `dest` where that is local. None:
    a temporary one of whichever machine makes a shard."""
    image: ImageConfig

    def check_here(self) -> None:
        """Make sure that this machine sees what the one that began the job sees.

        Raises:
            ValueError: A path is not there.
        """
        sources = [storage.local_path(url) for url in self.source.places if storage.is_local(url)]
        for path in [*sources, *filter(None, [self.scratch])]:
            if not path.exists():
                raise ValueError(
                    f"{path} is not there on machine {socket.gethostname()}; with --ray SOURCE and "
                    f"DEST are URLs, or paths that all machines share, and compressed tars are "
                    f"unpacked before"
                )


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Which samples a shard holds."""

    number: int
    first_sample: int
    entries: tuple[Entry, ...]
    labels: tuple[Label, ...] | None
    faces: tuple[Points | None, ...] | None = None
    """Where the face is in each image, for the crop face."""
    check_only: bool = False
    """Decode and report, write nothing: the numbers of these samples are not final."""

    def key(self, image: ImageConfig) -> str:
        """Fingerprint of all that the bytes of the shard follow from."""
        rows = [entry.identity for entry in self.entries]
        content = [asdict(image), self.number, self.first_sample, rows, self.labels, self.faces]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of a task."""

    number: int
    key: str
    images: int
    """Entries looked at."""
    levels: tuple[Shard, ...] = ()
    """4 px first; empty if nothing was written."""
    enlarged: int = 0
    """Images smaller than the full level."""
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by name of entries that cannot be used."""
    reused: bool = False


def make_shard(config: ShardConfig, task: ShardTask) -> ShardResult:
    """Write the tars and indices of one shard unless they are there already.

    Raises:
        ValueError: A local path of the job is not there on this machine.
        storage.StorageError: The store failed for longer than its patience.
    """
    config.check_here()
    done = _from_receipt(config, task)
    if done is not None:
        return done
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's doubts about metadata
        return _make(config, task)


def receipt_url(dest: str, shard: int) -> str:
    """URL of the small file that says a shard is complete."""
    return storage.join(dest, "_work", f"{shard:06d}.json")


def _make(config: ShardConfig, task: ShardTask) -> ShardResult:
    bad: dict[str, str] = {}
    enlarged = 0
    with ExitStack() as stack:
        writers: list[_LevelWriter] = []
        if not task.check_only:
            folder = stack.enter_context(_scratch(config.scratch))
            writers = [
                stack.enter_context(_LevelWriter(folder, size, config.image, task))
                for size in stored_sizes(config.image)
            ]
        for row, entry in enumerate(task.entries):
            try:
                content = config.source.read(entry)
                face = None if task.faces is None else task.faces[row]
                image = load_image(content, config.image, face)
            except BadImageError as err:
                bad[entry.name] = str(err)
                continue
            enlarged += image.enlarged
            # After a bad image the numbers are no longer right: look at the rest, write nothing.
            if writers and not bad:
                levels_of_it = payloads(content, image, config.image)
                for writer, payload in zip(writers, levels_of_it, strict=True):
                    writer.add(row, payload)
        images, key = len(task.entries), task.key(config.image)
        if bad or task.check_only:
            return ShardResult(number=task.number, key=key, images=images, bad=bad)
        levels = tuple(writer.publish(config.dest) for writer in writers)

    receipt = {"key": key, "enlarged": enlarged, "levels": [asdict(shard) for shard in levels]}
    storage.write_atomic(receipt_url(config.dest, task.number), json.dumps(receipt).encode())
    return ShardResult(number=task.number, key=key, images=images, levels=levels, enlarged=enlarged)


@contextmanager
def _scratch(home: Path | None) -> Iterator[Path]:
    """A new folder in `home`, or among the temporary files of this machine.

    There, what killed processes have left of theirs is removed.
    """
    prefix = f"data_prep-{os.getuid()}-shard-"
    if home is None:
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            if not psutil.pid_exists(int(left.name.removeprefix(prefix).partition("-")[0])):
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=home) as folder:
        yield Path(folder)


class _LevelWriter:
    """The tar of one level in the making, and the columns of its index."""

    def __init__(self, folder: Path, size: tuple[int, int], image: ImageConfig, task: ShardTask):
        self.resolution = size[0]
        self.encoding = encoding(size, image)
        self.task = task
        described = any(entry.metadata is not None for entry in task.entries)
        self.described = described and size == image.size
        self.path = folder / f"{self.resolution}.tar"
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.sha256: list[str] = []

    def __enter__(self) -> "_LevelWriter":
        # webdataset imports torch where it is installed: a second for whoever only reads manifests.
        from webdataset import TarWriter

        self.file: IO[bytes] = self.path.open("wb")
        self.tar = TarWriter(
            self.file, user="root", group="root", mode=0o644, compress=False, encoder=False, mtime=0
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.tar.close()
        self.file.close()

    def add(self, row: int, payload: bytes) -> None:
        """Append one sample."""
        key = sample_key(self.task.first_sample + row)
        # The image first, so that its offset is that of the sample plus one header.
        self.offsets.append(self.tar.tarstream.offset + TAR_BLOCK)
        self.lengths.append(len(payload))
        self.sha256.append(sample_digest(payload))
        self.tar.write({"__key__": key, self.encoding: payload})
        beside = self._beside(row)
        if beside:
            self.tar.write({"__key__": key, **beside})

    def _beside(self, row: int) -> dict[str, bytes]:
        """Members beside the image: cls, a class; json, a vector and what is known else."""
        label = None if self.task.labels is None else self.task.labels[row]
        known = dict(self._metadata(row)) if self.described else {}
        members = {}
        if isinstance(label, int):
            members["cls"] = str(label).encode()
        elif label is not None:
            known["label"] = label
        if known:
            members["json"] = json.dumps(known, sort_keys=True).encode()
        return members

    def _metadata(self, row: int) -> Mapping[str, Any]:
        return self.task.entries[row].metadata or {}

    def publish(self, dest: str) -> Shard:
        """Put tar and index in place."""
        self.tar.close()
        self.file.close()
        task, first = self.task, self.task.first_sample
        index = ShardIndex(
            keys=tuple(sample_key(first + row) for row in range(len(task.entries))),
            sources=tuple(entry.name for entry in task.entries),
            offsets=tuple(self.offsets),
            lengths=tuple(self.lengths),
            sha256=tuple(self.sha256),
            labels=task.labels,
            metadata=tuple(map(self._metadata, range(len(task.entries))))
            if self.described
            else None,
        ).to_bytes()
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(
            samples=len(task.entries),
            bytes=self.path.stat().st_size,
            sha256=sha256,
            index_bytes=len(index),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
        storage.upload(self.path, shard_url(dest, self.resolution, task.number), move=True)
        storage.write_atomic(index_url(dest, self.resolution, task.number), index)
        return shard


def _from_receipt(config: ShardConfig, task: ShardTask) -> ShardResult | None:
    try:
        receipt = json.loads(storage.read_bytes(receipt_url(config.dest, task.number)))
        key = task.key(config.image)
        if receipt["key"] != key:
            return None
        levels = tuple(Shard(**row) for row in receipt["levels"])
        enlarged = int(receipt["enlarged"])
    except storage.MissingError:
        return None
    except (ValueError, KeyError, TypeError) as err:
        logger.warning("receipt of shard %d is unreadable (%s): made again", task.number, err)
        return None
    for url, size, sha256 in _files(config, task, levels):
        try:
            intact = storage.size_bytes(url) == size and storage.sha256(url) == sha256
        except storage.MissingError:
            intact = False
        if not intact:
            logger.warning("%s is not what its receipt says: made again", url)
            return None
    return ShardResult(
        number=task.number,
        key=key,
        images=len(task.entries),
        levels=levels,
        enlarged=enlarged,
        reused=True,
    )


def _files(
    config: ShardConfig, task: ShardTask, levels: tuple[Shard, ...]
) -> Iterator[tuple[str, int, str]]:
    for (resolution, _), shard in zip(stored_sizes(config.image), levels, strict=True):
        url = shard_url(config.dest, resolution, task.number)
        yield url, shard.bytes, shard.sha256
        url = index_url(config.dest, resolution, task.number)
        yield url, shard.index_bytes, shard.index_sha256
