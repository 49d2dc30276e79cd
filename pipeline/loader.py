"""Images of a data set in the order of the run, decoded ahead of the training step.

    loader = Loader(url, Manifest.load(url), order, config=LoaderConfig())
    for batch in loader.stream(Request(level_resolution=64, positions=p) for p in positions):
        batch.images  # uint8 tensor [n, c, h, w]

A position of the order is a sample, a sample a shard and a row, a row a range of bytes: nothing is
replayed to reach a position. Small levels (`held_resolution`) are fetched shard by shard once per
node, larger ones image by image; local data sets are read where they lie. Every image is verified
against its digest before it is decoded, wherever it came from.

Memory per process: (prefetch + 1) batches, 64 MiB each of shard indices and labels, `decoded_bytes`
per level for at most two levels, 16 MiB and one image in each thread, 40 bytes for each file in the
cache while old ones are deleted; the same after ten epochs as after two. All of it, the threads and
the open files belong to the stream and end with it; a `Loader` itself can be forked. There is no
shared memory, and no file but those of the cache.

Symbols: n images, c h w.
"""

import io
import logging
import struct
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_prep import storage
from data_prep.manifest import DigestError, Level, Manifest, folder_url, sample_key, shard_url
from pipeline.cache import DiskCache
from pipeline.reader import ShardReader

logger = logging.getLogger(__name__)

_CLOSE_S = 10.0
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMATS = {"png": ["PNG"], "webp": ["WEBP"], "jpg": ["JPEG"]}
_BY_PLANE_PX = 128


