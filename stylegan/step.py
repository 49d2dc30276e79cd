"""One minibatch of training: D step, moving average, G step, over any split of the global batch.

    step = TrainingStep(state, loss=LossConfig(), config=StepConfig(), split=Split())
    step.enter(phase)
    step(reals, draws, phase)

The step is a function of (state, reals, draws). Losses are means over the global batch: each worker
sums over its own images and parts, which changes the order of summation and nothing else.

The order is StyleGAN's (D, average, G) for all networks; StyleGAN2's own code begins with G.
`w_avg` moves in D's and in G's step, not in that of the path lengths.

Legend: n images, c h w.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stylegan import losses
from stylegan.average import update_average
from stylegan.draws import D_STEP, G_STEP, PATH_STEP, DiscriminatorDraws, GeneratorDraws
from stylegan.exchange import Sums, all_reduce, parallel
from stylegan.objective import (
    DiscriminatorLoss,
    GeneratorLoss,
    LazyR1,
    LossConfig,
    PathLengths,
    Precision,
    generate,
)
from stylegan.optimizer import Adam
from stylegan.schedule import Phase
from stylegan.speed import Speed, compile_blocks
from stylegan.split import Split
from stylegan.state import TrainState


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How a minibatch is gone through."""

    mixing_prob: float = 0.9
    """Probability of style mixing in a minibatch (Karras et al. 2019, Table 2)."""
    w_avg_beta: float = 0.995
    """Decay of `w_avg`, twice a minibatch."""
    average_half_life_kimg: float = 10
    """Thousands of images after which a weight counts half in Gs; 0 makes Gs a copy of G."""
    average_decay: float = 0
    """What is kept of Gs at each minibatch, whatever its size, instead of the half-life; 0.999 in
    Progressive GAN, 0 = off."""
    micro_batch: int = 0
    """Most images a worker puts through the networks at a time; 0 for all of its share."""
    precision: Precision = "float32"
    """Of convolutions and dense layers; `bfloat16` and `float16` keep weights and sums in float32.
    """
    speed: Speed = "eager"
    """`compile` fuses what stands between convolutions (torch.compile; needs a C++ compiler), `max`
    also tries kernels out, which takes minutes at each new level."""

    def __post_init__(self) -> None:
        if not 0 <= self.mixing_prob <= 1:
            raise ValueError(f"step.mixing_prob is {self.mixing_prob}; choose from 0 to 1")
        if not 0 <= self.w_avg_beta < 1:
            raise ValueError(f"step.w_avg_beta is {self.w_avg_beta}; it must lie in [0, 1)")
        if not 0 <= self.average_half_life_kimg < float("inf"):
            raise ValueError(
                f"step.average_half_life_kimg is {self.average_half_life_kimg}; choose 0 or more"
            )
        if not 0 <= self.average_decay < 1:
            raise ValueError(
                f"step.average_decay is {self.average_decay}; it must lie in [0, 1): 0 is off"
            )
        if self.micro_batch < 0:
            raise ValueError(f"step.micro_batch is {self.micro_batch}; choose 0 (off) or more")

    def decay(self, batch: int) -> float:
        """What is kept of Gs at a minibatch of so many images."""
        if self.average_decay or not self.average_half_life_kimg:
            return self.average_decay
        return float(0.5 ** (batch / (self.average_half_life_kimg * 1000)))


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

    def fakes(self, step: int, part: int) -> GeneratorDraws:
        """For the fakes of D_STEP, G_STEP or PATH_STEP (its share of the part's images)."""
        ...

    def judging(self, step: int, part: int) -> DiscriminatorDraws:
        """For D in D_STEP or G_STEP."""
        ...

    def path_noise(self, part: int) -> Tensor:
        """Standard normal, in the shape of the images of PATH_STEP."""
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
        self.loss = loss
        self.config = config
        self.split = split
        G, D, precision = state.G, state.D, config.precision
        for network in (G, D):
            compile_blocks(network, config.speed)
        D_loss = DiscriminatorLoss(D, loss, precision=precision)
        lazy_r1 = LazyR1(D, loss, precision=precision)
        G_loss = GeneratorLoss(G, D, loss, precision=precision)
        self._modules: dict[str, nn.Module] = {"D": D_loss, "G": G_loss}
        if loss.D_interval:
            self._modules["r1"] = lazy_r1
        if loss.G_interval:
            self._modules["path"] = PathLengths(G, precision=precision)
        self._wrapped: dict[str, nn.Module] = {}
        self.rebuilt: set[str] = set()
        """Losses that have gone backward since they were wrapped: DDP has rebuilt their buckets."""
        self.collective: tuple[int, str] = (0, "none")
        """How many exchanges between workers have begun, and what the last one was."""
        self._sums = {
            "D": Sums(D_loss.names, state.device),
            "G": Sums(G_loss.names, state.device),
            "r1": Sums(lazy_r1.names, state.device),
            "path": Sums(("loss/path", "path/length"), state.device),
        }

    def enter(self, phase: Phase) -> bool:
        """To be called before a minibatch; whether the optimizers got a new start."""
        fresh = self.state.enter(phase)
        if fresh or not self._wrapped:
            self.wrap()
        return fresh

    def wrap(self) -> None:
        """Put DDP around the losses anew, for the parameters that are active now.

        Besides at each phase change this is done after every commit, also where nothing was
        interrupted: DDP rebuilds its buckets after the first backward, and their order is that of
        summation.
        """
        self.state.activate()
        self._wrapped = {name: parallel(module) for name, module in self._modules.items()}
        self.rebuilt = set()

    def rehearse(
        self, names: Collection[str], parts: Sequence[Part], draws: MinibatchDraws, phase: Phase
    ) -> None:
        """Have the losses of these names go backward once, as `rebuilt` says they had.

        Moves averages and statistics: the caller loads the state afterwards.
        """
        for name, backward in (
            ("D", self._D_backward),
            ("r1", self._r1_backward),
            ("G", self._G_backward),
            ("path", self._path_backward),
        ):
            if name in names:
                with _frozen(self.state.D.parameters() if name == "G" else ()):
                    backward(parts, draws, phase)
                self.state.G.zero_grad()
                self.state.D.zero_grad()
        for sums in self._sums.values():
            sums.means()

    def __call__(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        state = self.state
        assert state.G_opt is not None, "enter a phase first"
        assert state.D_opt is not None, "enter a phase first"

        # Update D; now and then its regularization apart.
        self._D_backward(parts, draws, phase)
        state.D_opt.step(phase.D_lr)
        state.D_opt.zero_grad()
        if self.loss.D_interval and state.step % self.loss.D_interval == 0:
            self._r1_backward(parts, draws, phase)
            state.D_opt.step(phase.D_lr)
            state.D_opt.zero_grad()

        # Gs follows G as it is before its step.
        update_average(state.Gs, state.G, decay=self.config.decay(phase.batch))

        # Update G; D only passes gradients on.
        with _frozen(state.D.parameters()):
            self._G_backward(parts, draws, phase)
        state.G_opt.step(phase.G_lr)
        state.G_opt.zero_grad()
        if self.loss.G_interval and state.step % self.loss.G_interval == 0:
            self._path_backward(parts, draws, phase)
            state.G_opt.step(phase.G_lr)
            state.G_opt.zero_grad()

        state.nimg += phase.batch
        state.step += 1

    def summary(self) -> dict[str, float]:
        """Means over the images of all workers since the last call; waits for the device."""
        means: dict[str, float] = {}
        self._begin("statistics")
        for sums in self._sums.values():
            means |= sums.means()
        for name, adam in (("D", self.state.D_opt), ("G", self.state.G_opt)):
            means[f"skipped/{name}"] = 0.0 if adam is None else float(adam.skipped)
        return means

    def _D_backward(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        w_sums = []
        for number, part in enumerate(parts):
            with torch.no_grad():
                fakes, w_sum = generate(
                    self.state.G,
                    draws.fakes(D_STEP, number),
                    part.D_labels,
                    phase.lod,
                    precision=self.config.precision,
                )
            w_sums.append(w_sum)
            with self._synced("D", last=number == len(parts) - 1) as D_loss:
                loss, sums = D_loss(
                    part.reals, fakes, part.D_labels, draws.judging(D_STEP, number), phase.lod
                )
                self._backward(loss, self.state.D_opt, phase)
            self._sums["D"].add(sums, len(part.reals))
        self._move_w_avg(w_sums, phase)

    def _r1_backward(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        for number, part in enumerate(parts):
            with self._synced("r1", last=number == len(parts) - 1) as r1:
                loss, sums = r1(part.reals, part.D_labels, draws.judging(D_STEP, number), phase.lod)
                self._backward(loss, self.state.D_opt, phase)
            self._sums["r1"].add(sums, len(part.reals))

    def _G_backward(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        w_sums = []
        for number, part in enumerate(parts):
            with self._synced("G", last=number == len(parts) - 1) as G_loss:
                loss, sums, w_sum = G_loss(
                    draws.fakes(G_STEP, number),
                    part.G_labels,
                    draws.judging(G_STEP, number),
                    phase.lod,
                )
                self._backward(loss, self.state.G_opt, phase)
            w_sums.append(w_sum)
            self._sums["G"].add(sums, len(part.reals))
        self._move_w_avg(w_sums, phase)

    def _path_backward(self, parts: Sequence[Part], draws: MinibatchDraws, phase: Phase) -> None:
        """Path length regularization over the global batch, whatever its parts (DESIGN).

        The moving mean must be known before the first backward; with several parts the lengths are
        therefore taken twice.
        """
        loss, shrink = self.loss, self.loss.path_shrink
        arguments = []
        for number, part in enumerate(parts):
            labels = part.G_labels
            if labels is not None:
                labels = labels[: len(part.reals) // shrink]
            noise = draws.path_noise(number)
            arguments.append((draws.fakes(PATH_STEP, number), labels, noise, phase.lod))

        # Move the mean. All ranks go the same way, or their collectives would be out of order.
        single = len(replace(self.split, rank=0).parts(phase.batch)) == 1
        if single:
            lengths = [self._wrapped["path"](*arguments[0])]
        else:
            lengths = [self._modules["path"](*each).detach() for each in arguments]
        total = torch.stack([each.detach().sum() for each in lengths]).sum()
        self._begin("path lengths")
        all_reduce(total)
        images = phase.batch // shrink
        mean = total / images
        moved = torch.lerp(self.state.path_mean, mean, loss.path_decay)
        _move(self.state.path_mean, moved)

        # Each part goes back with the factors of its own lengths.
        for number, each in enumerate(arguments):
            with self._synced("path", last=number == len(parts) - 1) as path:
                mine = lengths[0] if single else path(*each)
                factors = losses.path_factors(
                    mine.detach(), mean, self.state.path_mean, loss.path_decay
                )
                weighted = (factors * mine).sum() * (loss.path_weight * loss.path_interval)
                self._backward(weighted, self.state.G_opt, phase, images=images)
            penalty = loss.path_weight * (mine.detach() - self.state.path_mean).square()
            self._sums["path"].add(torch.stack([penalty.sum(), mine.detach().sum()]), len(mine))

    def _backward(
        self, loss: Tensor, adam: Adam | None, phase: Phase, *, images: int | None = None
    ) -> None:
        """From the sum over some images to gradients of the mean over the global batch."""
        assert adam is not None, "enter a phase first"
        loss = loss * (self.split.world / (phase.batch if images is None else images))
        if adam.scale is not None:
            loss = loss * adam.scale
        loss.backward()

    @contextmanager
    def _synced(self, name: str, *, last: bool) -> Iterator[nn.Module]:
        """The loss of this name; only its last backward exchanges gradients."""
        module = self._wrapped[name]
        if last:
            self.rebuilt.add(name)
            self._begin(f"gradients of {name}")
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield module
        else:
            yield module

    def _begin(self, collective: str) -> None:
        self.collective = (self.collective[0] + 1, collective)

    @torch.no_grad()
    def _move_w_avg(self, w_sums: Sequence[Tensor], phase: Phase) -> None:
        """w_avg <- m + beta (w_avg - m), m the mean of w over the global batch."""
        mean = torch.stack(list(w_sums)).sum(dim=0)
        self._begin("w_avg")
        all_reduce(mean)
        mean /= phase.batch
        w_avg = self.state.G.w_avg
        _move(w_avg, torch.lerp(mean, w_avg, self.config.w_avg_beta))


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these parameters pass gradients on and take none."""
    frozen = [p for p in parameters if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    yield
    for parameter in frozen:
        parameter.requires_grad_()


def _move(average: Tensor, moved: Tensor) -> None:
    """Take over a moving average, unless one bad minibatch would spoil it for good."""
    average.copy_(torch.where(torch.isfinite(moved), moved, average))
