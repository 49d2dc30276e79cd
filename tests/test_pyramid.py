"""The levels of a data set: those of the official exporter, bit for bit."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.pyramid import encode, encoding, pyramid, resolutions
from tests import goldens


def test_golden_levels_are_the_official_ones_bit_for_bit():
    arrays = goldens.arrays("F2_tfrecord_levels")
    for number, image in enumerate(arrays["in/u8"]):
        levels = pyramid(image.transpose(1, 2, 0))

        assert [level.shape[0] for level in levels] == [4, 8, 16, 32, 64]
        for level in levels:
            expected = arrays[f"out/res{level.shape[0]}"][number]
            np.testing.assert_array_equal(level.transpose(2, 0, 1), expected)


def test_a_constant_image_is_constant_at_every_level():
    for level in pyramid(np.full((32, 32, 3), 200, np.uint8)):
        np.testing.assert_array_equal(level, np.full_like(level, 200))


def test_levels_are_rounded_once_half_to_even():
    """A 4 px pixel is the mean of 16: rounding at 8 px as well would give another value."""
    block = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    image = np.tile(block, (4, 4))[:, :, None].repeat(3, axis=2)

    four, eight, _ = pyramid(image)

    assert set(eight[:, :, 0].ravel()) == {0}  # 0.5 and 0, half to even
    assert set(four.ravel()) == {0}  # 0.25
    assert set(pyramid(image + 1)[1][:, :, 0].ravel()) == {1, 2}  # 1.5 goes to 2


@pytest.mark.parametrize("resolution", [4, 8, 16, 32])
def test_encoding_is_lossless(resolution):
    image = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), np.uint8)
    payload = encode(image)

    if encoding(resolution) == "npy":
        read = np.load(io.BytesIO(payload))
    else:
        read = np.asarray(Image.open(io.BytesIO(payload)))

    np.testing.assert_array_equal(read, image)
    assert encoding(resolution) == ("npy" if resolution <= 8 else "png")


@pytest.mark.parametrize("resolution", [-4, 0, 1, 2, 3, 48, 100, 1000, 2**15, 2**20])
def test_a_resolution_that_is_no_power_of_two_in_the_range_is_refused(resolution):
    with pytest.raises(
        ValueError, match=f"resolution {resolution} is not a power of two from 4 to 16384"
    ):
        resolutions(resolution)


def test_resolutions_go_from_4_px_to_the_full_one():
    assert resolutions(4) == [4]
    assert resolutions(64) == [4, 8, 16, 32, 64]
