"""Bytes of single images, verified: from a local data set, a cached shard or a range request.

Whole shards are fetched where that pays (small levels, once per node); elsewhere neighbours in a
shard are read with one request and kept one by one in the node's cache.

The tars are plain WebDataset. `wids` opens them, too, given URL and number of samples of each; its
own index has no place for the offsets, digests and labels that are needed here.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep import storage
from data_prep.manifest import (
    SAMPLE_DIGEST_CHARS,
    DigestError,
    Level,
    Manifest,
    Shard,
    ShardIndex,
    index_url,
    sample_digest,
    sample_key,
    shard_url,
)
from pipeline.cache import DiskCache

logger = logging.getLogger(__name__)

_GAP_BYTES = 2048
"""Two images are read together over the tar headers and the label between them."""
_RUN_BYTES = 8 * 2**20
_INDEX_BYTES = 64 * 2**20
_LABEL_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class _OpenShard:
    """Where a shard is and where its images lie: columns with one row per sample."""

    url: str
    sha256: str
    path: Path | None
    """A local file to read instead of the URL."""
    size: int
    """Real length in bytes."""
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    digests: NDArray[np.bytes_]

    @property
    def memory_bytes(self) -> int:
        return self.offsets.nbytes + self.lengths.nbytes + self.digests.nbytes

    def digest(self, row: int) -> str:
        return bytes(self.digests[row]).decode()

    def span(self, row: int) -> tuple[int, int]:
        """First byte of an image and the byte after its last."""
        start = int(self.offsets[row])
        return start, start + int(self.lengths[row])


class ShardReader:
    """Reads samples of one data set; for many threads, not across a fork."""

    def __init__(
        self,
        base: str,
        manifest: Manifest,
        cache: DiskCache,
        *,
        retry: storage.Retry,
        held_resolution: int,
        strict: bool,
    ):
        """Touches nothing yet.

        Args:
            base: URL of the data set's folder.
            manifest: What lies there.
            cache: Where copies of remote files go.
            retry: Patience with the store.
            held_resolution: Levels up to this width are fetched as whole shards.
            strict: A damaged shard is an error even if the wanted image in it is intact.
        """
        self.base = base
        self.manifest = manifest
        self.cache = cache
        self.retry = retry
        self.held_resolution = held_resolution
        self.strict = strict
        self.local = storage.is_local(base)
        self._shards: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()
        self._index_bytes = 0
        self._labels: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._label_bytes = 0
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in range(16)]

    def payloads(self, level: Level, samples: Sequence[int]) -> Iterator[bytes | None]:
        """The bytes of each sample, or None where they are not intact (see `read_again`).

        Args:
            level: Where to read.
            samples: Sorted, so that neighbours are read together.

        Raises:
            DigestError: A shard or an index as a whole is not the one that was written.
            StorageError: The store failed.
        """
        run: list[tuple[int, int]] = []  # sample, row
        shard: _OpenShard | None = None
        for sample in samples:
            number, row = self.manifest.locate(sample)
            with _naming(sample):
                there = self._shard(level, number)
            cached = self._cached(there, row)
            if shard is not None and run:
                apart = shard is not there or not _joins(there, run, row)
                if apart or cached is not None:
                    yield from self._read_run(shard, run)
                    run = []
            if cached is not None:
                yield cached
                continue
            shard = there
            run.append((sample, row))
        if shard is not None and run:
            yield from self._read_run(shard, run)

    def read_again(self, level: Level, sample: int) -> bytes:
        """The bytes of one sample from their origin, because a copy or a transfer was damaged.

        Raises:
            DigestError: They are not the bytes that were written.
        """
        number, row = self.manifest.locate(sample)
        with _naming(sample):
            shard = self._shard(level, number)
            expected = shard.digest(row)
            if not self.local:
                self.cache.drop(expected)
                if shard.path is not None:
                    self._forget_copy(level, number, shard)
            start, end = shard.span(row)
            payload = self._read(shard, start, end - start, origin=True)
        digest = sample_digest(payload)
        if digest != expected:
            raise DigestError(
                f"sample {sample_key(sample)} in {shard.url} was altered: its {len(payload)} of "
                f"{end - start} bytes have a SHA-256 that begins with {digest}, "
                f"the index says {expected}"
            )
        return payload

    def label(self, sample: int) -> NDArray[np.float32]:
        """The label of any sample: a number (class) or a vector; no image is touched.

        Raises:
            DigestError: An index is not the one that was written.
            StorageError: The store failed.
        """
        number, row = self.manifest.locate(sample)
        with self._opening[number % len(self._opening)]:
            with self._lock:
                labels = self._labels.get(number)
                if labels is not None:
                    self._labels.move_to_end(number)
            if labels is None:
                with _naming(sample):
                    labels = self._load_labels(number)
        return np.asarray(labels[row])

    def _load_labels(self, number: int) -> NDArray[np.float32]:
        level = self.manifest.levels[0]  # every level has the same ones
        url = index_url(self.base, level.resolution, number)
        index = self._index(url, level.shards[number])
        if index.labels is None:
            raise DigestError(f"{url} has no labels, but the manifest says it has")
        labels = np.array(index.labels, np.float32)
        with self._lock:
            self._labels[number] = labels
            self._label_bytes += labels.nbytes
            while self._label_bytes > _LABEL_BYTES and len(self._labels) > 1:
                _, oldest = self._labels.popitem(last=False)
                self._label_bytes -= oldest.nbytes
        return labels

    def _read_run(
        self, shard: _OpenShard, run: Sequence[tuple[int, int]]
    ) -> Iterator[bytes | None]:
        first = shard.span(run[0][1])[0]
        end = shard.span(run[-1][1])[1]
        with _naming(run[0][0]):
            content = memoryview(self._read(shard, first, end - first))
        for _, row in run:
            start, end = shard.span(row)
            payload = bytes(content[start - first : end - first])
            if sample_digest(payload) != shard.digest(row):
                yield None
                continue
            if shard.path is None:
                self.cache.put(shard.digest(row), payload)
            yield payload

    def _cached(self, shard: _OpenShard, row: int) -> bytes | None:
        if shard.path is not None:
            return None
        expected = shard.digest(row)
        payload = self.cache.get(expected)
        if payload is not None and sample_digest(payload) != expected:
            logger.warning("copy of an image of %s is damaged, fetched again", shard.url)
            self.cache.drop(expected)
            return None
        return payload

    def _read(self, shard: _OpenShard, start: int, length: int, *, origin: bool = False) -> bytes:
        """Bytes of a shard; fewer if it ends before."""
        if shard.path is not None and (self.local or not origin):
            try:
                return _pread(shard.path, start, length)
            except FileNotFoundError as err:
                if self.local:
                    raise storage.MissingError(f"cannot read {shard.url}: it is gone") from err
                logger.debug("%s left the cache", shard.path)
            except OSError as err:
                raise storage.StorageError(
                    f"cannot read {shard.path} ({shard.url}): {err}"
                ) from err
        length = max(0, min(length, shard.size - start))
        return storage.read_range(shard.url, start, length, retry=self.retry)

    def _shard(self, level: Level, number: int) -> _OpenShard:
        key = level.resolution, number
        with self._opening[number % len(self._opening)]:
            with self._lock:
                if key in self._shards:
                    self._shards.move_to_end(key)
                    return self._shards[key]
            shard = self._open(level, number)
            with self._lock:
                self._shards[key] = shard
                self._index_bytes += shard.memory_bytes
                while self._index_bytes > _INDEX_BYTES and len(self._shards) > 1:
                    _, oldest = self._shards.popitem(last=False)
                    self._index_bytes -= oldest.memory_bytes
        return shard

    def _open(self, level: Level, number: int) -> _OpenShard:
        expected = level.shards[number]
        url = shard_url(self.base, level.resolution, number)
        held = level.resolution <= self.held_resolution and level.bytes <= self.cache.max_bytes
        try:
            path, size = self._place(url, expected, held=held)
            if size != expected.bytes:
                raise DigestError(f"{url} has {size} bytes, the manifest says {expected.bytes}")
        except DigestError as err:
            if self.strict:
                raise
            logger.warning("%s; its images are verified one by one", err)
            path, size = self._place(url, expected, held=False)
        index = self._index(index_url(self.base, level.resolution, number), expected)
        return _OpenShard(
            url=url,
            sha256=expected.sha256,
            path=path,
            size=size,
            offsets=np.array(index.offsets, np.int64),
            lengths=np.array(index.lengths, np.int64),
            digests=np.array(index.sha256, f"S{SAMPLE_DIGEST_CHARS}"),
        )

    def _place(self, url: str, expected: Shard, *, held: bool) -> tuple[Path | None, int]:
        """Local file to read, if any, and the real length."""
        if self.local:
            return storage.local_path(url), storage.size_bytes(url)
        if held:
            path = self.cache.fetch(url, sha256=expected.sha256, size=expected.bytes)
            if path is not None:
                return path, expected.bytes
        return None, storage.size_bytes(url, retry=self.retry)

    def _index(self, url: str, expected: Shard) -> ShardIndex:
        if not self.local:
            path = self.cache.fetch(url, sha256=expected.index_sha256, size=expected.index_bytes)
            if path is not None:
                try:
                    return ShardIndex.from_bytes(path.read_bytes(), expected, url=str(path))
                except (OSError, DigestError) as err:
                    logger.warning("copy of %s is damaged, fetched again: %s", url, err)
                    self.cache.drop(expected.index_sha256)
        try:
            return self._read_index(url, expected)
        except DigestError as err:
            if self.local:
                raise
            logger.warning("%s; read again", err)  # the transfer may be at fault
            return self._read_index(url, expected)

    def _read_index(self, url: str, expected: Shard) -> ShardIndex:
        size = storage.size_bytes(url, retry=self.retry)
        if size != expected.index_bytes:
            raise DigestError(f"{url} has {size} bytes, the manifest says {expected.index_bytes}")
        content = storage.read_range(url, 0, size, retry=self.retry)
        return ShardIndex.from_bytes(content, expected, url=url)

    def _forget_copy(self, level: Level, number: int, shard: _OpenShard) -> None:
        logger.warning("copy of %s is damaged: dropped", shard.url)
        self.cache.drop(shard.sha256)
        with self._lock:
            if self._shards.get((level.resolution, number)) is shard:
                del self._shards[level.resolution, number]
                self._index_bytes -= shard.memory_bytes


@contextmanager
def _naming(sample: int) -> Iterator[None]:
    """Put the sample's key into the messages of what fails."""
    try:
        yield
    except DigestError as err:
        raise DigestError(f"sample {sample_key(sample)}: {err}") from err
    except storage.StorageError as err:
        raise type(err)(f"sample {sample_key(sample)}: {err}") from err


def _joins(shard: _OpenShard, run: Sequence[tuple[int, int]], row: int) -> bool:
    """Whether an image is read with those before it."""
    start, end = shard.span(row)
    first, last_end = shard.span(run[0][1])[0], shard.span(run[-1][1])[1]
    return start <= last_end + _GAP_BYTES and end - first <= _RUN_BYTES


def _pread(path: Path, start: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while length > 0:
            piece = os.pread(descriptor, length, start)
            if not piece:
                break
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)
