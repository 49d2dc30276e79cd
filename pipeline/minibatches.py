"""The minibatches of a run: where each one lies, and the random numbers it takes."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import TrainConfig
from stylegan.draws import D_STEP, PATH_STEP, DiscriminatorDraws, Draws, GeneratorDraws, Purpose
from stylegan.networks.interface import Generator
from stylegan.schedule import Phase, phase_at


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """A place in the run."""

    nimg: int
    """Global index of its first image."""
    phase: Phase
    ends_iteration: bool
    """The schedule is looked at after it, and a commit may follow."""


def minibatches(config: TrainConfig, nimg: int) -> Iterator[Minibatch]:
    """All minibatches from `nimg` (the end of an outer iteration) to the end of the run."""
    schedule, total_nimg = config.schedule, total_nimg_of(config)
    while nimg < total_nimg:
        phase = phase_at(nimg, schedule, resolution=config.network.resolution)
        for repeat in range(1, schedule.minibatch_repeats + 1):
            last = repeat == schedule.minibatch_repeats
            yield Minibatch(nimg=nimg, phase=phase, ends_iteration=last)
            nimg += phase.batch


def total_nimg_of(config: TrainConfig) -> int:
    """Images after which the run ends."""
    return round(config.schedule.total_kimg * 1000)


class RunDraws:
    """The random numbers of one minibatch of a run (`stylegan.step.MinibatchDraws`)."""

    def __init__(
        self,
        config: TrainConfig,
        draws: Draws,
        G: Generator,
        minibatch: Minibatch,
        parts: list[NDArray[np.int64]],
    ) -> None:
        self._config = config
        self._draws = draws
        self._G = G
        self._nimg = minibatch.nimg
        self._lod = minibatch.phase.lod
        device = G.w_avg.device
        self._indices = [torch.from_numpy(minibatch.nimg + part).to(device) for part in parts]

    def fakes(self, step: int, part: int) -> GeneratorDraws:
        """For the fakes of D_STEP, G_STEP or PATH_STEP."""
        indices = self._of_path(part) if step == PATH_STEP else self._indices[part]
        return self._draws.generator(
            step,
            indices,
            first_index=self._nimg,
            z_size=self._G.config.z_size,
            noise_sides=self._G.noise_sides(self._lod),
            layers=self._G.layers(self._lod),
            mixing_prob=self._config.step.mixing_prob,
        )

    def judging(self, step: int, part: int) -> DiscriminatorDraws:
        """For D in D_STEP or G_STEP."""
        indices, count = self._indices[part], self._config.network.D.dropout_size
        dropout = functools.partial(self._draws.uniform, step=step, indices=indices, count=count)
        mixes = step == D_STEP and self._config.loss.wgan_gp_weight > 0
        return DiscriminatorDraws(
            gp_mix=self._draws.gp_mix(indices) if mixes else None,
            real_dropout=dropout(Purpose.REAL_DROPOUT) if count and step == D_STEP else None,
            fake_dropout=dropout(Purpose.FAKE_DROPOUT) if count else None,
        )

    def path_noise(self, part: int) -> Tensor:
        """Standard normal, in the shape of the images of PATH_STEP."""
        network = self._config.network
        side = network.resolution >> int(self._lod)
        shape = (network.channels, side, side)
        noise = self._draws.normal(
            Purpose.PATH_NOISE, indices=self._of_path(part), count=math.prod(shape)
        )
        return noise.reshape(-1, *shape)

    def _of_path(self, part: int) -> Tensor:
        """The first images of the minibatch are the first of each part (`stylegan.split`)."""
        indices = self._indices[part]
        return indices[: len(indices) // self._config.loss.path_shrink]
