"""Features of real and of generated images: what the tasks of an evaluation compute of images.

    (features,) = fake_features(task)  # float32 [160, 2048] of each of the task's networks

Legend: n images, c h w.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import weights
from pipeline.fakes import FakeSource
from pipeline.loader import Request
from pipeline.metric import PATCHES
from pipeline.tasks import (
    Extractor,
    FakesTask,
    Features,
    Outputs,
    RealsTask,
    choose_device,
    open_data,
    reproducible,
)
from stylegan.draws import Draws
from stylegan.metrics import swd
from stylegan.metrics.inception import InceptionV3
from stylegan.metrics.vgg16 import VGG16
from stylegan.sample import to_uint8

Network = Callable[[Tensor, int], Tensor]
"""uint8 images [n, c, h, w] of a batch, and the global index of its first, to rows [n, d]."""

PATCHES_SEED = 0
"""Of the places of patches."""


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
    with closing(open_data(task, task.count).stream(requests)) as stream:
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


def tensors(extractor: Extractor) -> dict[str, Tensor]:
    """Weights of the extractor's network."""
    folders = [*filter(None, [extractor.weights]), *weights.search_folders()]
    return weights.load(extractor.network, sha256=extractor.sha256, folders=folders)


# Kept: the next task of this process, or the next checkpoint, needs them again.
@functools.lru_cache(maxsize=2)
def _network(extractor: Extractor) -> Network:
    if extractor.network == PATCHES:
        return _patches
    dtype = getattr(torch, extractor.precision)
    network: VGG16 | InceptionV3
    if extractor.network == "vgg16":
        network = VGG16(tensors(extractor), dtype=dtype)
    else:
        network = InceptionV3(tensors(extractor), dtype=dtype, convention=extractor.convention)
    network.to(device := choose_device(extractor.device))
    return lambda images, _: network(images.to(device))


def _patches(images: Tensor, start: int) -> Tensor:
    """Patches of all levels of each image's pyramid, one level after the other."""
    rng = np.random.RandomState([PATCHES_SEED, start])
    levels = swd.patches(images, rng, levels=swd.num_levels(images.shape[2]))
    return torch.cat([level.reshape(len(images), -1) for level in levels], dim=1)


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
