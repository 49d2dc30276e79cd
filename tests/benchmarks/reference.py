"""The networks and the step as one would first write them: what `eager` is measured against.

The same mathematics from the plain operators of torch, channels first in memory: enlargement and
reduction apart from the convolutions beside them, the filter as a grouped convolution, autograd's
own derivatives, optimizer and average tensor by tensor.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

from stylegan import layers, modulation, optimizer, resample, step
from stylegan.networks import stylegan, stylegan2


@contextmanager
def plain() -> Iterator[None]:
    """The time in which the project's modules compute in the plain way."""
    replaced = [
        (layers, "convolve", convolve),
        (modulation, "convolve", convolve),
        (stylegan2, "convolve", convolve),
        (layers.UpConv, "forward", up_convolve),
        (layers.DownConv, "forward", convolve_down),
        (resample, "_filtered", filtered),
        (stylegan, "instance_norm", instance_norm),
        (optimizer.Adam, "step", adam),
        (step, "update_average", update_average),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False, **form: int
) -> Tensor:
    """`stylegan.convolution.convolve` with torch's own derivatives."""
    if transposed:
        return conv_transpose2d(x, weight, bias, **form)
    return conv2d(x, weight, bias, **form)


def up_convolve(self: layers.UpConv, x: Tensor) -> Tensor:
    """Enlargement, then a convolution."""
    weight = self.scaled_weight()
    return conv2d(resample.blocky_up(x), weight.flip(2, 3) if self.fused else weight, padding=1)


def convolve_down(self: layers.DownConv, x: Tensor) -> Tensor:
    """A convolution, then reduction."""
    y = resample.box_down(conv2d(x, self.scaled_weight(), padding=1))
    bias = self.scaled_bias()
    return y if bias is None else y + bias[:, None, None]


def filtered(
    x: Tensor,
    kernel: Tensor,
    margins: tuple[int, int],
    *,
    stride: int = 1,
    transposed: bool = False,
) -> Tensor:
    """A filter of each channel as a grouped convolution."""
    before, after = margins
    weight = kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
    if transposed:
        y = conv_transpose2d(x, weight, stride=stride, groups=x.shape[1])
        return y[..., before : y.shape[-2] - after, before : y.shape[-1] - after]
    x = pad(x, (before, after, before, after))
    return conv2d(x, weight, stride=stride, groups=x.shape[1])


def instance_norm(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Normalization and style, operator by operator."""
    x = x - x.mean(dim=(2, 3), keepdim=True)
    x = x * torch.rsqrt(x.square().mean(dim=(2, 3), keepdim=True) + 1e-8)
    if scale is None or shift is None:
        return x
    return x * scale[:, :, None, None] + shift[:, :, None, None]


@torch.no_grad()
def adam(self: Any, lr: float) -> None:
    """One tensor after the other."""
    beta1, beta2 = self.config.beta1, self.config.beta2
    self.count += 1
    correction = torch.sqrt(1 - beta2**self.count) / (1 - beta1**self.count)
    for name, parameter in self.parameters.items():
        if parameter.grad is not None:
            m, v = self.exp_avg[name], self.exp_avg_sq[name]
            m.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            rate = float(lr * self.lr_factor * correction)
            parameter.addcdiv_(m, v.sqrt() + self.config.epsilon, value=-rate)


@torch.no_grad()
def update_average(Gs: nn.Module, G: nn.Module, *, decay: float) -> None:
    """One tensor after the other."""
    for average, value in zip(Gs.parameters(), G.parameters(), strict=True):
        average.lerp_(value, 1 - decay)
    for average, value in zip(Gs.buffers(), G.buffers(), strict=True):
        average.copy_(value)
