"""Features of real and of generated images: what the tasks of an evaluation compute.

    batches = plan_batches(300, batch=32)
    task = FakesTask(url=checkpoint_url, digest=…, batches=batches[:5], batch=32, …)
    (features,) = fake_features(task)  # float32 [160, 2048] of each of the task's networks

Images have global indices 0, 1, 2 …; a batch is a fixed range of them that goes whole to one task,
and the last one is padded. A feature is therefore a function of its index and of the batch size
alone, whoever computes it beside which others. Tasks can be pickled and functions sent anywhere.

Legend: n images, c h w.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
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
from pipeline.metric import PATCHES
from stylegan.draws import Draws, Purpose
from stylegan.metrics import swd
from stylegan.metrics.inception import InceptionV3
from stylegan.metrics.vgg16 import VGG16
from stylegan.networks.interface import Generator
from stylegan.resample import blocky_up
from stylegan.sample import to_uint8

Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Features = NDArray[np.float32]
Outputs = tuple[Features, ...]
"""What a task gives: rows of the same images by several networks, or of several kinds."""
Network = Callable[[Tensor, int], Tensor]
"""uint8 images [n, c, h, w] of a batch, and the global index of its first, to rows [n, d]."""

PATCHES_SEED = 0
"""Of the places of patches."""
_GENERATED_TOGETHER = 8
"""Images per call of the generator, whose noise inputs take memory."""


class NotFiniteError(ValueError):
    """The generator's images hold NaN or infinity."""


