"""Features of real and of generated images: what the tasks of an evaluation compute.

    batches = plan_batches(300, batch=32)
    task = FakesTask(url=checkpoint_url, digest=…, batches=batches[:5], batch=32, …)
    features = fake_features(task)  # float32 [160, 2048]

Images have global indices 0, 1, 2 …; a batch is a fixed range of them that goes whole to one task,
and the last one is padded. A feature is therefore a function of its index and of the batch size
alone, whoever computes it beside which others. Tasks can be pickled and functions sent anywhere.

Legend: n images, c h w.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep import storage
from data_prep.manifest import DigestError, Manifest
from pipeline import bundle as bundles
from pipeline import weights
from pipeline.bundle import Bundle
from pipeline.loader import Batch, Loader, LoaderConfig, Request
from stylegan.draws import Draws, Purpose
from stylegan.metrics.inception import InceptionV3
from stylegan.networks.interface import Generator
from stylegan.resample import blocky_up
from stylegan.sample import to_uint8

Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Features = NDArray[np.float32]

_GENERATED_TOGETHER = 8
"""Images per call of the generator, whose noise inputs take memory."""


class NotFiniteError(ValueError):
    """The generator's images hold NaN or infinity."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature network and how it is run."""

    network: str
    """Name in `pipeline.weights`."""
    precision: Precision
    """Of weights and activations."""
    weights: str
    """Folder or URL to look for its file first; empty for the usual places alone."""
    device: Device
    threads: int
    """Threads of torch, which decide last bits on a CPU."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    batches: tuple[range, ...]
    """Global image indices of each batch, from `plan_batches`."""
    batch: int
    """Images in a batch."""
    extractor: Extractor
    data_url: str
    data_digest: str
    resolution: int
    """Of the images, in pixels."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)


@dataclass(frozen=True, kw_only=True)
class RealsTask(_Task):
    """Batches of real images, which are spread evenly over the data set."""

    count: int
    """Real images of the whole evaluation."""
    mirror_seed: int | None
    """Seed of the mirror flips; None for none."""


@dataclass(frozen=True, kw_only=True)
class FakesTask(_Task):
    """Batches of generated images."""

    url: str
    """Of a committed checkpoint, or of a folder with a pulled model."""
    digest: str
    """What `Subject.digest` must be."""
    seed: int
    psi: float
    cutoff: int | None
    """Layers that are truncated, from the coarsest; None for all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The generator that is measured."""

    bundle: Bundle
    digest: str
    """Of the checkpoint, or of a pulled model; a fingerprint of its weights."""


def plan_batches(count: int, batch: int) -> list[range]:
    """Global indices of `count` images, cut into batches of which the last may be shorter."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]


def shares(batches: Sequence[range], tasks: int) -> list[tuple[range, ...]]:
    """Consecutive batches for each task, none empty, as equal as they can be."""
    tasks = min(tasks, len(batches))
    edges = [len(batches) * number // tasks for number in range(tasks + 1)]
    return [tuple(batches[a:b]) for a, b in itertools.pairwise(edges)]


def open_subject(url: str) -> Subject:
    """Read and verify the generator of a committed checkpoint or of a pulled model's folder.

    Raises:
        DigestError: It is damaged.
        MissingError: Neither of the two is there.
    """
    if storage.exists(storage.join(url, bundles.DIGESTS)):
        folder = storage.local_path(url)
        digest = storage.sha256(str(Path(folder, bundles.DIGESTS)))
        return Subject(bundle=bundles.load(folder), digest=digest)
    bundle = bundles.from_checkpoint(url)
    return Subject(bundle=bundle, digest=str(bundle.lineage["checkpoint_digest"]))


def real_features(task: RealsTask) -> Features:
    """Features of the task's real images, in their order.

    Raises:
        MissingWeightsError: The feature network is not there.
        DigestError: The data are not those of `data_digest`, or damaged.
    """
    return _features(task, real_images(task))


def fake_features(task: FakesTask) -> Features:
    """Features of the task's generated images, in their order.

    Raises:
        MissingWeightsError: The feature network is not there.
        DigestError: The checkpoint is not the one of `digest`, or damaged.
        NotFiniteError: An image is not finite.
    """
    return _features(task, fake_images(task))


def real_images(task: RealsTask) -> Iterator[Tensor]:
    """Each batch as uint8 [n, c, h, w]; the last one filled up with its last image."""
    draws = None if task.mirror_seed is None else Draws(seed=task.mirror_seed)
    positions = (_padded(batch, task.batch) for batch in task.batches)
    requests = (Request(level_resolution=task.resolution, positions=p) for p in positions)
    with closing(_loader(task, task.count).stream(requests)) as stream:
        for batch in stream:
            images = batch.images
            if draws is not None:
                mirror = draws.mirror(torch.from_numpy(batch.sample_ids))
                images = torch.where(mirror[:, None, None, None], images.flip(3), images)
            yield images


def fake_images(task: FakesTask) -> Iterator[Tensor]:
    """Each batch as uint8 [n, c, h, w] at the full resolution; the last one filled up with more.

    A generator that still grows gives smaller images, which are enlarged by nearest neighbour.
    """
    device = choose_device(task.extractor.device)
    Gs, lod = _generator(task.url, task.digest, device)
    for indices, labels in _labelled(Gs, task):
        parts = []
        for part in torch.arange(task.batch).split(_GENERATED_TOGETHER):
            part_labels = None if labels is None else labels[part].to(device)
            parts.append(_generate(Gs, task, indices[part].to(device), part_labels, lod=lod))
        yield torch.cat(parts)


def choose_device(device: Device, option: str = "evaluation.device") -> torch.device:
    """The device of this process; `option` is what asked for it."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{option} is cuda, but torch sees no GPU here; choose cpu or auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Fixed threads, and convolutions on a GPU in full float32 and always by the same kernel."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


