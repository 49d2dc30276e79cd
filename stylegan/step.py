"""One minibatch of training: D step, moving average, G step, over any split of the global batch.

    step = TrainingStep(state, loss=LossConfig(), config=StepConfig(), split=Split())
    step.enter(phase)
    step(reals, draws, phase)

The step is a function of (state, reals, draws). Losses are means over the global batch: each worker
sums over its own images and parts, which changes the order of summation and nothing else.

Legend: n images, c h w.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stylegan.average import update_average
from stylegan.draws import GeneratorDraws
from stylegan.objective import DiscriminatorLoss, GeneratorLoss, LossConfig, generate
from stylegan.schedule import Phase
from stylegan.split import Split
from stylegan.state import TrainState

# torch 2.13 gave DDP's option another name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How a minibatch is gone through."""

    mixing_prob: float = 0.9
    """Probability of style mixing in a minibatch (Karras et al. 2019, Table 2)."""
    w_avg_beta: float = 0.995
    """Decay of `w_avg`, twice a minibatch."""
    average_half_life_kimg: float = 10
    """Thousands of images after which a weight counts half in Gs; 0 makes Gs a copy of G."""
    micro_batch: int = 0
    """Most images a worker puts through the networks at a time; 0 for all of its share."""

    def __post_init__(self) -> None:
        if not 0 <= self.mixing_prob <= 1:
            raise ValueError(f"step.mixing_prob is {self.mixing_prob}; choose from 0 to 1")
        if not 0 <= self.w_avg_beta < 1:
            raise ValueError(f"step.w_avg_beta is {self.w_avg_beta}; it must lie in [0, 1)")
        if self.average_half_life_kimg < 0:
            raise ValueError(
                f"step.average_half_life_kimg is {self.average_half_life_kimg}; choose 0 or more"
            )
        if self.micro_batch < 0:
            raise ValueError(f"step.micro_batch is {self.micro_batch}; choose 0 (off) or more")


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Reals of one micro-batch, ready for D."""

    reals: Float[Tensor, "n c h w"]
    """At the native size of the level, in [-1, 1]."""
    D_labels: Float[Tensor, "n k"] | None = None
    """Of the reals; the D step's fakes take them, too."""
    G_labels: Float[Tensor, "n k"] | None = None
    """Of the G step's fakes."""


@runtime_checkable
class MinibatchDraws(Protocol):
    """The random numbers of one minibatch, for each of its parts."""

    def D(self, part: int) -> GeneratorDraws:
        """For the fakes of the D step."""
        ...

    def G(self, part: int) -> GeneratorDraws:
        """For the fakes of the G step."""
        ...

    def gp_mix(self, part: int) -> Tensor | None:
        """WGAN-GP's places between real and fake, where it is used."""
        ...


class TrainingStep:
    """Moves a `TrainState` on by one minibatch at a time (see the head of this file)."""

    def __init__(
        self,
        state: TrainState,
        *,
        loss: LossConfig,
        config: StepConfig,
        split: Split,
    ) -> None:
        self.state = state
        self.config = config
        self.split = split
        self._losses = (
            DiscriminatorLoss(state.D, loss),
            GeneratorLoss(state.G, state.D, loss),
        )
        self._D_loss: nn.Module
        self._G_loss: nn.Module
        self._sums = torch.zeros(5, dtype=torch.float64, device=state.device)
        self._images = 0

    def enter(self, phase: Phase) -> bool:
        """To be called before a minibatch; whether the optimizers got a new start."""
        fresh = self.state.enter(phase)
        if fresh or not hasattr(self, "_D_loss"):
            self.wrap()
        return fresh

    def wrap(self) -> None:
        """Put DDP around the losses anew, for the parameters that are active now.

        Besides at each phase change this is done after every commit, also where nothing was
        interrupted: DDP rebuilds its buckets after the first backward, and their order is that of
        summation.
        """
        self.state.activate()
        self._D_loss, self._G_loss = (_parallel(module) for module in self._losses)

    def __call__(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        state = self.state
        assert state.G_opt is not None, "enter a phase first"
        assert state.D_opt is not None, "enter a phase first"

        # Update D.
        self._D_backward(parts, draws, phase)
        state.D_opt.step(phase.D_lr)
        state.D_opt.zero_grad()

        # Gs follows G as it is before its step.
        update_average(
            state.Gs,
            state.G,
            batch=phase.batch,
            half_life_kimg=self.config.average_half_life_kimg,
        )

        # Update G; D only passes gradients on.
        frozen = [p for p in state.D.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        self._G_backward(parts, draws, phase)
        for parameter in frozen:
            parameter.requires_grad_()
        state.G_opt.step(phase.G_lr)
        state.G_opt.zero_grad()

        state.nimg += phase.batch
        state.step += 1
        self._images += sum(len(part.reals) for part in parts)

    def summary(self) -> dict[str, float]:
        """Means over the images of all workers since the last call; waits for the device."""
        totals = torch.cat([self._sums, self._sums.new_tensor([float(self._images)])])
        _all_reduce(totals)
        *sums, images = totals.tolist()
        self._sums.zero_()
        self._images = 0
        names = ("loss/D", "loss/r1", "signs/real", "signs/fake", "loss/G")
        means = {name: value / max(images, 1) for name, value in zip(names, sums, strict=True)}
        for name, adam in (("D", self.state.D_opt), ("G", self.state.G_opt)):
            means[f"skipped/{name}"] = 0.0 if adam is None else float(adam.skipped)
        return means

    def _D_backward(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        w_sums = []
        for number, part in enumerate(parts):
            with torch.no_grad():
                fakes, w_sum = generate(self.state.G, draws.D(number), part.D_labels, phase.lod)
            w_sums.append(w_sum)
            with _unsynced(self._D_loss, last=number == len(parts) - 1):
                loss, sums = self._D_loss(
                    part.reals, fakes, part.D_labels, draws.gp_mix(number), phase.lod
                )
                (loss * (self.split.world / phase.batch)).backward()
            self._sums[:4] += sums
        self._move_w_avg(w_sums, phase)

    def _G_backward(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        w_sums = []
        for number, part in enumerate(parts):
            with _unsynced(self._G_loss, last=number == len(parts) - 1):
                loss, sums, w_sum = self._G_loss(draws.G(number), part.G_labels, phase.lod)
                (loss * (self.split.world / phase.batch)).backward()
            w_sums.append(w_sum)
            self._sums[4:] += sums
        self._move_w_avg(w_sums, phase)

    @torch.no_grad()
    def _move_w_avg(self, w_sums: Sequence[Tensor], phase: Phase) -> None:
        """w_avg <- m + beta (w_avg - m), m the mean of w over the global batch."""
        mean = torch.stack(list(w_sums)).sum(dim=0)
        _all_reduce(mean)
        mean /= phase.batch
        self.state.G.w_avg.copy_(torch.lerp(mean, self.state.G.w_avg, self.config.w_avg_beta))


def _parallel(module: nn.Module) -> nn.Module:
    if not _distributed() or not any(p.requires_grad for p in module.parameters()):
        return module
    # Buffers are equal on all workers by construction, w_avg by its own all-reduce.
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(module, **options)


def _unsynced(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    if isinstance(module, DistributedDataParallel) and not last:
        context: AbstractContextManager[None] = module.no_sync()
        return context
    return nullcontext()


def _all_reduce(tensor: Tensor) -> None:
    if _distributed():
        dist.all_reduce(tensor)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
