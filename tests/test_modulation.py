"""Modulated convolution and FIR resampling of StyleGAN2: definitions, gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d, pad

from stylegan.modulation import (
    ModulatedConv,
    factors,
    grouped_convolution,
    scale_convolve_scale,
)
from stylegan.resample import Fir

FORMS = [scale_convolve_scale, grouped_convolution]
TAPS = [(1, 1), (1, 2, 1), (1, 3, 3, 1)]
"""Even and odd numbers of taps are centred in different ways."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
def test_modulated_convolution_of_ones_has_a_closed_form(form):
    """Of 1x1 weights w and styles s: sum(s w x) / sqrt(sum(s^2 w^2)) + b."""
    weight = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    style, bias = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([10.0])

    y = form(torch.ones(2, 2, 1, 1), factors(weight, style), bias)
    plain = form(torch.ones(2, 2, 1, 1), factors(weight, style, demodulate=False, scale=2), bias)

    torch.testing.assert_close(y.flatten(), torch.tensor([7 / 5 + 10, 1.0 + 10]))
    torch.testing.assert_close(plain.flatten(), torch.tensor([14.0 + 10, 12.0 + 10]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_is_a_convolution_with_weights_of_each_image(form, demodulate):
    """Equations 1 and 3 of the paper, image by image."""
    x, bias = normal(3, 4, 5, 5), normal(6)
    weight, style, scale = normal(6, 4, 3, 3, seed=1), normal(3, 4, seed=2), 0.3

    actual = form(x, factors(weight, style, scale=scale, demodulate=demodulate), bias)

    for image, s, y in zip(x, style, actual, strict=True):
        modulated = weight * scale * s[:, None, None]
        if demodulate:
            modulated /= (modulated.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(y, conv2d(image, modulated, bias, padding=1))


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("fir", [None, *map(Fir, TAPS)])
def test_both_forms_of_modulated_convolution_agree(fir: Fir | None, demodulate: bool):
    x, weight, style = normal(3, 4, 5, 6), normal(6, 4, 3, 3, seed=1), normal(3, 4, seed=2)
    parts = factors(weight, style, demodulate=demodulate)

    scaled, grouped = (form(x, parts, normal(6), fir) for form in FORMS)

    assert scaled.shape[2:] == ((5, 6) if fir is None else (10, 12))
    torch.testing.assert_close(scaled, grouped, rtol=1e-5, atol=1e-5)


def test_demodulated_features_do_not_depend_on_the_size_of_styles_and_weights():
    x, weight, style, bias = normal(2, 4, 5, 5), normal(6, 4, 3, 3), normal(2, 4), torch.zeros(6)
    y = scale_convolve_scale(x, factors(weight, style), bias)

    torch.testing.assert_close(scale_convolve_scale(x, factors(weight * 1e6, style * 1e6), bias), y)


def test_epsilon_makes_styles_of_zero_harmless():
    x, weight = normal(2, 4, 5, 5), normal(6, 4, 3, 3)
    style = torch.zeros(2, 4, requires_grad=True)

    y = scale_convolve_scale(x, factors(weight, style), torch.ones(6))
    y.sum().backward()

    assert torch.equal(y, torch.ones(2, 6, 5, 5))
    assert style.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fir", [None, Fir((1, 3, 3, 1))])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_has_gradients_of_gradients(form, fir, demodulate):
    """The largest style and the norm of a weight are constants of the derivative, rightly so."""

    def function(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        return form(x, factors(weight, style, scale=0.5, demodulate=demodulate), bias, fir)

    shapes = [(2, 2, 2, 2), (1, 2, 3, 3), (2, 2), (1,)]
    inputs = [
        normal(*shape, seed=seed, dtype=torch.float64).requires_grad_()
        for seed, shape in enumerate(shapes)
    ]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_a_layer_starts_as_the_plain_convolution_with_demodulated_weights():
    """Styles are 1 where w is 0."""
    layer = ModulatedConv((6, 4, 3, 3), w_size=5, rng=torch.Generator().manual_seed(0))
    x = normal(2, 4, 5, 5)
    norm = layer.weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()

    torch.testing.assert_close(
        layer.convolve(x, torch.zeros(2, 5), gain=3), 3 * conv2d(x, layer.weight / norm, padding=1)
    )


def filtered(x: Tensor, fir: Fir, before: int, after: int) -> Tensor:
    """The definition: one channel at a time on a plane of zeros."""
    n, c, *_ = x.shape
    padded = pad(x, (before, after, before, after)).flatten(0, 1)[:, None]
    return conv2d(padded, fir.kernel).unflatten(0, (n, c))[:, :, 0]


def spread(x: Tensor) -> Tensor:
    """A zero after every pixel."""
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, 2 * h, 2 * w)
    y[:, :, ::2, ::2] = x
    return y


@pytest.mark.parametrize("taps", TAPS)
def test_fir_up_and_down_are_filters_among_zeros(taps: tuple[int, ...]):
    fir, x = Fir(taps), normal(2, 3, 6, 8)
    k = len(taps)

    torch.testing.assert_close(fir.up(x), 4 * filtered(spread(x), fir, (k + 1) // 2, (k - 2) // 2))
    down = filtered(x, fir, (k - 1) // 2, (k - 2) // 2)[:, :, ::2, ::2]
    torch.testing.assert_close(fir.down(x), down)


@pytest.mark.parametrize("taps", TAPS)
def test_strided_convolutions_with_fir_are_resampling_and_convolution_but_for_the_border(
    taps: tuple[int, ...],
):
    fir, x, weight = Fir(taps), normal(1, 2, 8, 8), normal(3, 2, 3, 3, seed=1)
    parts = factors(weight, torch.ones(1, 2), demodulate=False)

    up = scale_convolve_scale(x, parts, torch.zeros(3), fir)
    expected = conv2d(fir.up(x), weight, padding=1)
    torch.testing.assert_close(up[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])

    down = conv2d(fir.before_down_conv(x), weight, stride=2)
    before = (len(taps) - 1) // 2
    smooth = filtered(x, fir, before, len(taps) - 1 - before)
    expected = conv2d(smooth, weight, padding=1)[..., ::2, ::2]
    assert down.shape == expected.shape
    torch.testing.assert_close(down[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("taps", TAPS)
def test_fir_keeps_constants_inside(taps: tuple[int, ...]):
    fir, ones = Fir(taps), torch.ones(1, 1, 8, 8)
    for y in (fir.down(ones), fir.before_down_conv(ones)):
        torch.testing.assert_close(y[..., 2:-2, 2:-2], torch.ones_like(y[..., 2:-2, 2:-2]))
    # Of these filters, every other tap together is half of the sum.
    torch.testing.assert_close(fir.up(ones)[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("method", ["up", "down", "after_up_conv", "before_down_conv"])
def test_fir_has_the_gradients_of_the_convolution_it_is(taps: tuple[int, ...], method: str):
    x = normal(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    resample: Callable[[Tensor], Tensor] = getattr(Fir(taps).double(), method)

    assert gradcheck(resample, (x,))
    assert gradgradcheck(resample, (x,))


def test_fir_keeps_the_type_of_images_under_autocast():
    x = normal(1, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Fir((1, 3, 3, 1)).up(x).dtype == torch.float32
        assert Fir((1, 3, 3, 1)).up(x.half()).dtype == torch.float16
