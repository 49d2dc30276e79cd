"""What a run's networks show when one looks inside: computed anew from its checkpoints.

Latents are those of the seeds 0, 1, 2 …, untruncated; real images are spread evenly over the data
set. A GPU is used where there is one.

Legend: n images, c h w, w latent size, k components.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_prep.manifest import Manifest
from data_prep.storage import StorageError
from pipeline.checkpoint import Checkpoints
from pipeline.loader import Loader, Request
from pipeline.report.records import Run
from pipeline.tasks import EvenlySpaced, choose_device, reproducible
from stylegan import diagnosis, sample
from stylegan.diagnosis import Components
from stylegan.networks import family
from stylegan.networks.interface import Discriminator, Generator
from stylegan.reals import prepare_reals
from stylegan.state import load_network

COMPONENTS, STEPS, REACH = 4, 7, 3.0
"""Directions shown, images along each, and how far they go in standard deviations."""
DROPLET_SEEDS = range(4)
_LATENTS = 4096
_BATCH = 32
_MOST_CHECKPOINTS = 8
_PIXELS = 256 * 32 * 32
"""Of all images together that are looked at; large ones are fewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inside:
    """What was found."""

    images: Tensor
    """Of Gs for the first seeds, float [n c h w]."""
    reals: Tensor | None
    """As many real images; None where the data set is out of reach."""
    logits: Mapping[str, Tensor]
    """Of D, [n]: `real`, and `fake` of G, which D was trained against."""
    octaves_real: Mapping[int, float]
    """See `stylegan.diagnosis.octaves`."""
    contributions: Sequence[tuple[int, Mapping[int, float]]]
    """nimg, and by resolution what its ToRGB adds, of each checkpoint that was kept."""
    norms: Mapping[int, Tensor]
    """[n h w] by resolution, of `DROPLET_SEEDS`."""
    peaks: Mapping[int, float]
    """By resolution the highest norm of all images, in medians of its map."""
    w: Tensor | None
    """[n k]: w of `images` along the principal components; None without a mapping network."""
    components: Components | None
    walks: Sequence[Tensor]
    """Images [STEPS c h w] along each of the first components."""
    missing: Sequence[str]
    """What could not be done, one sentence each."""


def look(run: Run) -> Inside:
    """Compute all of it, with as many threads as an evaluation.

    Raises:
        DigestError: A checkpoint is damaged.
        StorageError: It cannot be read.
    """
    with torch.no_grad(), reproducible(run.config.evaluation.threads):
        return _look(run)


