"""Numbers by which one sees whether a generator is well."""

import math

import pytest
import torch

from stylegan import diagnosis
from stylegan.networks import dcgan, stylegan2
from stylegan.resample import blocky_up
from tests import generators


def test_octaves_of_a_sum_of_octaves_are_its_parts_and_add_up_to_the_variance():
    coarse = torch.tensor([1.0, -1.0]).repeat(8).reshape(1, 1, 4, 4)
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    images = 0.5 * blocky_up(coarse, 4) + 0.25 * checks + 7

    found = diagnosis.octaves(images)

    assert found == pytest.approx({4: 0.5, 8: 0.0, 16: 0.25})
    some = torch.randn(3, 2, 32, 32)
    within = (some - some.mean(dim=(2, 3), keepdim=True)).square().mean()
    total = math.fsum(value**2 for value in diagnosis.octaves(some).values())
    assert total == pytest.approx(float(within))


def test_what_each_to_rgb_adds_is_what_is_missing_without_it():
    config = stylegan2.GeneratorConfig(resolution=16, fmap_base=32, fmap_max=8, w_size=8, z_size=8)
    Gs = stylegan2.Generator(config, seed=1).eval()
    ws = Gs.broadcast(torch.randn(4, 8))
    for rgb in Gs.synthesis.to_rgb.values():
        torch.nn.init.zeros_(rgb.bias)

    found = diagnosis.rgb_contributions(Gs, ws)

    with torch.no_grad():
        whole = Gs.synthesis(ws)
        torch.nn.init.zeros_(Gs.synthesis.to_rgb["16"].weight)
        without = Gs.synthesis(ws)
    assert list(found) == [4, 8, 16]
    assert found[16] == pytest.approx(float((whole - without).std()), rel=1e-5)
    assert diagnosis.rgb_contributions(generators.generator(), torch.zeros(1, 8, 8)) == {}


def test_a_droplet_stands_out_of_the_norms_of_its_resolution():
    Gs = generators.generator()
    ws = Gs.broadcast(torch.randn(2, 8))
    before = diagnosis.feature_norms(Gs, ws)

    def spoil(_module, _inputs, features):
        features = features.clone()
        features[:, :, 5, 3] *= 100
        return features

    with Gs.synthesis.blocks["16"].register_forward_hook(spoil, prepend=True):
        after = diagnosis.feature_norms(Gs, ws)

    assert list(after) == [4, 8, 16, 32]
    assert after[16].shape == (2, 16, 16)
    assert torch.equal(before[8], after[8])
    assert after[16].median() == pytest.approx(1.0, rel=0.05)
    assert before[16].amax() < 10 < after[16][:, 5, 3].amin()
    network = dcgan.Generator(dcgan.GeneratorConfig(resolution=64, max_width=8), seed=0)
    assert diagnosis.feature_norms(network, network.broadcast(torch.zeros(1, 100))) == {}


def test_components_are_the_axes_along_which_w_was_made_to_vary():
    rng = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    scales = torch.tensor([4.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    w = torch.randn(5000, 6, generator=rng) * scales @ axes + 3

    found = diagnosis.components(w, count=2)

    assert found.directions.mul(axes[:2]).sum(dim=1).abs().amin() > 0.999
    torch.testing.assert_close(found.stddevs, scales[:2], rtol=0.05, atol=0)
    torch.testing.assert_close(found.shares, torch.tensor([16 / 21, 4 / 21]), rtol=0.05, atol=0)
    torch.testing.assert_close(found.project(w).std(dim=0), found.stddevs, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="2 components of 2 latents; take more"):
        diagnosis.components(w[:2], count=2)
