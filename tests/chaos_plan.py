"""What goes wrong, when: a plan of faults drawn from a seed, spread over one training."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "worker killed": "kill -9 of one training process",
    "worker stopped": "SIGSTOP of one training process, as if its machine hung",
    "controller killed": "kill -9 of Ray Train's controller",
    "driver killed": "kill -9 of pipeline/train.py; the same command again",
    "driver terminated": "SIGTERM of pipeline/train.py, as at preemption; the same command again",
    "node killed": "kill -9 of all Ray processes of a node; another node comes",
    "head killed": "kill -9 of the head and the driver on it; a new head, the same command again",
    "S3 away": "kill -9 of the S3 server, which comes back",
    "S3 frozen": "SIGSTOP of the S3 server, which goes on later",
    "MLflow away": "kill -9 of the MLflow server, which comes back",
    "cable cut": "the link of a node is down, and up again later",
}
"""Each with what is done."""

_MEETS_COMMIT = ("worker killed", "driver killed", "node killed", "head killed", "S3 away")
"""What can hit a commit on its way."""
_IN_COMMIT_SHARE = 0.27
_LASTS_S = (3.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One of them."""

    kind: str
    in_commit: bool
    """Whether it waits for a checkpoint that is being written."""
    nimg: int
    """Images shown when it may happen."""
    lasts_s: float
    """How long something is away, where it comes back."""
    target: int
    """Which worker or node, modulo how many there are."""


def plan(count: int, *, seed: int, kinds: Sequence[str], total_nimg: int) -> list[Fault]:
    """Faults of all kinds in turn, in random order, evenly over nine tenths of the training.

    Args:
        count: Of faults; a good quarter of them in commits, if the kinds can.
        seed: Of everything random.
        kinds: Of `KINDS`.
        total_nimg: Length of the training.
    """
    draw = random.Random(seed)
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    draw.shuffle(chosen)
    can = [number for number, kind in enumerate(chosen) if kind in _MEETS_COMMIT]
    in_commit = set(draw.sample(can, min(len(can), int(_IN_COMMIT_SHARE * count))))
    return [
        Fault(
            kind=kind,
            in_commit=number in in_commit,
            nimg=int((number + draw.uniform(0.2, 0.8)) / count * 0.9 * total_nimg),
            lasts_s=round(draw.uniform(*_LASTS_S), 1),
            target=draw.randrange(1000),
        )
        for number, kind in enumerate(chosen)
    ]
