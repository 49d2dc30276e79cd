"""Layers of Progressive GAN and StyleGAN: equalized learning rate, normalization, mbstd.

Legend: n images, c h w, H W twice h w, i o features in and out.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, pad, relu

from stylegan.arguments import check_batch
from stylegan.convolution import convolve

Activation = Literal["leaky_relu", "relu"]

HE_GAIN = math.sqrt(2)
"""Gain of a weight that a (leaky) ReLU follows (He et al. 2015)."""


def normal(shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "..."]:
    """Normal values that depend on `rng` alone, not on the default device or type."""
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32)


def activate(
    x: Float[Tensor, "..."], activation: Activation, *, gain: float = 1.0
) -> Float[Tensor, "..."]:
    """Leaky ReLU of slope 0.2, or ReLU, times `gain`.

    At exactly 0 its gradient is that of torch, 0.2; the official one is 1.
    """
    y = leaky_relu(x, 0.2) if activation == "leaky_relu" else relu(x)
    return y if gain == 1 else y * gain


class Equalized(nn.Module):
    """A weight with equalized learning rate (Karras et al. 2018, Section 4.1).

    The stored weight is N(0, 1 / lr_multiplier); He's constant is applied at run time, so that
    Adam's step is equally large in all layers. Without `use_wscale` the initial weight has it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        rng: torch.Generator,
        gain: float = HE_GAIN,
        lr_multiplier: float = 1.0,
        use_wscale: bool = True,
        bias: bool = True,
    ) -> None:
        """`shape` is [o i ...]; everything but o is the fan-in."""
        super().__init__()
        he_std = gain / math.sqrt(math.prod(shape[1:]))
        initial_std, scale = (1.0, he_std) if use_wscale else (he_std, 1.0)
        self.scale = scale * lr_multiplier
        self.lr_multiplier = lr_multiplier
        self.weight = nn.Parameter(normal(shape, rng) * (initial_std / lr_multiplier))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None

    def scaled_weight(self) -> Float[Tensor, "o i ..."]:
        """The weight as the layer applies it."""
        return self.weight * self.scale

    def scaled_bias(self) -> Float[Tensor, " o"] | None:
        """The bias as the layer applies it."""
        if self.bias is None or self.lr_multiplier == 1:
            return self.bias
        return self.bias * self.lr_multiplier


class Linear(Equalized):
    """A dense layer with equalized learning rate; `shape` is [o i]."""

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return linear(x, self.scaled_weight(), self.scaled_bias())


class Conv(Equalized):
    """A zero-padded convolution with equalized learning rate; `shape` is [o i k k]."""

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h w"]:
        padding = self.weight.shape[-1] // 2
        return convolve(x, self.scaled_weight(), self.scaled_bias(), padding=padding)


class UpConv(Equalized):
    """Blocky enlargement by 2, then a 3x3 convolution without bias; `shape` is [o i 3 3].

    Both are done as one transposed convolution, 2 to 3 times as fast. `fused` is about the weights:
    where the official code did the same, they are stored flipped in both axes.
    """

    def __init__(
        self, shape: tuple[int, ...], *, rng: torch.Generator, fused: bool, use_wscale: bool = True
    ) -> None:
        super().__init__(shape, rng=rng, use_wscale=use_wscale, bias=False)
        self.fused = fused

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o H W"]:
        weight = self.scaled_weight()
        if not self.fused:
            weight = weight.flip(2, 3)
        kernel = _spread(weight).transpose(0, 1)
        return convolve(x, kernel, stride=2, padding=1, transposed=True)


class DownConv(Equalized):
    """A 3x3 convolution, then box reduction by 2, as one strided one; `shape` is [o i 3 3]."""

    def forward(self, x: Float[Tensor, "n i H W"]) -> Float[Tensor, "n o h w"]:
        weight = _spread(self.scaled_weight() * 0.25)
        return convolve(x, weight, self.scaled_bias(), stride=2, padding=1)


