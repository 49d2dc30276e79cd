"""Modulated convolution: a style scales what enters, demodulation undoes it in what leaves.

Style s turns the weight w[o i k k] into w' = s[i] w, and demodulation that into
w'' = w' / sqrt(sum over i k k of w'^2 + 1e-8) (Karras et al. 2020, Section 2.2, Eq. 1 and 3).
Styles belong to one image, so either each image gets weights of its own, or features are scaled
before and after a convolution with weights that all images share.

Legend: n images, i o features in and out, k side of the kernel, c h w.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from stylegan.convolution import convolve
from stylegan.layers import Equalized, Linear
from stylegan.resample import Fir, without_autocast

_EPSILON = 1e-8


class Factors(NamedTuple):
    """A modulated weight, as after[n o] weight[o i k k] before[n i]."""

    before: Float[Tensor, "n i"]
    weight: Float[Tensor, "o i k k"]
    after: Float[Tensor, "n _"]
    """One per feature, or one for all of them."""


def factors(
    weight: Float[Tensor, "o i k k"],
    style: Float[Tensor, "n i"],
    *,
    scale: float = 1.0,
    demodulate: bool = True,
) -> Factors:
    """The weight `scale * weight` modulated by `style`.

    No element of `before` is above 1, nor, demodulated, the norm of a feature's weight: half
    precision then does not overflow in between, however large weights and styles become. What they
    are divided by cancels, in derivatives too, so that it counts as a constant there.
    """
    largest = _size(style.detach().abs().amax(dim=1, keepdim=True))
    before = style / largest
    if not demodulate:
        return Factors(before, weight * scale, largest)
    norm = _size(weight.detach().square().sum(dim=(1, 2, 3)).sqrt())
    unit = weight / norm[:, None, None, None]
    energy = linear(before.square(), unit.square().sum(dim=(2, 3)))
    after = torch.rsqrt(energy + _EPSILON / (largest * norm * scale).square())
    return Factors(before, unit, after)


def scale_convolve_scale(
    x: Float[Tensor, "n i h w"],
    factors: Factors,
    bias: Float[Tensor, " o"],
    fir: Fir | None = None,
) -> Float[Tensor, "n o _ _"]:
    """Convolution with one weight for all images; with `fir` the size is doubled first.

    The one that the networks use: on a CPU path length regularization of generators of 32 to 128 px
    takes 1.3 to 2.4 times as long with `grouped_convolution`, training steps mostly 1.5 to 2 times.
    """
    before, weight, after = factors
    y = _convolution(x * before[:, :, None, None].to(x.dtype), weight, fir)
    return torch.addcmul(bias[:, None, None].to(y.dtype), y, after[:, :, None, None].to(y.dtype))


def grouped_convolution(
    x: Float[Tensor, "n i h w"],
    factors: Factors,
    bias: Float[Tensor, " o"],
    fir: Fir | None = None,
) -> Float[Tensor, "n o _ _"]:
    """The same with a weight for each image, as one convolution with n groups of features."""
    before, weight, after = factors
    n = x.shape[0]
    weights = after[:, :, None, None, None] * weight * before[:, None, :, None, None]
    y = _convolution(x.reshape(1, -1, *x.shape[2:]), weights.flatten(0, 1), fir, groups=n)
    y = y.reshape(n, -1, *y.shape[2:])
    return y + bias[:, None, None].to(y.dtype)


class ModulatedConv(Equalized):
    """A zero-padded convolution with equalized learning rate, modulated by w.

    `shape` is [o i k k].
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        w_size: int,
        rng: torch.Generator,
        demodulate: bool = True,
        fir: Fir | None = None,
    ) -> None:
        """With `fir` the size is doubled before a 3x3 convolution."""
        super().__init__(shape, rng=rng, gain=1.0)
        self.style = Linear((shape[1], w_size), rng=rng, gain=1.0)
        self.demodulate = demodulate
        self.fir = fir

    def convolve(
        self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n w_size"], *, gain: float = 1.0
    ) -> Float[Tensor, "n o _ _"]:
        """Convolution and bias, times `gain`."""
        assert self.bias is not None
        # Factors have the type of the parameters under autocast, too.
        with without_autocast(w.device):
            style = self.style(w.to(self.weight.dtype)) + 1
            before, weight, after = factors(
                self.weight, style, scale=self.scale, demodulate=self.demodulate
            )
        return scale_convolve_scale(
            x, Factors(before, weight, after * gain), self.bias * gain, self.fir
        )


def _size(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What to divide by."""
    return values.clamp(min=1e-8)


def _convolution(
    x: Float[Tensor, "n _ h w"], weight: Float[Tensor, "_ i k k"], fir: Fir | None, groups: int = 1
) -> Float[Tensor, "n _ _ _"]:
    if fir is None:
        return convolve(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    # Filtering comes after the convolution, which is at the small size then.
    swapped = weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    enlarged = convolve(x, swapped, stride=2, transposed=True, groups=groups)
    return fir.after_up_conv(enlarged)
