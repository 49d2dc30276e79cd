"""When a training has gone wrong for good, and where it goes on instead.

A minibatch whose gradients are not finite is dropped on the device, for all ranks (see
`stylegan.optimizer`). Where that goes on, where the weights themselves are not finite, or where D
tells all reals from all fakes for long, the run goes back to the last good checkpoint, with another
`attempt`, so that it draws other random numbers. All ranks see the same numbers and decide alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from pipeline.marker import CommittedCheckpoint
from stylegan.state import TrainState

_ALL = 0.999
"""Mean sign from which D has told apart all images of a tick but one in two thousand."""


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """When a run goes back to an earlier checkpoint, and how often."""

    max_skipped: float = 0.5
    """Part of the updates of D or G that may be dropped for gradients that are not finite."""
    window: int = 16
    """Minibatches over which that part is taken, at least."""
    collapsed_kimg: float = 1000
    """Thousands of images for which D may tell all reals from all fakes; 0 for ever."""
    max_rollbacks: int = 3
    """Returns to an earlier checkpoint before the run fails."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(
                f"divergence.max_skipped is {self.max_skipped}; choose from 0 to 1 (off)"
            )
        for name, least in {"window": 1, "collapsed_kimg": 0, "max_rollbacks": 0}.items():
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"divergence.{name} is {getattr(self, name)}; choose at least {least}"
                )


class DivergenceError(ValueError):
    """The training diverges again and again; a restart would repeat that."""


class Diverged(Exception):  # noqa: N818 (no error: the loop goes back and on)
    """The training has gone wrong; the message says how."""


class Rollback(TypedDict):
    """One return to an earlier checkpoint, as checkpoints remember it."""

    reason: str
    from_nimg: int
    to_nimg: int


class Divergence:
    """Looks at a state and what it reports."""

    def __init__(self, config: DivergenceConfig, state: TrainState) -> None:
        self.config = config
        self._state = state
        self._start_step, self._skipped = state.step, self._counts()
        self._healthy_nimg = state.nimg

    def check_signs(self, means: dict[str, float]) -> None:
        """Look at the means of a tick.

        Raises:
            Diverged: D has told all images apart for too long.
        """
        real, fake = means.get("signs/real", 0.0), means.get("signs/fake", 0.0)
        if not (real >= _ALL and fake <= -_ALL):
            self._healthy_nimg = self._state.nimg
        kimg = (self._state.nimg - self._healthy_nimg) / 1000
        if 0 < self.config.collapsed_kimg <= kimg:
            raise Diverged(f"D has told all reals from all fakes for {kimg:g} kimg")

    def check_updates(self) -> None:
        """Look at how many updates were dropped lately; waits for the device.

        Raises:
            Diverged: Too many.
        """
        steps = self._state.step - self._start_step
        if steps < self.config.window:
            return
        counts = self._counts()
        for name, count in counts.items():
            before = self._skipped.get(name, 0.0)
            dropped = count - (before if before <= count else 0.0)  # a new level counts anew
            if dropped > self.config.max_skipped * steps:
                raise Diverged(
                    f"{dropped:.0f} updates of {name} in the last {steps} minibatches had "
                    f"gradients that are not finite"
                )
        self._start_step, self._skipped = self._state.step, counts

    def check_weights(self) -> None:
        """Look at the networks before they are committed; waits for the device.

        Raises:
            Diverged: A weight is not finite.
        """
        for name in ("G", "D", "Gs"):
            tensors = _floating(getattr(self._state, name).state_dict().values())
            if not torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all():
                raise Diverged(f"weights of {name} are not finite")

    def _counts(self) -> dict[str, float]:
        """Updates dropped since the level began."""
        optimizers = {"D": self._state.D_opt, "G": self._state.G_opt}
        return {name: float(adam.skipped) for name, adam in optimizers.items() if adam is not None}


def target(
    checkpoints: Sequence[CommittedCheckpoint], rollbacks: Sequence[Rollback]
) -> CommittedCheckpoint:
    """Where to go back to: the newest checkpoint, or one before it where that has not helped.

    Args:
        checkpoints: Committed ones, newest last.
        rollbacks: Earlier ones of this run.
    """
    newest = checkpoints[-1]
    if rollbacks and newest.nimg == rollbacks[-1]["to_nimg"]:
        earlier = [each for each in checkpoints if each.nimg < newest.nimg]
        return earlier[-1] if earlier else newest
    return newest


def _floating(tensors: Sequence[Tensor] | Iterator[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.is_floating_point()]
