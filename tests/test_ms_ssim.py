"""MS-SSIM: closed forms, and an implementation of its own with SciPy."""

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from stylegan.metrics import ms_ssim as ms_ssim_module
from stylegan.metrics.ms_ssim import ms_ssim
from tests.random_arrays import bytes_of


def test_ms_ssim_of_equal_images_is_1(rng):
    images = bytes_of(rng, 3, 3, 64, 64)

    torch.testing.assert_close(ms_ssim(images, images), torch.ones(3).double())


def test_ms_ssim_of_two_colours_is_their_luminance_at_the_coarsest_scale():
    """Contrast and structure agree where there are none."""
    a, b = (torch.full((1, 3, 176, 176), value, dtype=torch.uint8) for value in (60, 120))

    c1 = (0.01 * 255) ** 2
    luminance = (2 * 60 * 120 + c1) / (60**2 + 120**2 + c1)
    assert float(ms_ssim(a, b)) == pytest.approx(luminance**0.1333, rel=1e-9)


def test_ms_ssim_of_a_negative_is_0(rng):
    image = bytes_of(rng, 1, 1, 64, 64)

    assert float(ms_ssim(image, 255 - image)) == 0


def test_ms_ssim_of_pairs_does_not_depend_on_the_batch_or_the_order(rng):
    a = bytes_of(rng, 3, 3, 64, 64)
    b = (0.8 * a + 0.2 * bytes_of(rng, 3, 3, 64, 64)).to(torch.uint8)

    singly = torch.cat([ms_ssim(b[i : i + 1], a[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(ms_ssim(a, b), singly)


@pytest.mark.parametrize("shape", [(180, 176), (99, 67), (48, 35), (16, 16)])
def test_ms_ssim_agrees_with_a_reference_also_where_sizes_are_odd_or_small(rng, shape):
    """The window shrinks with the image, even sizes included; an odd last row repeats."""
    a = rng.randint(0, 256, size=shape).astype(np.uint8)
    b = (0.7 * a + 0.3 * rng.randint(0, 256, size=shape)).astype(np.uint8)

    value = ms_ssim(*(torch.from_numpy(x)[None, None] for x in (a, b)))
    assert float(value) == pytest.approx(reference_ms_ssim(a, b), rel=1e-9)


def reference_ms_ssim(a, b):
    x, y = a.astype(np.float64), b.astype(np.float64)
    weights = ms_ssim_module.WEIGHTS
    terms = []
    for _ in weights:
        size = min(11, *x.shape)
        kernel = np.outer(*[scipy.signal.windows.gaussian(size, size * 1.5 / 11)] * 2)
        kernel /= kernel.sum()

        def blur(z, kernel=kernel):
            return scipy.signal.convolve2d(z, kernel, mode="valid")

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        cs = (2 * cov + 58.5225) / (vx + vy + 58.5225)
        terms.append((cs * (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025), cs))
        half = np.ones((2, 2)) / 4
        x, y = (scipy.ndimage.convolve(z, half, mode="reflect")[::2, ::2] for z in (x, y))
    factors = [cs.mean() for _, cs in terms[:-1]] + [terms[-1][0].mean()]
    return math.prod(max(f, 0) ** w for f, w in zip(factors, weights, strict=True))


def test_images_too_small_for_five_scales_are_refused(rng):
    with pytest.raises(ValueError, match="8 x 32 px; MS-SSIM halves them 4 times"):
        ms_ssim(bytes_of(rng, 1, 3, 8, 32), bytes_of(rng, 1, 3, 8, 32))
