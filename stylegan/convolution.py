"""Convolutions whose gradients are as fast to differentiate as they are to take.

A gradient penalty differentiates the gradient of D with respect to images. Autograd's own
derivative of a convolution's gradient takes the batch for channels and the other gradient for the
kernel: on a CPU with 32 features of 32 px that takes twice as long as the gradient of a weight,
which it is.

With y = conv(x, w), all three maps are linear in each of their two arguments, and the derivative of
each is made of the other two:

    y = conv(x, w)       dx = input_gradient(dy, w)      dw = weight_gradient(dy, x)

Legend: n images, i o features in and out, h w before, H W after, k side of the kernel.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan.resample import without_autocast


class _Form(NamedTuple):
    """What a convolution is beside its arguments."""

    stride: int
    padding: int
    transposed: bool
    groups: int


def convolve(
    x: Float[Tensor, "n i h w"],
    weight: Float[Tensor, "_ _ k k"],
    bias: Float[Tensor, " o"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    groups: int = 1,
) -> Float[Tensor, "n o H W"]:
    """`conv2d`, or `conv_transpose2d` if transposed, under autocast, too.

    Args:
        x: Features.
        weight: [o i k k], or [i o k k] of the transposed convolution.
        bias: Added to each feature.
        stride: Steps of the kernel.
        padding: Zeros around the features; what is cut off around the transposed convolution's.
        transposed: Apply the adjoint, which enlarges by `stride`.
        groups: Features are split into so many, each with its own part of the weight.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    form = _Form(stride, padding, transposed, groups)
    with without_autocast(x.device):
        y: Tensor = _Convolution.apply(x, weight, bias, form)  # type: ignore[no-untyped-call]
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
        ctx.form, ctx.x_shape, ctx.weight_shape = form, x.shape, weight.shape
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return torch.convolution(x, weight, bias, *_options(form))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = _wanted(ctx, 0), _wanted(ctx, 1)
        needs_bias = ctx.needs_input_grad[2]
        db = dy.sum(dim=(0, 2, 3)) if needs_bias else None
        if not torch.is_grad_enabled():
            wanted = needs_x, needs_weight
            x = _unread(ctx.x_shape, dy) if x is None else x
            weight = _unread(ctx.weight_shape, dy) if weight is None else weight
            return *_gradients(dy, x, weight, ctx.form, wanted), db, None
        with without_autocast(dy.device):
            dx = _input_gradient(dy, weight, ctx.x_shape, ctx.form) if needs_x else None
            dw = _weight_gradient(dy, x, ctx.weight_shape, ctx.form) if needs_weight else None
        return dx, dw, db, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, weight: Tensor, x_shape: torch.Size, form: _Form) -> Tensor:
        ctx.form, ctx.weight_shape = form, weight.shape
        ctx.save_for_backward(dy, weight)
        x = _unread(x_shape, dy)
        dx: Tensor = _gradients(dy, x, weight, form, (True, False))[0]
        return dx

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Any:
        dy, weight = ctx.saved_tensors
        needs_dy, needs_weight = _wanted(ctx, 0), _wanted(ctx, 1)
        with without_autocast(ddx.device):
            ddy = _Convolution.apply(ddx, weight, None, ctx.form) if needs_dy else None  # type: ignore[no-untyped-call]
            dw = _weight_gradient(dy, ddx, ctx.weight_shape, ctx.form) if needs_weight else None
        return ddy, dw, None, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight_shape: torch.Size, form: _Form) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(dy, x)
        weight = _unread(weight_shape, dy)
        dw: Tensor = _gradients(dy, x, weight, form, (False, True))[1]
        return dw

    @staticmethod
    def backward(ctx: Any, ddw: Tensor) -> Any:
        dy, x = ctx.saved_tensors
        needs_dy, needs_x = _wanted(ctx, 0), _wanted(ctx, 1)
        with without_autocast(ddw.device):
            ddy = _Convolution.apply(x, ddw, None, ctx.form) if needs_dy else None  # type: ignore[no-untyped-call]
            dx = _input_gradient(dy, ddw, x.shape, ctx.form) if needs_x else None
        return ddy, dx, None, None


def _input_gradient(dy: Tensor, weight: Tensor, x_shape: torch.Size, form: _Form) -> Tensor:
    dx: Tensor = _InputGradient.apply(dy, weight, x_shape, form)  # type: ignore[no-untyped-call]
    return dx


def _weight_gradient(dy: Tensor, x: Tensor, weight_shape: torch.Size, form: _Form) -> Tensor:
    dw: Tensor = _WeightGradient.apply(dy, x, weight_shape, form)  # type: ignore[no-untyped-call]
    return dw


def _wanted(ctx: Any, argument: int) -> bool:
    """Whether this backward pass goes on to an argument: that of a penalty goes to images alone."""
    needed: bool = ctx.needs_input_grad[argument]
    if not needed or torch.compiler.is_compiling():
        return needed
    node, _ = ctx.next_functions[argument]
    if hasattr(node, "variable"):  # of a leaf the engine does not say it
        return True
    return bool(torch._C._will_engine_execute_node(node))


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, form: _Form, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """With respect to x and to the weight; None where it is not wanted."""
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, *_options(form), [*wanted, False]
    )
    return dx, dw


def _options(form: _Form) -> tuple[Any, ...]:
    """stride, padding, dilation, transposed, output padding, groups."""
    stride, padding, transposed, groups = form
    return [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], groups


def _unread(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of which only shape, type and layout are looked at."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
