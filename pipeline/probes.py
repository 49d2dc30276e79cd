"""What an evaluation asks of a generator beside sets of images: paths, pairs, attributes.

Tasks are those of `pipeline.tasks`: indices count pairs instead of images where there are pairs,
of which the latents 2 i and 2 i + 1 belong to pair i.

Legend: n pairs or images, c h w.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import classifiers
from pipeline.fakes import FakeSource
from pipeline.features import tensors
from pipeline.tasks import (
    Extractor,
    FakesTask,
    Features,
    NotFiniteError,
    Outputs,
    UnfitError,
    choose_device,
    reproducible,
)
from stylegan.draws import Purpose
from stylegan.metrics.lpips import LPIPS, Net
from stylegan.metrics.ms_ssim import ms_ssim
from stylegan.metrics.ppl import PathConfig, Space, path_lengths
from stylegan.sample import to_uint8


@dataclass(frozen=True, kw_only=True)
class PathsTask(FakesTask):
    """Steps on paths between pairs of latents."""

    space: Space
    full: bool
    """Anywhere on the path; else at its begin."""
    crop: bool
    """Look at the middle, where faces are."""


def path_steps(task: PathsTask) -> Outputs:
    """Lengths of the task's steps, [n, 1]; truncation plays no part.

    Raises:
        MissingWeightsError: The perceptual distance is not there.
        DigestError: The checkpoint is damaged.
        NotFiniteError: An image is not finite.
        UnfitError: Images are too small.
    """
    source = FakeSource(task)
    config = PathConfig(space=task.space, crop=task.crop)
    distance = _distance(task.extractor)

    def lengths(indices: Tensor, labels: Tensor | None) -> Tensor:
        z = source.latents(_both(indices))[:, 0]
        uniform = source.draws.uniform(Purpose.EVAL_PATH, indices=indices, count=1)[:, 0]
        return path_lengths(
            z,
            uniform if task.full else torch.zeros_like(uniform),
            mapping=lambda z, labels: source.Gs.broadcast(source.Gs.mapping(z, labels)),
            synthesis=lambda ws: source.images(ws, indices, each=2),
            distance=distance,
            config=config,
            labels=labels,
        )[:, None]

    return (_rows(task, source, lengths, images=2),)


def pair_similarities(task: FakesTask) -> Outputs:
    """MS-SSIM of the task's pairs of images, [n, 1]."""
    source = FakeSource(task)

    def similarities(indices: Tensor, labels: Tensor | None) -> Tensor:
        both = _both(indices)
        labels = None if labels is None else labels.repeat_interleave(2, dim=0)
        images = to_uint8(source.images(source.styles(both, labels), both))
        return ms_ssim(images[0::2], images[1::2]).float()[:, None]

    return (_rows(task, source, similarities, images=2),)


def attributes(task: FakesTask) -> Outputs:
    """z, w and the classifiers' logits of the task's images; truncation plays no part.

    Raises:
        MissingWeightsError: There are no classifiers.
        UnfitError: They look at images of another size.
    """
    source = FakeSource(task)
    found = classifiers.find(task.extractor.weights)
    if found.sha256 != task.extractor.sha256:
        raise ValueError(f"the classifiers in {found.url} have changed; evaluate again")
    device = str(source.device)

    def latents_and_answers(indices: Tensor, labels: Tensor | None) -> Tensor:
        z = source.latents(indices)[:, 0]
        w = source.Gs.mapping(z, labels)
        images = source.images(source.Gs.broadcast(w), indices)
        answers = [classifiers.answers(images, url, device) for url in found.urls]
        return torch.cat([z, w, torch.stack(answers, dim=1)], dim=1)

    rows = _rows(task, source, latents_and_answers)
    z_size = source.Gs.config.z_size
    z, w, logits = np.split(rows, [z_size, rows.shape[1] - len(found.urls)], axis=1)
    return z, w, logits


def _both(indices: Tensor) -> Tensor:
    """Indices of the two latents of each pair, interleaved."""
    return torch.stack([2 * indices, 2 * indices + 1], dim=1).flatten()


@functools.lru_cache(maxsize=1)
def _distance(extractor: Extractor) -> LPIPS:
    net: Net = "vgg16" if extractor.network == "lpips-vgg16" else "alexnet"
    return LPIPS(tensors(extractor), net=net).to(choose_device(extractor.device))


def _rows(
    task: FakesTask,
    source: FakeSource,
    function: Callable[[Tensor, Tensor | None], Tensor],
    *,
    images: int = 1,
) -> Features:
    """Rows of all batches, without those that only fill up the last one."""
    rows = []
    with reproducible(task.extractor.threads), torch.inference_mode():
        for (indices, labels), batch in zip(source.batches(), task.batches, strict=True):
            try:
                parts = [function(*part) for part in source.split(indices, labels, images=images)]
            except NotFiniteError:
                raise
            except ValueError as err:
                raise UnfitError(str(err)) from err
            rows.append(torch.cat(parts)[: len(batch)].cpu().numpy())
    found: Features = np.concatenate(rows)
    return found