class SampleError(ValueError):
    """An image has the right bytes, but they are no image of its level; names URL and key."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images are fetched and how far ahead."""

    cache_dir: Path = Path("~/.cache/stylegan-pipeline")
    """Folder of this node for copies of remote data; nothing is written for local data."""
    cache_bytes: int = 64 * 2**30
    """Upper bound of that folder over all processes of the node."""
    threads: int = 4
    """Threads that read and decode; more help against a slow store."""
    prefetch: int = 2
    """Minibatches decoded ahead of the one in use."""
    held_resolution: int = 64
    """Levels up to this width in pixels are fetched whole, once per node."""
    decoded_bytes: int = 256 * 2**20
    """Those levels also stay decoded in memory where they fit; 0 for never."""
    max_bad_samples: int = 0
    """Damaged images replaced by their successor before the run fails, per process."""
    retries: int = 7
    """Repetitions of a read that failed, with back-off."""
    stall_s: float = 15.0
    """Seconds without a byte from the store after which a read has failed."""

    def __post_init__(self) -> None:
        for name, least in {
            "cache_bytes": 0,
            "threads": 1,
            "prefetch": 0,
            "decoded_bytes": 0,
            "max_bad_samples": 0,
            "retries": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; choose at least {least}")
        if not self.stall_s > 0:
            raise ValueError(f"stall_s is {self.stall_s}; choose seconds above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Images wanted for one minibatch by one worker."""

    level_resolution: int
    """Width in pixels."""
    positions: NDArray[np.int64]
    """Places in the order of the run."""
    label_samples: NDArray[np.int64] | None = None
    """Samples whose labels are wanted besides, whatever is shown; their images are not read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The answer to a request, in its order."""

    images: Tensor
    """uint8 [n, c, h, w]."""
    labels: Tensor | None
    """float32 [n, label_size] of the images; classes are one-hot. None if there are none."""
    extra_labels: Tensor | None
    """float32 [m, label_size] of the `label_samples`, in their order."""
    sample_ids: NDArray[np.int64]
    """What is shown; of a damaged image, the one in its place."""
    wait_s: float
    """Seconds the caller waited for it."""


class Order(Protocol):
    """What the loader needs of `pipeline.order.SampleOrder`."""

    def samples_at(self, positions: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Sample numbers at these positions."""
        ...


class Loader:
    """The images of one data set (see the head of this file)."""

    def __init__(
        self,
        manifest_url: str,
        manifest: Manifest,
        order: Order,
        *,
        config: LoaderConfig | None = None,
    ):
        self.base = folder_url(manifest_url)
        self.manifest = manifest
        self.order = order
        self.config = config or LoaderConfig()
        self.bad_samples: dict[tuple[int, int], str] = {}
        """What was wrong, by level and sample number; at most `max_bad_samples`."""
        if manifest.channels not in _MODES:
            raise ValueError(
                f"{manifest_url} has {manifest.channels} channels; the loader reads 1, 3 or 4"
            )

    def stream(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        """Answer requests in their order, `prefetch` of them ahead; close it to stop.

        `requests` is advanced ahead of the batches, so it must not depend on them.

        Raises:
            DigestError: An image or a shard is not the one that was written.
            SampleError: An image cannot be decoded.
            StorageError: The store failed for longer than the retries last.
        """
        work = _Work(self)
        pending: deque[_Pending] = deque()
        pool = ThreadPoolExecutor(self.config.threads, thread_name_prefix="loader")
        waiting = iter(requests)
        try:
            while True:
                while len(pending) <= self.config.prefetch:
                    request = next(waiting, None)
                    if request is None:
                        break
                    pending.append(self._submit(work, pool, request))
                if not pending:
                    return
                start_s = time.perf_counter()
                batch = pending[0].result()
                pending.popleft()
                yield batch.as_batch(wait_s=time.perf_counter() - start_s)
        finally:
            # Not waiting for ever: a read may hang in a store that does not answer.
            work.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            # Cancelled ones are never reported as done: nobody takes them from the queue.
            futures = [future for batch in pending for future in batch.futures]
            running = [future for future in futures if not future.cancelled()]
            if wait(running, timeout=_CLOSE_S).not_done:
                logger.warning("a read of %s still hangs; its thread is left alone", self.base)

    def _submit(self, work: "_Work", pool: ThreadPoolExecutor, request: Request) -> "_Pending":
        samples = self.order.samples_at(np.asarray(request.positions, np.int64))
        level = work.level(request.level_resolution)
        labels = self.manifest.labels
        pending = _Pending(
            level=level,
            sample_ids=samples.copy(),
            images=np.empty((len(samples), *level.shape), np.uint8),
            labels=None if labels is None else np.zeros((len(samples), labels.size), np.float32),
        )
        if labels is not None and request.label_samples is not None:
            wanted = np.asarray(request.label_samples, np.int64)
            pending.extra_labels = np.zeros((len(wanted), labels.size), np.float32)
            pending.futures.append(pool.submit(work.set_labels, wanted, pending.extra_labels))
        # Neighbours in a shard go to the same thread, which reads them together.
        slots = np.argsort(samples, kind="stable")
        for share in np.array_split(slots, min(self.config.threads, max(len(slots), 1))):
            pending.futures.append(pool.submit(work.fill, pending, share))
        return pending


@dataclass(kw_only=True, eq=False)
class _Pending:
    """A batch in the making: each future fills some slots of the arrays."""

    level: "_OpenLevel"
    sample_ids: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.float32] | None
    extra_labels: NDArray[np.float32] | None = None
    futures: list[Future[None]] = field(default_factory=list)

    def result(self) -> "_Pending":
        for future in self.futures:
            future.result()
        return self

    def as_batch(self, *, wait_s: float) -> Batch:
        return Batch(
            images=torch.from_numpy(self.images),
            labels=_tensor(self.labels),
            extra_labels=_tensor(self.extra_labels),
            sample_ids=self.sample_ids,
            wait_s=wait_s,
        )


class _OpenLevel:
    """One level, with its decoded images if it is small."""

    def __init__(self, level: Level, manifest: Manifest, config: LoaderConfig):
        self.level = level
        self.shape = (manifest.channels, *level.size[::-1])
        self.decoded: NDArray[np.uint8] | None = None
        decoded_bytes = manifest.samples * int(np.prod(self.shape))
        if level.resolution <= config.held_resolution and decoded_bytes <= config.decoded_bytes:
            # Memory is taken as it is filled.
            self.decoded = np.empty((manifest.samples, *self.shape), np.uint8)
            self.known = np.zeros(manifest.samples, np.bool_)


class _Work:
    """What the threads of one stream do and share."""

    def __init__(self, loader: Loader):
        config = loader.config
        retry = storage.Retry(attempts=config.retries + 1, stall_s=config.stall_s)
        self.base = loader.base
        self.manifest = loader.manifest
        self.config = config
        self.bad = loader.bad_samples
        self.stop = threading.Event()
        self.reader = ShardReader(
            loader.base,
            loader.manifest,
            DiskCache(config.cache_dir, max_bytes=config.cache_bytes, retry=retry),
            retry=retry,
            held_resolution=config.held_resolution,
            strict=config.max_bad_samples == 0,
        )
        self._levels: OrderedDict[int, _OpenLevel] = OrderedDict()
        self._lock = threading.Lock()

    def level(self, resolution: int) -> _OpenLevel:
        """The level and what it holds; only the last two asked for are kept."""
        if resolution not in self._levels:
            level = self.manifest.level(resolution)
            self._levels[resolution] = _OpenLevel(level, self.manifest, self.config)
            if len(self._levels) > 2:
                self._levels.popitem(last=False)
        self._levels.move_to_end(resolution)
        return self._levels[resolution]

    def fill(self, batch: _Pending, slots: NDArray[np.int64]) -> None:
        """Read and decode the images of these slots, which are sorted by sample."""
        level, ids = batch.level, batch.sample_ids
        missing = slots
        if level.decoded is not None:
            known = level.known[ids[slots]]
            batch.images[slots[known]] = level.decoded[ids[slots[known]]]
            missing = slots[~known]
        wanted = ids[missing].tolist()
        for slot, payload in zip(missing, self.reader.payloads(level.level, wanted), strict=True):
            if self.stop.is_set():
                raise CancelledError
            ids[slot] = self._show(level, int(ids[slot]), payload, batch.images[slot])
        if batch.labels is not None:
            for slot in slots:
                self._set_label(int(ids[slot]), batch.labels[slot])

    def set_labels(self, samples: NDArray[np.int64], labels: NDArray[np.float32]) -> None:
        """Fill the rows of `labels`, which are zero, with those of these samples."""
        # Neighbours together: an index may be large.
        for row in np.argsort(samples, kind="stable"):
            if self.stop.is_set():
                raise CancelledError
            self._set_label(int(samples[row]), labels[row])

    def _show(
        self, level: _OpenLevel, sample: int, payload: bytes | None, out: NDArray[np.uint8]
    ) -> int:
        """Decode this sample into `out`, or the next one that is intact; its number."""
        for _ in range(self.manifest.samples):
            if (level.level.resolution, sample) not in self.bad:
                try:
                    self._decode(level, sample, payload, out)
                except (DigestError, SampleError) as err:
                    self._note_bad(level, sample, err)
                else:
                    if level.decoded is not None:
                        level.decoded[sample] = out
                        level.known[sample] = True
                    return sample
            sample = (sample + 1) % self.manifest.samples
            payload = next(self.reader.payloads(level.level, [sample]))
        raise DigestError(f"no image of {self.base} is intact at {level.level.resolution} px")

    def _decode(
        self, level: _OpenLevel, sample: int, payload: bytes | None, out: NDArray[np.uint8]
    ) -> None:
        if payload is None:
            payload = self.reader.read_again(level.level, sample)
        try:
            decode(payload, level.level.encoding, out)
        except _BROKEN_IMAGE as err:
            shard, _ = self.manifest.locate(sample)
            url = shard_url(self.base, level.level.resolution, shard)
            raise SampleError(
                f"sample {sample_key(sample)} in {url} cannot be decoded: {err}; "
                f"make the data set again or allow for it with max_bad_samples"
            ) from err

    def _note_bad(self, level: _OpenLevel, sample: int, err: ValueError) -> None:
        with self._lock:
            if (level.level.resolution, sample) in self.bad:
                return  # another thread came upon it at the same time
            if len(self.bad) >= self.config.max_bad_samples:
                raise err
            self.bad[level.level.resolution, sample] = str(err)
            logger.warning(
                "%s; shown instead: the next intact sample (%d of max_bad_samples=%d)",
                err,
                len(self.bad),
                self.config.max_bad_samples,
            )

    def _set_label(self, sample: int, row: NDArray[np.float32]) -> None:
        label = self.reader.label(sample)
        if label.ndim == 0:
            row[int(label)] = 1  # one-hot
        else:
            row[:] = label


def _tensor(array: NDArray[np.float32] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def decode(payload: bytes, encoding: str, out: NDArray[np.uint8]) -> None:
    """Decode the bytes of one sample into `out` [c, h, w].

    Raises:
        ValueError: The image has another shape.
    """
    shape = (*out.shape[1:], len(out))
    if encoding == "npy":
        pixels = np.load(io.BytesIO(payload), allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ValueError(f"it holds {pixels.dtype} {pixels.shape} instead of uint8 {shape}")
        out[:] = pixels.transpose(2, 0, 1)
        return
    mode = _MODES[len(out)]
    # Told the format, Pillow does not ask its forty readers one by one.
    with Image.open(io.BytesIO(payload), formats=_FORMATS[encoding]) as opened:
        if opened.size != shape[1::-1]:
            raise ValueError(f"its size is {opened.size} instead of {shape[1::-1]}")
        opened.load()
        image = opened if opened.mode == mode else opened.convert(mode)
        if image.width < _BY_PLANE_PX:
            out[:] = np.frombuffer(image.tobytes(), np.uint8).reshape(shape).transpose(2, 0, 1)
        else:
            # Picking every third byte from an array takes NumPy longer than Pillow a plane.
            for plane, band in zip(out, mode, strict=True):
                content = image.tobytes("raw", band)
                plane[:] = np.frombuffer(content, np.uint8).reshape(plane.shape)
