"""What workers exchange: sums of statistics, and gradients by DDP."""

import warnings
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# torch 2.13 gave DDP's option another name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


class Sums:
    """Sums of statistics on the device, and of how many images."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        self._sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)

    def add(self, sums: Tensor, images: int) -> None:
        """Add those of some images."""
        self._sums[:-1] += sums
        self._sums[-1] += images

    def means(self) -> dict[str, float]:
        """Means over the images of all workers; none if there were no images."""
        all_reduce(self._sums)
        *sums, images = self._sums.tolist()
        self._sums.zero_()
        if not images:
            return {}
        return {name: value / images for name, value in zip(self.names, sums, strict=True)}


def parallel(module: nn.Module) -> nn.Module:
    """The module in DDP, if there are other workers and something to learn."""
    if not _distributed() or not any(p.requires_grad for p in module.parameters()):
        return module
    # Buffers are equal on all workers by construction, w_avg by its own all-reduce.
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    # A matrix of one row, such as D's last, has two orders of strides for the same memory.
    warnings.filterwarnings("ignore", r"(?s)Grad strides do not match.*sizes\(\) = \[1, \d+\]")
    return DistributedDataParallel(module, **options)


def all_reduce(tensor: Tensor) -> None:
    """Sum over all workers, in place."""
    if _distributed():
        dist.all_reduce(tensor)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
