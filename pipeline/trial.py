"""Minibatches outside of any run, on made-up reals: what plans and benchmarks measure."""

from dataclasses import replace

import torch

from pipeline.beginning import new_state
from pipeline.config import TrainConfig
from pipeline.minibatches import Minibatch, RunDraws
from stylegan.schedule import Phase, phases
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part, TrainingStep


class Trial:
    """One worker's training at one level; each call is a minibatch."""

    def __init__(
        self,
        config: TrainConfig,
        phase: Phase,
        *,
        batch: int,
        device: torch.device,
        state: TrainState | None = None,
    ) -> None:
        """Begin a training.

        Args:
            config: Of the run.
            phase: Its level and rates.
            batch: Images of this worker in a minibatch, whatever the phase says.
            device: Where it trains.
            state: What to go on from; None for a new one.
        """
        self.config, self.device = config, device
        self.phase = replace(phase, batch=batch)
        group, micro_batch = config.network.D.group, config.step.micro_batch
        split = Split(group=group, micro_batch=micro_batch)
        self.state = new_state(config, device) if state is None else state
        self._step = TrainingStep(self.state, loss=config.loss, config=config.step, split=split)
        self._step.enter(self.phase)
        self._shares = split.parts(batch)
        network, side = config.network, phase.resolution
        reals = torch.rand((batch, network.channels, side, side), device=device) * 2 - 1
        reals = reals.to(memory_format=torch.channels_last)
        labels = None
        if network.label_size:
            labels = torch.eye(network.label_size, device=device)[:1]
        self._parts = [
            Part(
                reals=reals[: len(share)],
                D_labels=None if labels is None else labels.expand(len(share), -1),
                G_labels=None if labels is None else labels.expand(len(share), -1),
            )
            for share in self._shares
        ]

    def __call__(self) -> None:
        """Train on one minibatch, and wait for the device."""
        config, state = self.config, self.state
        minibatch = Minibatch(nimg=state.nimg, phase=self.phase, ends_iteration=True)
        draws = RunDraws(config, config.draws(0), state.G, minibatch, self._shares)
        self._step(self._parts, draws, self.phase)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def levels(config: TrainConfig) -> list[Phase]:
    """The stable phase of each level that the run reaches; of the last one as far as it gets."""
    found: dict[int, Phase] = {}
    for phase in phases(config.schedule, resolution=config.network.resolution):
        known = found.get(phase.resolution)
        if known is None or phase.lod == int(phase.lod):
            found[phase.resolution] = phase
    return list(found.values())
