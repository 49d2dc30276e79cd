"""Tasks of an evaluation, and what all of them need: batches, devices, the generator, the data.

    batches = plan_batches(300, batch=32)
    task = FakesTask(url=checkpoint_url, digest=…, batches=batches[:5], batch=32, …)

Images have global indices 0, 1, 2 …; a batch is a fixed range of them that goes whole to one task,
and the last one is padded. What a task gives is therefore a function of index and batch size alone,
whoever computes it beside which others. Tasks can be pickled and sent anywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep import storage
from data_prep.manifest import DigestError, Manifest
from pipeline import bundle as bundles
from pipeline.bundle import Bundle
from pipeline.loader import Loader, LoaderConfig
from stylegan.metrics.inception_input import Convention

Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Features = NDArray[np.float32]
Outputs = tuple[Features, ...]
"""What a task gives: rows of the same images by several networks, or of several kinds."""


class NotFiniteError(ValueError):
    """The generator's images hold NaN or infinity."""


class UnfitError(ValueError):
    """What is asked of this generator cannot be measured, as mixing one without styles."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature network and how it is run."""

    network: str
    """Name in `pipeline.weights`, or `PATCHES`."""
    convention: Convention = "official"
    """How images are brought to Inception."""
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
class Task:
    """What tasks of all kinds have."""

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
class RealsTask(Task):
    """Batches of real images, which are spread evenly over the data set."""

    count: int
    """Real images of the whole evaluation."""
    mirror_seed: int | None
    """Seed of the mirror flips; None for none."""


@dataclass(frozen=True, kw_only=True)
class FakesTask(Task):
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


MOST_BATCHES = 32
"""In one task, so that what it gives does not grow with the number of images."""


def parts(batches: Sequence[range], most: int = 100) -> list[tuple[range, ...]]:
    """Consecutive batches for each task: as many tasks as `most`, or fewer with one batch each.

    More where tasks would have more than `MOST_BATCHES`. It depends on nothing else, so whoever
    goes on with an evaluation has the same tasks.
    """
    size = min(-(-len(batches) // most), MOST_BATCHES)
    return [tuple(batches[i : i + size]) for i in range(0, len(batches), size)]


def open_subject(url: str) -> Subject:
    """Read and verify the generator of a committed checkpoint or of a pulled model's folder.

    Raises:
        DigestError: It is damaged.
        MissingError: Neither of the two is there.
    """
    if storage.exists(storage.join(url, bundles.DIGESTS)):
        digest = storage.sha256(storage.join(url, bundles.DIGESTS))
        return Subject(bundle=bundles.load(url), digest=digest)
    bundle = bundles.from_checkpoint(url)
    return Subject(bundle=bundle, digest=str(bundle.lineage["checkpoint_digest"]))


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


class EvenlySpaced:
    """Position i of `count` is sample i * samples // count: all kinds of a sorted data set."""

    def __init__(self, samples: int, count: int):
        self.samples, self.count = samples, count

    def samples_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions * self.samples // self.count


def open_data(task: Task, count: int) -> Loader:
    """Loader of `count` images spread evenly over the data set.

    Raises:
        DigestError: The data are not those of the task.
    """
    manifest = Manifest.load(task.data_url)
    if manifest.digest != task.data_digest:
        raise DigestError(
            f"{task.data_url} has changed during the evaluation: its digest is {manifest.digest}, "
            f"it was {task.data_digest}; evaluate again"
        )
    order = EvenlySpaced(manifest.samples, count)
    return Loader(task.data_url, manifest, order, config=task.loader)
