"""Perceptual path length: closed forms."""

import math

import numpy as np
import pytest
import torch

from stylegan.metrics.ppl import (
    PathConfig,
    lerp,
    path_lengths,
    perceptual_path_length,
    slerp,
    trim,
    view,
)
from tests.random_arrays import normal


def test_slerp_goes_along_the_great_circle_at_constant_speed():
    a, b = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([[0.0, 0.5]]).double()
    for t in (0, 0.25, 0.5, 1, 1.5):
        angle = t * math.pi / 2
        expected = torch.tensor([[math.cos(angle), math.sin(angle)]]).double()
        torch.testing.assert_close(slerp(a, b, torch.tensor([[t]]).double()), expected)


def test_slerp_between_equal_directions_stays_there():
    a = torch.tensor([[2.0, 0.0, 0.0]])

    assert slerp(a, 3 * a, torch.tensor([[0.3]])).tolist() == [[1, 0, 0]]


def test_lerp_reaches_its_ends_and_goes_beyond():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])

    assert [lerp(a, b, torch.tensor([[t]])).tolist()[0] for t in (0.0, 0.5, 1.0, 2.0)] == [
        [1, 2],
        [2, 1],
        [3, 0],
        [5, -2],
    ]


def picture_of(ws):
    """w as an image: [m l 16] to [m 1 4 4]."""
    return ws[:, 0].reshape(-1, 1, 4, 4)


def squared(a, b):
    return (a - b).square().sum(dim=(1, 2, 3))


def test_path_length_in_w_of_a_linear_generator_is_the_squared_distance_of_the_ends(rng):
    """Images are in [0, 255] where the distance looks at them, so its scale is 127.5 squared."""
    z, t = normal(rng, 10, 16, dtype=np.float64), torch.from_numpy(rng.rand(5))
    lengths = path_lengths(
        z,
        t,
        mapping=lambda z, labels: z[:, None].expand(-1, 2, -1),
        synthesis=picture_of,
        distance=squared,
        config=PathConfig(space="w", crop=False),
    )

    expected = 127.5**2 * (z[0::2] - z[1::2]).square().sum(dim=1)
    torch.testing.assert_close(lengths, expected, rtol=1e-8, atol=0)


def test_path_length_in_z_of_the_identity_is_the_squared_angle_of_the_ends(rng):
    z, t = normal(rng, 10, 16, dtype=np.float64), torch.from_numpy(rng.rand(5))
    lengths = path_lengths(
        z,
        t,
        mapping=lambda z, labels: z[:, None],
        synthesis=picture_of,
        distance=squared,
        config=PathConfig(space="z", crop=False),
    )

    angle = torch.cosine_similarity(z[0::2], z[1::2]).arccos()
    torch.testing.assert_close(lengths, 127.5**2 * angle.square(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("space", ["z", "w"])
def test_both_ends_of_a_pair_have_its_label(rng, space):
    """The image is the label, so nothing moves unless ends of a pair get different ones."""
    seen = []

    def mapping(z, labels):
        seen.append(labels)
        return labels[:, None]

    lengths = path_lengths(
        normal(rng, 6, 8),
        torch.rand(3),
        mapping=mapping,
        synthesis=picture_of,
        distance=squared,
        config=PathConfig(space=space, crop=False),
        labels=torch.eye(16)[:3],
    )

    assert lengths.tolist() == [0, 0, 0]
    assert seen[0].argmax(dim=1).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("side", "crop", "size", "expected"),
    [
        (1024, True, "cropped", 256),  # StyleGAN: 512 px of face are halved
        (1024, True, "full", 128),  # StyleGAN3: a quarter, whatever is cropped
        (1024, False, "full", 256),
        (512, True, "cropped", 256),
        (512, False, "cropped", 256),
        (64, True, "cropped", 32),
    ],
)
def test_the_view_of_an_image_has_the_size_of_its_rule(side, crop, size, expected):
    images = torch.ones(1, 1, 1, 1).expand(-1, -1, side, side)
    seen = view(images, crop=crop, size=size)

    assert seen.shape == (1, 1, expected, expected)
    assert (seen == 255).all()


def test_the_mean_path_length_leaves_out_one_percent_on_either_side():
    """0 ... 199 and an outlier: 2 and 198 are the bounds, and both count."""
    lengths = torch.arange(201.0)
    lengths[200] = 1e6
    lengths = lengths[torch.randperm(201, generator=torch.Generator().manual_seed(0))]

    assert sorted(trim(lengths).tolist()) == list(range(2, 199))
    assert perceptual_path_length(lengths) == 100
    assert trim(torch.tensor([3.0])).tolist() == [3]


def test_path_lengths_that_mean_nothing_are_refused(rng):
    def measure(z, t):
        return path_lengths(
            z,
            t,
            mapping=lambda z, labels: z[:, None],
            synthesis=picture_of,
            distance=squared,
            config=PathConfig(),
        )

    with pytest.raises(ValueError, match="1 of 2 path lengths are not finite"):
        trim(torch.tensor([1.0, math.inf]))
    with pytest.raises(ValueError, match="0 of 0 path lengths"):
        trim(torch.empty(0))
    with pytest.raises(ValueError, match="5 latents for 3 pairs"):
        measure(normal(rng, 5, 16), torch.rand(3))
    with pytest.raises(ValueError, match=r"4 x 4 px; .* at least 8 px"):
        measure(normal(rng, 6, 16), torch.rand(3))
    with pytest.raises(ValueError, match=r"epsilon of the path length is 0; choose a number above"):
        PathConfig(epsilon=0)