class UnfitError(ValueError):
    """What is asked of this generator cannot be measured, as mixing one without styles."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature network and how it is run."""

    network: str
    """Name in `pipeline.weights`, or `PATCHES`."""
    sha256: str = ""
    """Digest of the source to take its weights from, if there are several."""
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
    extractors: tuple[Extractor, ...]
    """Each looks at the same images."""
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
    """Batches of generated images, or of what else a generator is asked for."""

    url: str
    """Of a committed checkpoint, or of a folder with a pulled model."""
    digest: str
    """What `Subject.digest` must be."""
    seed: int
    psi: float
    cutoff: int | None
    """Layers that are truncated, from the coarsest; None for all."""
    mixed: int = 1
    """Latents that each image is mixed of."""

    @property
    def extractor(self) -> Extractor:
        """The only one, or the first."""
        return self.extractors[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The generator that is measured."""

    bundle: Bundle
    digest: str
    """Of the checkpoint, or of a pulled model; a fingerprint of its weights."""


def plan_batches(count: int, batch: int) -> list[range]:
    """Global indices of `count` images, cut into batches of which the last may be shorter."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]


def parts(batches: Sequence[range], most: int = 100) -> list[tuple[range, ...]]:
    """Consecutive batches for each task: as many tasks as `most`, or fewer with one batch each.

    It depends on nothing else, so whoever goes on with an evaluation has the same tasks.
    """
    size = -(-len(batches) // most)
    return [tuple(batches[i : i + size]) for i in range(0, len(batches), size)]


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


def real_features(task: RealsTask) -> Outputs:
    """Features of the task's real images, in their order, by each of its networks.

    Raises:
        MissingWeightsError: The feature network is not there.
        DigestError: The data are not those of `data_digest`, or damaged.
    """
    return _features(task, real_images(task))


def fake_features(task: FakesTask) -> Outputs:
    """Features of the task's generated images, in their order, by each of its networks.

    Raises:
        MissingWeightsError: The feature network is not there.
        DigestError: The checkpoint is not the one of `digest`, or damaged.
        NotFiniteError: An image is not finite.
        UnfitError: Latents cannot be mixed.
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
    source = FakeSource(task)
    for indices, labels in source.batches():
        images = [
            source.images(source.styles(index, label), index)
            for index, label in source.split(indices, labels)
        ]
        yield to_uint8(torch.cat(images))


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


def tensors(extractor: Extractor) -> dict[str, Tensor]:
    """Weights of the extractor's network."""
    folders = [*filter(None, [extractor.weights]), *weights.search_folders()]
    return weights.load(extractor.network, sha256=extractor.sha256, folders=folders)


# Kept: the next task of this process, or the next checkpoint, needs them again.
@functools.lru_cache(maxsize=2)
def _network(extractor: Extractor) -> Network:
    if extractor.network == PATCHES:
        return _patches
    kind = VGG16 if extractor.network == "vgg16" else InceptionV3
    network = kind(tensors(extractor), dtype=getattr(torch, extractor.precision))
    network.to(device := choose_device(extractor.device))
    return lambda images, _: network(images.to(device))


def _patches(images: Tensor, start: int) -> Tensor:
    """Patches of all levels of each image's pyramid, one level after the other."""
    rng = np.random.RandomState([PATCHES_SEED, start])
    levels = swd.patches(images, rng, levels=swd.num_levels(images.shape[2]))
    return torch.cat([level.reshape(len(images), -1) for level in levels], dim=1)


@functools.lru_cache(maxsize=1)
def _generator(url: str, digest: str, device: torch.device) -> tuple[Generator, float]:
    subject = open_subject(url)
    if subject.digest != digest:
        raise DigestError(
            f"{url} has changed during the evaluation: its digest is {subject.digest}, it was "
            f"{digest}; evaluate it again"
        )
    return subject.bundle.generator().to(device), subject.bundle.lod


class FakeSource:
    """The generator of a task, asked by global index."""

    def __init__(self, task: FakesTask):
        """Read the generator; see `fake_features` for what is raised."""
        self.task = task
        self.device = choose_device(task.extractor.device)
        self.Gs, self.lod = _generator(task.url, task.digest, self.device)
        self.draws = Draws(seed=task.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Indices of each whole batch; labels of real images, drawn for each, if G takes labels."""
        task, label_size = self.task, self.Gs.config.label_size
        every = [torch.arange(batch.start, batch.start + task.batch) for batch in task.batches]
        if not label_size:
            yield from ((indices.to(self.device), None) for indices in every)
            return
        loader = _loader(task, count=1)
        nothing = np.empty(0, np.int64)

        def drawn(indices: Tensor) -> Request:
            bits = self.draws.bits(Purpose.EVAL_LABEL, indices=indices, count=1)[:, 0]
            samples = (bits * loader.manifest.samples >> 32).numpy()
            return Request(
                level_resolution=task.resolution, positions=nothing, label_samples=samples
            )

        with closing(loader.stream(map(drawn, every))) as stream:
            for indices, batch in zip(every, stream, strict=True):
                labels = _labels(batch, label_size, task.data_url)
                yield indices.to(self.device), labels.to(self.device)

    def split(
        self, indices: Tensor, labels: Tensor | None, *, images: int = 1
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Parts of a batch whose noise inputs fit into memory; `images`: so many of each index."""
        size = max(_GENERATED_TOGETHER // images, 1)
        for chunk in torch.arange(len(indices), device=indices.device).split(size):
            yield indices[chunk], None if labels is None else labels[chunk]

    @torch.inference_mode()
    def latents(self, indices: Tensor, count: int = 1) -> Tensor:
        """Z of these indices, or the first `count` of each, [n, count, z]."""
        z_size = self.Gs.config.z_size
        z = self.draws.normal(Purpose.EVAL_Z, indices=indices, count=count * z_size)
        latents: Tensor = z.reshape(len(indices), count, z_size)
        return latents

    @torch.inference_mode()
    def styles(self, indices: Tensor, labels: Tensor | None) -> Tensor:
        """One w per layer, [n, l, w], mixed and truncated as the task wants."""
        task, Gs = self.task, self.Gs
        z = self.latents(indices, task.mixed)
        each = [Gs.broadcast(Gs.mapping(z[:, i], labels)) for i in range(task.mixed)]
        ws = each[0]
        if task.mixed > 1:
            chosen = self._mixture(indices)[:, :, None, None].expand(-1, -1, 1, ws.shape[2])
            ws = torch.stack(each, dim=2).gather(2, chosen)[:, :, 0]
        cutoff = ws.shape[1] if task.cutoff is None else task.cutoff
        return Gs.truncate(ws, psi=task.psi, cutoff=cutoff)

    def _mixture(self, indices: Tensor) -> Tensor:
        """Which latent each layer takes, [n, l]: they change at distinct layers, keyed by image."""
        layers, changes = self.Gs.layers(self.lod), self.task.mixed - 1
        if layers <= changes:
            raise UnfitError(
                f"{self.task.mixed} latents cannot be mixed: the network has {layers} layers with "
                f"a w of their own; mix at most so many"
            )
        places = self.draws.uniform(Purpose.EVAL_MIX, indices=indices, count=layers - 1)
        changed = places.argsort(dim=1, stable=True).argsort(dim=1) < changes
        chosen = changed.cumsum(dim=1)
        # From layer 1 on; layers that the level does not reach take what the last one takes.
        rest = self.Gs.layers() - layers
        return torch.cat(
            [torch.zeros_like(chosen[:, :1]), chosen, chosen[:, -1:].expand(-1, rest)], dim=1
        )

    @torch.inference_mode()
    def images(self, ws: Tensor, indices: Tensor, *, each: int = 1) -> Tensor:
        """Images in about [-1, 1] at the full resolution; `each` in a row have the same noise.

        Raises:
            NotFiniteError: The generator gives NaN or infinity.
        """
        sides = self.Gs.noise_sides(self.lod)
        noise = self.draws.noise(Purpose.EVAL_NOISE, indices=indices, sides=sides)
        noise = [part.repeat_interleave(each, dim=0) for part in noise]
        images: Tensor = self.Gs.synthesis(ws, noise=noise, lod=self.lod)
        if not images.isfinite().all():
            raise NotFiniteError(
                f"images {int(indices[0])} to {int(indices[-1])} of {self.task.url} are not "
                f"finite; its training has diverged, evaluate an earlier checkpoint"
            )
        return blocky_up(images, 2 ** int(self.lod))


def _labels(batch: Batch, size: int, url: str) -> Tensor:
    labels = batch.extra_labels
    if labels is None or labels.shape[1] != size:
        found = 0 if labels is None else labels.shape[1]
        raise ValueError(
            f"the generator takes labels of {size} numbers, but those of {url} have {found}; "
            f"evaluate it with the data it was trained on"
        )
    return labels


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


def _features(task: RealsTask | FakesTask, batches: Iterator[Tensor]) -> Outputs:
    """Features of batches of images, without those that only fill up the last one."""
    rows: list[list[Features]] = [[] for _ in task.extractors]
    with reproducible(task.extractors[0].threads):
        networks = [_network(extractor) for extractor in task.extractors]
        for images, batch in zip(batches, task.batches, strict=True):
            for network, own in zip(networks, rows, strict=True):
                own.append(network(images, batch.start)[: len(batch)].cpu().numpy())
    return tuple(np.concatenate(own) for own in rows)
