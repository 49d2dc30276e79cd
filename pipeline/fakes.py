"""The generator of an evaluation's task: its latents, styles and images by global index.

    source = FakeSource(task)
    for indices, labels in source.batches():
        images = source.images(source.styles(indices, labels), indices)

Legend: n images, c h w, l layers, z w latent sizes.
"""

import functools
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from data_prep.manifest import DigestError
from pipeline.loader import Batch, Request
from pipeline.tasks import (
    FakesTask,
    NotFiniteError,
    UnfitError,
    choose_device,
    open_data,
    open_subject,
)
from stylegan.draws import Draws, Purpose
from stylegan.networks.interface import Generator
from stylegan.resample import blocky_up

_GENERATED_TOGETHER = 8
"""Images per call of the generator, whose noise inputs take memory."""


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
        loader = open_data(task, count=1)
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


# One is kept: the next task of this process needs it again.
@functools.lru_cache(maxsize=1)
def _generator(url: str, digest: str, device: torch.device) -> tuple[Generator, float]:
    subject = open_subject(url)
    if subject.digest != digest:
        raise DigestError(
            f"{url} has changed during the evaluation: its digest is {subject.digest}, it was "
            f"{digest}; evaluate it again"
        )
    return subject.bundle.generator().to(device), subject.bundle.lod
