"""Convolutions with gradients of their own: what autograd would give, to any order."""

import pytest
import torch
from torch.nn.functional import conv2d, conv_transpose2d

from stylegan.convolution import convolve
from stylegan.layers import instance_norm

FORMS = {
    "3x3": (3, {"padding": 1}),
    "1x1": (1, {}),
    "reducing": (4, {"stride": 2, "padding": 1}),
    "enlarging": (4, {"stride": 2, "padding": 1, "transposed": True}),
    "enlarging, unpadded": (3, {"stride": 2, "transposed": True}),
    "reducing, unpadded": (3, {"stride": 2}),
    "in groups": (3, {"padding": 1, "groups": 2}),
}
FORM = pytest.mark.parametrize(("side", "options"), FORMS.values(), ids=FORMS)


def _arguments(side, options, features=2, pixels=5):
    rng = torch.Generator().manual_seed(side)
    groups, transposed = options.get("groups", 1), options.get("transposed", False)
    shape = (features, 2 // groups, side, side)
    sizes = [(1, features, pixels, pixels), shape, (2,)]
    if transposed:
        sizes[1] = (features, 2, side, side)
    tensors = [torch.randn(size, generator=rng, dtype=torch.float64) for size in sizes]
    return [tensor.requires_grad_() for tensor in tensors]


@FORM
def test_derivatives_of_both_orders_are_those_of_finite_differences(side, options):
    arguments = _arguments(side, options)

    def function(x, weight, bias):
        return convolve(x, weight, bias, **options)

    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@FORM
def test_values_and_first_gradients_are_torchs_own_bit_for_bit(side, options):
    x, weight, bias = arguments = _arguments(side, options)
    own = {key: value for key, value in options.items() if key != "transposed"}
    plain = conv_transpose2d if options.get("transposed") else conv2d

    ours, torchs = convolve(x, weight, bias, **options), plain(x, weight, bias, **own)

    assert torch.equal(ours, torchs)
    seed = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    for ours_, torchs_ in zip(
        torch.autograd.grad(ours, arguments, seed),
        torch.autograd.grad(torchs, arguments, seed),
        strict=True,
    ):
        torch.testing.assert_close(ours_, torchs_, rtol=1e-14, atol=1e-14)


def test_under_autocast_it_computes_in_the_type_of_autocast_and_gradients_keep_theirs():
    x, weight, bias = (t.detach().float().requires_grad_() for t in _arguments(3, {}))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolve(x, weight, bias, padding=1)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    gradient.square().sum().backward()

    assert (y.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_instance_normalization_has_the_derivatives_of_finite_differences():
    rng = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 3, 3), (2, 2), (2, 2)]
    arguments = [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]
    arguments = [argument.requires_grad_() for argument in arguments]

    assert torch.autograd.gradcheck(instance_norm, arguments)
    assert torch.autograd.gradgradcheck(instance_norm, arguments)
