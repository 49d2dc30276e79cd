"""Inception-v3 of 2015-12-05: conventions by closed form, numbers against the recorded network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline import weights
from stylegan.metrics.inception import (
    BATCH_NORM_EPS,
    InceptionV3,
    _layers,
    fold_batch_norm,
)
from stylegan.metrics.inception_input import resize_tf1
from stylegan.metrics.inception_names import from_torchscript

REFERENCE = Path(__file__).parent / "data" / "inception_reference.npz"
"""Features that the network's own TorchScript edition gave for `image(seed, size)`, resized in
float64 by the formula in `test_resize_...`; features of 6 images."""


def image(seed, height, width):
    """A coarse mosaic with noise on it, uint8 [3, h, w], from NumPy's frozen generator."""
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 256, (3, 5, 5))
    fine = rng.randint(-32, 33, (3, height, width))
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
    return np.clip(coarse[:, rows][:, :, columns] + fine, 0, 255).astype(np.uint8)


def real_tensors():
    """The canonical weights, which `make test` fetches; the error without them says so."""
    return weights.load("inception-2015-12-05")


def random_tensors():
    """Weights of the right shapes that keep the size of activations."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, value in _layers().state_dict().items():
        if name.endswith(".weight"):
            std = (2 / value[0].numel()) ** 0.5
            tensors[name] = torch.randn(value.shape, generator=generator) * std
        else:
            stem = name.removesuffix(".bias")
            for part, content in (("beta", 0.1), ("mean", 0.0), ("var", 1.0)):
                tensors[f"{stem}.{part}"] = torch.full(value.shape, content)
    return tensors


@pytest.fixture(scope="module")
def random_network():
    return InceptionV3(random_tensors())


@pytest.fixture(scope="module")
def real_network():
    return InceptionV3(real_tensors())


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as file:
        return {name: file[name] for name in file.files}


def test_features_equal_those_of_the_recorded_network(real_network, reference):
    for seed, size, expected in zip(
        *map(reference.get, ("seeds", "sizes", "features")), strict=True
    ):
        features = real_network(torch.from_numpy(image(seed, *size))[None])[0]

        np.testing.assert_allclose(features, expected, atol=2e-5 * expected.max())


def test_bfloat16_moves_features_by_a_few_percent_at_most(reference):
    network = InceptionV3(real_tensors(), dtype=torch.bfloat16)
    size, seed, expected = (reference[k][2] for k in ("sizes", "seeds", "features"))

    features = network(torch.from_numpy(image(seed, *size))[None])

    assert features.dtype == torch.float32
    assert 1e-4 < np.linalg.norm(features[0].numpy() - expected) / np.linalg.norm(expected) < 0.05


def test_gray_images_are_repeated_to_three_channels(random_network):
    gray = torch.from_numpy(image(1, 40, 32))[None, :1]

    assert torch.equal(random_network(gray), random_network(gray.repeat(1, 3, 1, 1)))


def test_features_do_not_depend_on_the_rest_of_the_batch(random_network):
    images = torch.stack([torch.from_numpy(image(seed, 16, 16)) for seed in (1, 2, 3)])

    together = random_network(images)

    assert together.shape == (3, 2048)
    assert not together.requires_grad
    torch.testing.assert_close(together[1:2], random_network(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (1, 3, 8, 7), (1, 4, 16, 16)])
def test_images_too_small_or_of_other_channels_are_refused(random_network, shape):
    with pytest.raises(ValueError, match=r"images are .*takes \[n, 3 or 1, h, w\]"):
        random_network(torch.zeros(shape, dtype=torch.uint8))


def test_the_network_has_94_convolutions_and_each_of_their_tensors_is_needed():
    tensors = random_tensors()
    assert len(tensors) == 94 * 4

    with pytest.raises(ValueError, match=r"mixed\.conv\.mean is missing"):
        InceptionV3({k: v for k, v in tensors.items() if k != "mixed.conv.mean"})
    with pytest.raises(ValueError, match=r"not the weights of Inception.*conv_1"):
        InceptionV3({k: v for k, v in tensors.items() if not k.startswith("conv_1.")})
    with pytest.raises(ValueError, match=r"not the weights of Inception.*mixed_4"):
        InceptionV3({**tensors, "mixed_4.conv.weight": torch.zeros(192, 768, 3, 3)})


def test_names_of_the_torchscript_edition_lose_their_prefix():
    value = torch.zeros(1)

    assert from_torchscript({"net.layers.mixed.conv.beta": value}) == {"mixed.conv.beta": value}


def test_folded_weights_do_what_convolution_and_batch_norm_do():
    torch.manual_seed(0)
    weight, beta, mean = torch.randn(5, 3, 1, 7), torch.randn(5), torch.randn(5)
    var, x = torch.rand(5) + 1e-3, torch.randn(2, 3, 9, 9)
    named = {"c.weight": weight, "c.beta": beta, "c.mean": mean, "c.var": var}

    folded = fold_batch_norm(named)

    expected = F.batch_norm(
        F.conv2d(x, weight), mean, var, weight=None, bias=beta, eps=BATCH_NORM_EPS
    )
    actual = F.conv2d(x, folded["c.weight"].float(), folded["c.bias"].float())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8, 64, 299, 500])
def test_resize_of_a_ramp_is_a_ramp_that_stops_at_the_last_pixel(size):
    """Pixel i shows position i * size / 299: TF 1 has no half-pixel shift; it clamps at the end."""
    ramp = torch.arange(size, dtype=torch.float32)
    expected = (torch.arange(299) * size / 299).clamp(max=size - 1)

    across = resize_tf1(ramp.expand(1, 1, 20, size), 299)
    down = resize_tf1(ramp.reshape(-1, 1).expand(1, 1, size, 20), 299)

    torch.testing.assert_close(across[0, 0, 7], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(down[0, 0, :, 7], expected, rtol=0, atol=1e-4)


def test_resize_does_not_average_when_it_shrinks():
    """Every second pixel survives untouched: the filter that later libraries add is not there."""
    images = torch.from_numpy(image(3, 598, 598)).float()[None]

    assert torch.equal(resize_tf1(images, 299), images[:, :, ::2, ::2])
