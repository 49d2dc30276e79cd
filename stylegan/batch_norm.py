"""Batch normalization over the global batch (Ioffe & Szegedy 2015).

Whatever the number of workers and their shares, the statistics are those of all images of the
minibatch, and so are the gradients through them, of any order.

Legend: n images, c h w, any s.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import normal, wide

_EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Zero mean and unit variance of each feature map over the batch, then scale and shift.

    In training every evaluation moves the running statistics by `momentum` towards those of its
    batch, with the unbiased variance, equally on all workers. In eval mode these take the batch's
    place, so that an image does not depend on the others.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, rng: torch.Generator, *, momentum: float = 0.1) -> None:
        """Initial scales are N(1, 0.02), as in Radford et al.'s code; shifts are 0."""
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(1 + 0.02 * normal((channels,), rng))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training:
            centred = wide(x) - self.running_mean[:, None, None]
            return self._scaled(centred, self.running_var).to(x.dtype)

        # Statistics of the batch.
        n, _, h, w = x.shape
        sums = wide(x).sum(dim=(0, 2, 3))
        totals = sum_over_workers(torch.cat([sums, sums.new_full((1,), n)]))
        count = totals[-1].detach() * (h * w)
        mean = totals[:-1] / count
        centred = wide(x) - mean[:, None, None]
        var = sum_over_workers(centred.square().sum(dim=(0, 2, 3))) / count

        with torch.no_grad():
            unbiased = var * (count / (count - 1).clamp(min=1))
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                moved = torch.lerp(running, new, self.momentum)
                # One bad minibatch must not spoil them for good.
                running.copy_(torch.where(torch.isfinite(moved), moved, running))
        return self._scaled(centred, var).to(x.dtype)

    def _scaled(
        self, centred: Float[Tensor, "n c h w"], var: Float[Tensor, " c"]
    ) -> Float[Tensor, "n c h w"]:
        scale = self.weight * torch.rsqrt(var + _EPSILON)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])


def sum_over_workers(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The sum of what all workers give, with its gradients; `x` itself where there is only one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """All-reduce; every worker's result depends on every worker's input, so backward is the same.

    Each worker backpropagates its own loss; what arrives here is summed over the workers to the
    gradient of the sum of their losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(*gradients)  # type: ignore[no-untyped-call]
        return total