def _spread(kernel: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "o i 4 4"]:
    """The kernel convolved with a 2x2 box of ones."""
    padded = pad(kernel, (1, 1, 1, 1))
    rows = padded[:, :, 1:] + padded[:, :, :-1]
    return rows[..., 1:] + rows[..., :-1]


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same in float32 at least: what sums and squares are taken of under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def pixel_norm(x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """Scale the features of each pixel to unit mean square (Karras et al. 2018, Section 4.2)."""
    scale = torch.rsqrt(wide(x).square().mean(dim=1, keepdim=True) + 1e-8)
    return x * scale.to(x.dtype)


def instance_norm(
    x: Float[Tensor, "n c h w"],
    scale: Float[Tensor, "n c"] | None = None,
    shift: Float[Tensor, "n c"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Zero mean and unit variance of each feature map of each image, then scale and shift (AdaIN).

    Huang & Belongie 2017, Eq. 8; without scale and shift they are 1 and 0.
    """
    n, c = x.shape[:2]
    scale = x.new_ones(n, c) if scale is None else scale
    shift = x.new_zeros(n, c) if shift is None else shift
    y: Tensor = _InstanceNorm.apply(x, scale[:, :, None, None], shift[:, :, None, None])  # type: ignore[no-untyped-call]
    return y


class _InstanceNorm(torch.autograd.Function):
    """What autograd would do, in half as many passes over the features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        centred, rstd = _standardizing(x)
        return torch.addcmul(shift, centred, scale * rstd).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        centred, rstd = _standardizing(x)
        dy = wide(dy)
        along = (dy * centred).mean(dim=(2, 3), keepdim=True) * rstd
        mean = dy.mean(dim=(2, 3), keepdim=True)
        factor, pixels = scale * rstd, x.shape[2] * x.shape[3]
        dx = torch.addcmul(-factor * mean, dy, factor)
        dx = torch.addcmul(dx, centred, factor * rstd * along, value=-1)
        return dx.to(x.dtype), (along * pixels).to(scale.dtype), (mean * pixels).to(scale.dtype)


def _standardizing(
    x: Float[Tensor, "n c h w"],
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c 1 1"]]:
    """Features less their mean, and one over their standard deviation."""
    centred = wide(x) - wide(x).mean(dim=(2, 3), keepdim=True)
    return centred, torch.rsqrt(centred.square().mean(dim=(2, 3), keepdim=True) + 1e-8)


def append_minibatch_stddev(
    x: Float[Tensor, "n c h w"], *, group: int, features: int
) -> Float[Tensor, "n d h w"]:
    """Append constant maps of how the images of a group differ (Karras et al. 2018, Section 3).

    Args:
        x: Features; image i belongs to group i mod (n / group): members lie n / group apart.
        group: Images per group; a smaller batch is one group.
        features: Maps to append; c must be a multiple.

    Raises:
        ValueError: The batch is no multiple of the group, or c none of the features.
    """
    check_batch("x", x, by="append_minibatch_stddev")
    n, c, h, w = x.shape
    if group < 1 or features < 1 or c % features:
        raise ValueError(
            f"group is {group} and features {features}, but append_minibatch_stddev takes 1 or "
            f"more of each, and features that divide the {c} of x; choose group=4, features=1"
        )
    group = min(group, n)
    if n % group:
        raise ValueError(
            f"a batch of {n} images does not split into minibatch-stddev groups of {group}; "
            f"give D multiples of {group} images or set D.mbstd_group to a divisor of {n}"
        )
    groups = wide(x).reshape(group, n // group, features, c // features, h, w)
    stddev = torch.sqrt(groups.var(dim=0, correction=0) + 1e-8)
    maps = stddev.mean(dim=(2, 3, 4))[:, :, None, None]  # [n / group, features, 1, 1]
    return torch.cat([x, maps.repeat(group, 1, h, w).to(x.dtype)], dim=1)
