"""The minibatches of a run: where each one lies, and the random numbers it takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import TrainConfig
from stylegan.draws import D_STEP, G_STEP, Draws, GeneratorDraws
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

    def D(self, part: int) -> GeneratorDraws:
        """For the fakes of the D step."""
        return self._generator(D_STEP, part)

    def G(self, part: int) -> GeneratorDraws:
        """For the fakes of the G step."""
        return self._generator(G_STEP, part)

    def gp_mix(self, part: int) -> Tensor | None:
        """WGAN-GP's places between real and fake, where it is used."""
        if not self._config.loss.wgan_gp_weight:
            return None
        return self._draws.gp_mix(self._indices[part])

    def _generator(self, step: int, part: int) -> GeneratorDraws:
        return self._draws.generator(
            step,
            self._indices[part],
            first_index=self._nimg,
            z_size=self._G.config.z_size,
            noise_sides=self._G.noise_sides(self._lod),
            layers=self._G.layers(self._lod),
            mixing_prob=self._config.step.mixing_prob,
        )