def _look(run: Run) -> Inside:
    tensors, _ = Checkpoints.load(run.latest, {"Gs", "G", "D"})
    Gs, G = _generator(run, tensors, "Gs"), _generator(run, tensors, "G")
    count = max(_PIXELS // run.resolution**2, 16)
    count = min(-(-count // _BATCH) * _BATCH, 256)
    missing = list[str]()
    reals = labels = None
    try:
        reals, labels = _reals(run, count)
    except (StorageError, ValueError) as err:
        missing.append(f"Real images are missing: {err}.")
        if size := Gs.config.label_size:
            labels = sample.one_hot(torch.arange(count) % size, size)
    styles = sample.styles(Gs, range(count), labels=_on(labels, Gs))
    images = _images(Gs, styles, run.lod)
    components = w = None
    walks = []
    if any(True for _ in Gs.mapping.parameters()):
        components = _components(Gs)
        w = components.project(styles[:, 0].cpu())
        walks = [_walk(Gs, components, index, run.lod) for index in range(COMPONENTS)]
    norms = _norms(Gs, styles, run.lod)
    return Inside(
        images=images,
        reals=reals,
        logits={} if reals is None else _logits(run, tensors, G, reals, labels),
        octaves_real={} if reals is None else diagnosis.octaves(reals),
        contributions=_contributions(run),
        norms={side: norm[: len(DROPLET_SEEDS)] for side, norm in norms.items()},
        peaks={side: float(norm.amax()) for side, norm in norms.items()},
        w=w,
        components=components,
        walks=walks,
        missing=missing,
    )


def _generator(run: Run, tensors: Mapping[str, Tensor], name: str) -> Generator:
    own = _group(tensors, name)
    return sample.build(run.state["network"], own).to(choose_device(run.config.evaluation.device))


def _group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def _on(labels: Tensor | None, network: torch.nn.Module) -> Tensor | None:
    return None if labels is None else labels.to(next(network.parameters()).device)


def _images(Gs: Generator, ws: Tensor, lod: float) -> Tensor:
    parts = [Gs.synthesis(part, lod=lod).float().cpu() for part in ws.split(8)]
    return torch.cat(parts)


def _reals(run: Run, count: int) -> tuple[Tensor, Tensor | None]:
    """So many real images as D sees them, and their labels."""
    config = run.config
    manifest = Manifest.load(config.data.url)
    if manifest.digest != run.state["data_digest"]:
        raise ValueError(
            f"{config.data.url} has changed since the training: its digest is {manifest.digest}, "
            f"it was {run.state['data_digest']}"
        )
    count = min(count, manifest.samples // _BATCH * _BATCH or manifest.samples)
    loader = Loader(
        config.data.url, manifest, EvenlySpaced(manifest.samples, count), config=config.loader
    )
    request = Request(level_resolution=run.resolution, positions=np.arange(count))
    with closing(loader.stream([request])) as stream:
        batch = next(stream)
    return prepare_reals(batch.images, None, run.lod), batch.labels


def _logits(
    run: Run, tensors: Mapping[str, Tensor], G: Generator, reals: Tensor, labels: Tensor | None
) -> dict[str, Tensor]:
    """D's logits of real images and of G's, which it was trained against."""
    D = family.discriminator(run.config.network.D)
    load_network(D, _group(tensors, "D"), "D")
    D.eval().to(next(G.parameters()).device)
    ws = sample.styles(G, range(len(reals)), labels=_on(labels, G))
    fakes = _images(G, ws, run.lod)
    return {
        "real": _scores(D, reals, labels, run.lod),
        "fake": _scores(D, fakes, labels, run.lod),
    }


def _scores(D: Discriminator, images: Tensor, labels: Tensor | None, lod: float) -> Tensor:
    device = next(D.parameters()).device
    parts = []
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        own = None if labels is None else labels[part].to(device)
        parts.append(D(images[part].to(device), own, lod)[:, 0].float().cpu())
    return torch.cat(parts)


def _components(Gs: Generator) -> Components:
    z = sample.latents(range(_LATENTS), Gs.config.z_size).to(Gs.w_avg.device)
    labels = None
    if size := Gs.config.label_size:
        labels = sample.one_hot(torch.arange(_LATENTS) % size, size).to(z.device)
    w = Gs.mapping(z, labels).float().cpu()
    return diagnosis.components(w, count=min(10, w.shape[1]))


def _walk(Gs: Generator, components: Components, index: int, lod: float) -> Tensor:
    """Images from `REACH` standard deviations below the mean w to as many above it."""
    steps = torch.linspace(-REACH, REACH, STEPS)[:, None] * components.stddevs[index]
    w = components.mean + steps * components.directions[index]
    return _images(Gs, Gs.broadcast(w.to(Gs.w_avg.device)), lod)


def _norms(Gs: Generator, ws: Tensor, lod: float) -> dict[int, Tensor]:
    parts = [diagnosis.feature_norms(Gs, part, lod=lod) for part in ws[:_BATCH].split(8)]
    return {side: torch.cat([part[side] for part in parts]).cpu() for side in parts[0]}


def _contributions(run: Run) -> list[tuple[int, Mapping[int, float]]]:
    """What each ToRGB adds, at checkpoints spread over those that were kept."""
    if getattr(run.config.network.G, "architecture", "") != "skip":
        return []
    step = -(-len(run.checkpoints) // _MOST_CHECKPOINTS)
    chosen = list(run.checkpoints)[::-1][::step][::-1]
    rows: list[tuple[int, Mapping[int, float]]] = []
    for checkpoint in chosen:
        tensors, _ = Checkpoints.load(checkpoint, {"Gs"})
        Gs = _generator(run, tensors, "Gs")
        labels = None
        if size := Gs.config.label_size:
            labels = sample.one_hot(torch.arange(8) % size, size)
        ws = sample.styles(Gs, range(8), labels=_on(labels, Gs))
        rows.append((checkpoint.nimg, diagnosis.rgb_contributions(Gs, ws)))
    return rows
