"""Sliced Wasserstein distance: closed forms."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from stylegan.metrics.swd import (
    draw_directions,
    laplacian_pyramid,
    normalize,
    num_levels,
    patches,
    sliced_wasserstein,
    swd,
)
from tests.random_arrays import bytes_of, normal


@pytest.mark.parametrize(("side", "levels"), [(1024, 7), (64, 3), (16, 1), (8, 1)])
def test_pyramids_end_at_16_px(side, levels):
    assert num_levels(side) == levels


def test_a_pyramid_of_one_colour_is_zero_but_for_its_coarsest_level():
    """The filter sums to 1 wherever it lies, mirrored border included, in both directions."""
    *fine, coarse = laplacian_pyramid(torch.full((2, 3, 32, 16), 80.0), 3)

    assert [level.shape for level in fine] == [(2, 3, 32, 16), (2, 3, 16, 8)]
    assert all((level == 0).all() for level in fine)
    assert coarse.shape == (2, 3, 8, 4)
    assert (coarse == 80).all()


def test_a_pyramid_keeps_what_its_coarser_level_cannot_say(rng):
    """Independent reference: scipy's filter with the border mirrored."""
    image = rng.rand(24, 16).astype(np.float32)
    line = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(line, line)
    coarse = scipy.ndimage.convolve(image, kernel, mode="mirror")[::2, ::2]
    sparse = np.zeros_like(image)
    sparse[::2, ::2] = coarse
    enlarged = scipy.ndimage.convolve(sparse, 4 * kernel, mode="mirror")

    fine, last = laplacian_pyramid(torch.from_numpy(image)[None, None], 2)
    np.testing.assert_allclose(last[0, 0], coarse, atol=1e-6)
    np.testing.assert_allclose(fine[0, 0], image - enlarged, atol=1e-6)


def test_patches_lie_within_their_image_and_on_their_side(rng):
    """A pixel's value says where it is."""
    n, h, w = 3, 10, 12
    images = torch.arange(n * h * w).reshape(n, 1, h, w).to(torch.uint8)
    (found,) = patches(images, rng, levels=1, count=40, side=3)

    assert found.shape == (n * 40, 1, 3, 3)
    for number, patch in enumerate(found[:, 0].long() - images[:1, 0, :1, :1].long()):
        start = int(patch[0, 0])
        assert patch.T.tolist() == [
            [(start + row * w + column) % 256 for column in range(3)] for row in range(3)
        ], number


def test_equal_seeds_give_equal_patches_and_others_do_not(rng):
    images = bytes_of(rng, 2, 3, 32, 32)
    a, b, c = (patches(images, np.random.RandomState(seed), levels=2) for seed in (1, 1, 2))

    assert [level.shape for level in a] == [(256, 3, 7, 7)] * 2
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


def test_normalized_channels_have_mean_0_and_variance_1(rng):
    values = normalize(3 * normal(rng, 200, 2, 7, 7) + 50).reshape(200, 2, 49)

    torch.testing.assert_close(values.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2), correction=0), torch.ones(2))
    with pytest.raises(ValueError, match="the same in all 5 patches"):
        normalize(torch.ones(5, 3, 7, 7))


def test_the_sliced_distance_of_a_shifted_set_is_its_shift_along_each_direction(rng):
    a, shift = normal(rng, 64, 6), normal(rng, 6)
    directions = draw_directions(rng, 6, 10)
    shifted = (a + shift)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]

    torch.testing.assert_close(directions.norm(dim=0), torch.ones(10))
    expected = float((shift @ directions).abs().mean())
    assert sliced_wasserstein(a, shifted, directions) == pytest.approx(expected, rel=1e-5)


def test_swd_is_zero_for_the_same_patches_and_grows_with_difference(rng):
    images = bytes_of(rng, 4, 3, 32, 32)
    a, same, other = (
        patches(x, np.random.RandomState(5), levels=2) for x in (images, images, images // 2 + 90)
    )
    flat = patches(
        bytes_of(rng, 4, 3, 1, 1).expand(-1, -1, 32, 32) // 2 + images // 9, rng, levels=2
    )

    assert swd(a, same, rng) == [0, 0]
    # Channels are normalized: contrast and brightness do not count, structure does.
    assert max(swd(a, other, rng)) < 0.02 < min(swd(a, flat, rng))


def test_patches_that_do_not_fit_are_refused(rng):
    with pytest.raises(ValueError, match="patches of 7 px do not fit into a level of 4 x 4 px"):
        patches(bytes_of(rng, 1, 3, 8, 8), rng, levels=2)
    with pytest.raises(ValueError, match="patches of 4 px"):
        patches(bytes_of(rng, 1, 3, 8, 8), rng, levels=1, side=4)