# One each is kept: the next task of this process, or the next checkpoint, needs them again.
@functools.lru_cache(maxsize=1)
def _network(extractor: Extractor) -> InceptionV3:
    folders = [*filter(None, [extractor.weights]), *weights.search_folders()]
    tensors = weights.load(extractor.network, folders=folders)
    network = InceptionV3(tensors, dtype=getattr(torch, extractor.precision))
    return network.to(choose_device(extractor.device))


@functools.lru_cache(maxsize=1)
def _generator(url: str, digest: str, device: torch.device) -> tuple[Generator, float]:
    subject = open_subject(url)
    if subject.digest != digest:
        raise DigestError(
            f"{url} has changed during the evaluation: its digest is {subject.digest}, it was "
            f"{digest}; evaluate it again"
        )
    return subject.bundle.generator().to(device), subject.bundle.lod


def _labelled(Gs: Generator, task: FakesTask) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Indices of each whole batch; labels of real images, drawn for each, if G takes labels."""
    every = [torch.arange(batch.start, batch.start + task.batch) for batch in task.batches]
    if not Gs.config.label_size:
        yield from ((indices, None) for indices in every)
        return
    loader = _loader(task, count=1)
    draws = Draws(seed=task.seed)
    nothing = np.empty(0, np.int64)

    def drawn(indices: Tensor) -> Request:
        bits = draws.bits(Purpose.EVAL_LABEL, indices=indices, count=1)[:, 0]
        samples = (bits * loader.manifest.samples >> 32).numpy()
        return Request(level_resolution=task.resolution, positions=nothing, label_samples=samples)

    with closing(loader.stream(map(drawn, every))) as stream:
        for indices, batch in zip(every, stream, strict=True):
            yield indices, _labels(batch, Gs.config.label_size, task.data_url)


def _labels(batch: Batch, size: int, url: str) -> Tensor:
    labels = batch.extra_labels
    if labels is None or labels.shape[1] != size:
        found = 0 if labels is None else labels.shape[1]
        raise ValueError(
            f"the generator takes labels of {size} numbers, but those of {url} have {found}; "
            f"evaluate it with the data it was trained on"
        )
    return labels


@torch.inference_mode()
def _generate(
    Gs: Generator, task: FakesTask, indices: Tensor, labels: Tensor | None, *, lod: float
) -> Tensor:
    """uint8 images of these indices at the full resolution."""
    draws = Draws(seed=task.seed)
    z = draws.normal(Purpose.EVAL_Z, indices=indices, count=Gs.config.z_size)
    ws = Gs.broadcast(Gs.mapping(z, labels))
    cutoff = ws.shape[1] if task.cutoff is None else task.cutoff
    ws = Gs.truncate(ws, psi=task.psi, cutoff=cutoff)
    sides = Gs.noise_sides(lod)
    noise = draws.noise(Purpose.EVAL_NOISE, indices=indices, sides=sides)
    images = Gs.synthesis(ws, noise=noise, lod=lod)
    if not images.isfinite().all():
        raise NotFiniteError(
            f"images {int(indices[0])} to {int(indices[-1])} of {task.url} are not finite; its "
            f"training has diverged, evaluate an earlier checkpoint"
        )
    return to_uint8(blocky_up(images, 2 ** int(lod)))


class _EvenlySpaced:
    """Position i of `count` is sample i * samples // count: all kinds of a sorted data set."""

    def __init__(self, samples: int, count: int):
        self.samples, self.count = samples, count

    def samples_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions * self.samples // self.count


def _loader(task: _Task, count: int) -> Loader:
    manifest = Manifest.load(task.data_url)
    if manifest.digest != task.data_digest:
        raise DigestError(
            f"{task.data_url} has changed during the evaluation: its digest is {manifest.digest}, "
            f"it was {task.data_digest}; evaluate again"
        )
    order = _EvenlySpaced(manifest.samples, count)
    return Loader(task.data_url, manifest, order, config=task.loader)


def _padded(batch: range, size: int) -> NDArray[np.int64]:
    """The indices of a batch, the last one repeated to fill it."""
    return np.minimum(np.arange(batch.start, batch.start + size), batch.stop - 1)


def _features(task: RealsTask | FakesTask, batches: Iterator[Tensor]) -> Features:
    """Features of batches of images, without those that only fill up the last one."""
    with reproducible(task.extractor.threads):
        network = _network(task.extractor)
        device = choose_device(task.extractor.device)
        parts = [
            network(images.to(device))[: len(batch)].cpu().numpy()
            for images, batch in zip(batches, task.batches, strict=True)
        ]
    features: Features = np.concatenate(parts)
    return features
