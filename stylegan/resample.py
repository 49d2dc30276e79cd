"""Resampling: blocky enlargement, box reduction and the small low-pass filter beside them.

Legend: n images, c h w; H W twice h w.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad


def blocky_up(images: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c H W"]:
    """Nearest-neighbour enlargement: every pixel becomes a block of `factor` x `factor`."""
    if factor == 1:
        return images
    return interpolate(images, scale_factor=factor, mode="nearest")


def box_down(images: Float[Tensor, "n c H W"], factor: int = 2) -> Float[Tensor, "n c h w"]:
    """Mean over blocks of `factor` x `factor` pixels."""
    if factor == 1:
        return images
    return avg_pool2d(images, factor)


class Blur(nn.Module):
    """Separable low-pass filter of each channel, zero padded, size kept (Karras et al. 2019).

    Zero padding darkens the border; the official networks do so too.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[int]) -> None:
        """`taps`: the filter along one axis, symmetric, normalized here; officially (1, 2, 1)."""
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float64, device="cpu")
        kernel = torch.outer(line, line) / line.sum().square()
        self.register_buffer("kernel", kernel[None, None].to(torch.float32), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        blurred: Tensor = _Blurred.apply(x, self.kernel, False)  # type: ignore[no-untyped-call]
        return blurred


class _Blurred(torch.autograd.Function):
    """A symmetric filter is its own adjoint, but for the side on which an even one pads more.

    Autograd's own way through a grouped convolution gives the same, ten times as slowly where
    gradients of gradients are taken (on a CPU with 64 channels of 16 px).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, adjoint: bool) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.adjoint = adjoint
        channels, taps = x.shape[1], kernel.shape[-1]
        weight = kernel.to(x.dtype).expand(channels, -1, -1, -1)
        if taps % 2:
            return conv2d(x, weight, padding=taps // 2, groups=channels)
        less, more = (taps - 1) // 2, taps // 2
        before, after = (more, less) if adjoint else (less, more)
        return conv2d(pad(x, (before, after, before, after)), weight, groups=channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (kernel,) = ctx.saved_tensors
        blurred = _Blurred.apply(gradient, kernel, not ctx.adjoint)  # type: ignore[no-untyped-call]
        return blurred, None, None
