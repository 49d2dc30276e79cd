"""Which images of a global minibatch a worker takes, and in what order.

Minibatch-stddev groups are defined on the global batch: with M groups of G images, image i belongs
to group i mod M (Karras et al. 2018, Section 3, in the official layout). A worker takes whole
groups; inside a part they lie so that the same strided arithmetic on the part alone finds them
again. The groups of one minibatch are so the same for every number of workers and every size of
micro-batches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Split:
    """How one global minibatch is shared out."""

    world: int = 1
    """Number of workers."""
    rank: int = 0
    """Of this worker."""
    group: int = 4
    """Images in a minibatch-stddev group; 1 without minibatch stddev."""
    micro_batch: int = 0
    """Most images a worker puts through the networks at a time; 0 for all of its share."""

    def parts(self, batch: int) -> list[NDArray[np.int64]]:
        """Places in the minibatch of this worker's images, one array a micro-batch.

        Raises:
            ValueError: A group would be split, or a worker would go without; see `refusal`.
        """
        reason = refusal(batch, world=self.world, group=self.group, micro_batch=self.micro_batch)
        if reason:
            raise ValueError(reason)
        group = min(self.group, batch)
        groups = batch // group
        first = _first_group(groups, self.world, self.rank)
        last = _first_group(groups, self.world, self.rank + 1)
        step = max(self.micro_batch // group, 1) if self.micro_batch else last - first
        members = np.arange(group, dtype=np.int64)[:, None] * groups
        return [
            (members + np.arange(start, min(start + step, last), dtype=np.int64)).reshape(-1)
            for start in range(first, last, step)
        ]


def refusal(batch: int, *, world: int, group: int, micro_batch: int = 0) -> str:
    """Why this minibatch cannot be shared out so; empty if it can."""
    group = min(group, batch)
    if batch % group:
        sizes = f"{batch - batch % group} or {batch - batch % group + group}"
        return (
            f"a batch of {batch} images does not consist of minibatch-stddev groups of {group}; "
            f"choose {sizes}"
        )
    if batch // group < world:
        return (
            f"a batch of {batch} images has {batch // group} minibatch-stddev groups of {group}, "
            f"too few for {world} workers; use at most {batch // group} workers or a batch of at "
            f"least {world * group}"
        )
    if 0 < micro_batch < group:
        return (
            f"a micro-batch of {micro_batch} images splits a minibatch-stddev group of {group}; "
            f"choose a multiple of {group}"
        )
    return ""


def _first_group(groups: int, world: int, rank: int) -> int:
    """The larger shares come first: 8 groups over 3 workers are 3 + 3 + 2."""
    return rank * (groups // world) + min(rank, groups % world)
