"""Seeds to pictures."""

import json

import numpy as np
import pytest
import torch

from stylegan.networks.stylegan import Generator, GeneratorConfig
from stylegan.sample import (
    build,
    describe,
    latents,
    sample,
    style_layers,
    styles,
)


@pytest.fixture(scope="module")
def Gs():
    """8 layers, with noise and a mean w that matter."""
    config = GeneratorConfig(
        resolution=32, fmap_base=64, fmap_max=8, z_size=8, w_size=8, mapping_width=8
    )
    Gs = Generator(config, seed=1).eval()
    with torch.no_grad():
        Gs.w_avg.normal_(generator=torch.Generator().manual_seed(1))
        for name, parameter in Gs.named_parameters():
            if "noise" in name:
                parameter.fill_(0.3)
    return Gs


def test_a_seed_is_the_latent_of_the_official_tools():
    """NumPy keeps this stream (NEP 19), so these digits are for good."""
    z = latents([0, 5], 3)
    np.testing.assert_allclose(z[0], [1.7640524, 0.4001572, 0.978738], rtol=1e-6)
    np.testing.assert_allclose(z[1], [0.44122750, -0.33087015, 2.4307711], rtol=1e-6)


@pytest.mark.parametrize("noise", ["fixed", "random"])
def test_an_image_depends_on_its_seed_alone(Gs, noise):
    together = sample(Gs, [7, 3, 11, 4, 0], psi=0.7, noise=noise, batch=3)
    alone = sample(Gs, [4], psi=0.7, noise=noise)

    assert together.shape == (5, 3, 32, 32)
    # Another batch size may round another way.
    assert (together[3].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])


def test_keyed_noise_differs_from_seed_to_seed_and_stored_noise_does_not(Gs):
    """At psi = 0 the style is the same in all images."""
    stored = sample(Gs, [1, 2], psi=0, noise="fixed")
    keyed = sample(Gs, [1, 2], psi=0, noise="random")

    assert torch.equal(stored[0], stored[1])
    assert not torch.equal(keyed[0], keyed[1])


def test_truncation_reaches_all_layers_or_those_before_the_cutoff(Gs):
    full, half = styles(Gs, [1], psi=0), styles(Gs, [1], psi=0, cutoff=3)

    assert torch.equal(full, Gs.w_avg.expand(1, 8, -1))
    assert torch.equal(half[:, :3], full[:, :3])
    assert torch.equal(half[:, 3:], styles(Gs, [1])[:, 3:])


def test_a_network_that_still_grows_is_sampled_at_its_level(Gs):
    assert sample(Gs, [1], lod=1.5).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; choose from 0"):
        latents([0, seed], 4)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("coarse", range(4)), ("middle", range(4, 8)), ("2-5", range(2, 6)), ("7", range(7, 8))],
)
def test_layers_have_names_and_numbers(Gs, name, layers):
    assert style_layers(Gs, name) == layers


@pytest.mark.parametrize("name", ["fine", "8", "5-2", "all", "0-8", ""])
def test_layers_a_network_does_not_have_are_refused_with_those_it_has(Gs, name):
    with pytest.raises(ValueError, match="32 px has layers 0 to 7; choose coarse, middle or numb"):
        style_layers(Gs, name)


def test_a_generator_is_rebuilt_from_its_description_and_tensors(Gs):
    network = json.loads(json.dumps(describe(Gs.config)))
    again = build(network, Gs.state_dict())

    assert again.config == Gs.config
    assert torch.equal(sample(again, [3]), sample(Gs, [3]))


def test_what_does_not_fit_the_description_is_refused(Gs):
    tensors = Gs.state_dict()
    tensors.pop("w_avg")
    with pytest.raises(ValueError, match="w_avg"):
        build(describe(Gs.config), tensors)
    with pytest.raises(ValueError, match="kind 'stylegan9'; this version builds"):
        build({"G": {"kind": "stylegan9"}}, {})
