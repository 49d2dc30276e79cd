"""Images to latents: the parts in closed form, and generated images found again."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import align
from pipeline import weights
from pipeline.bundle import Bundle
from pipeline.generate import project as command
from pipeline.model import Model
from stylegan import sample
from stylegan.draws import Draws, Purpose
from stylegan.metrics.lpips import LPIPS
from stylegan.projection import (
    ProjectionConfig,
    autocorrelation,
    latent_statistics,
    project,
    psnr,
    ramp,
)
from tests import generators
from tests.networks import networks


@pytest.fixture(scope="module")
def lpips():
    return LPIPS(weights.load("lpips-vgg16"), net="vgg16")


@pytest.fixture(scope="module")
def Gs():
    """32 px, with noise that matters a little."""
    Gs = generators.generator().requires_grad_(requires_grad=False)
    for name, parameter in Gs.named_parameters():
        if "noise" in name:
            parameter.fill_(0.02)
    return Gs


def test_autocorrelation_of_constant_and_of_checkered_noise():
    """Constant 1 at 16 px: 1 along each axis, and 2 * 2 = 4 at 8 px: 2 + 2 * 16; -1 next to 1."""
    constant = torch.ones(1, 1, 16, 16)
    assert float(autocorrelation([constant])) == 2 + 2 * 16
    checkered = torch.ones(2, 1, 4, 4)
    checkered[:, :, ::2, ::2] = checkered[:, :, 1::2, 1::2] = -1
    assert float(autocorrelation([checkered])) == 2 * 2
    white = Draws(seed=0).noise(Purpose.NOISE, indices=torch.arange(1), sides=[64])
    assert 0 < float(autocorrelation(white)) < 0.3
    assert float(autocorrelation([])) == 0


def test_the_learning_rate_rises_along_a_line_and_falls_along_a_cosine():
    config = ProjectionConfig()
    found = [ramp(t, config) for t in (0, 0.025, 0.05, 0.75, 0.875, 1)]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1, 0.5, 0], atol=1e-12)


def test_mean_and_deviation_of_w_are_those_of_many_latents(Gs):
    mean, deviation = latent_statistics(Gs, Draws(seed=0), 4000)
    z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    w = Gs.mapping(z)
    torch.testing.assert_close(mean, w.mean(dim=0), rtol=0, atol=4 * deviation / math.sqrt(4000))
    assert abs(deviation / float((w - w.mean(dim=0)).norm(dim=1).square().mean().sqrt()) - 1) < 0.1


def test_psnr_is_that_of_its_definition():
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[0] += 51
    found = psnr(a, b)
    assert float(found[0]) == pytest.approx(20 * math.log10(5))
    assert found[1] == math.inf


def test_squared_distances_of_embeddings_are_lpips_and_have_gradients(lpips):
    a = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    b = a.flip(0).clone()
    b[1] = 0
    distances = (lpips.embed(a) - lpips.embed(b)).square().sum(dim=1)
    torch.testing.assert_close(distances, lpips(a, b), rtol=1e-4, atol=1e-6)

    b.requires_grad_()
    (lpips.embed(b) - lpips.embed(a)).square().sum().backward()
    assert b.grad.isfinite().all()
    assert b.grad.abs().sum() > 0


def test_what_cannot_be_projected_is_said_in_a_sentence(Gs, lpips):
    target = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a network of kind dcgan has none; take one of kind sty"):
        project(networks("dcgan")[0], target, lpips=lpips)
    with pytest.raises(ValueError, match=r"images are \(1, 3, 16, 16\), but the network makes \[n"):
        project(Gs, target, lpips=lpips)
    with pytest.raises(ValueError, match="steps of a projection is 0; choose 1 or more"):
        ProjectionConfig(steps=0)
    with pytest.raises(ValueError, match="noise_weight of a projection is -1"):
        ProjectionConfig(noise_weight=-1)


def _landmarks(*, at):
    """68 points of a face whose crop has a side of 64 px and this centre."""
    x, y = at
    points = np.full((68, 2), (x, y), float)
    points[36:42], points[42:48] = (x - 8, y - 1.6), (x + 8, y - 1.6)
    points[48], points[54] = (x - 6, y + 14.4), (x + 6, y + 14.4)
    return points.tolist()


def test_the_offset_of_a_face_is_how_far_its_crop_lies_from_the_picture():
    centred = align.face_points(_landmarks(at=(31.5, 31.5)))
    moved = align.face_points(_landmarks(at=(31.5 + 16 + 6.4, 31.5)))
    assert command.face_offset(centred, (64, 64)) == pytest.approx(0, abs=1e-9)
    assert command.face_offset(moved, (96, 64)) == pytest.approx(0.1)


def test_pictures_become_targets_by_their_middle_square():
    picture = Image.new("RGB", (96, 32), (0, 0, 0))
    picture.paste((255, 0, 0), (32, 0, 64, 32))
    G, _ = networks("stylegan")
    model = Model(Bundle(tensors=G.state_dict(), network=sample.describe(G.config), lineage={}))
    target = model.to_bytes(picture)
    assert target.shape == (1, 3, 16, 16)
    assert (target[:, 0] == 255).all()
    assert (target[:, 1:] == 0).all()
