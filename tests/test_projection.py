"""Images to latents: the parts in closed form, and generated images found again."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import align
from pipeline import bundle as bundles
from pipeline import weights
from pipeline.bundle import Bundle
from pipeline.generate import project as command
from pipeline.generate.__main__ import main
from pipeline.model import Model
from stylegan import sample
from stylegan.draws import Draws, Purpose
from stylegan.metrics.lpips import LPIPS
from stylegan.networks.stylegan import Generator, GeneratorConfig
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
    """16 px, in the range of images; its noise matters a little, its w and constant far more."""
    config = GeneratorConfig(
        resolution=16, fmap_base=256, fmap_max=16, z_size=8, w_size=8, mapping_width=8
    )
    Gs = Generator(config, seed=1).eval().requires_grad_(requires_grad=False)
    for name, parameter in Gs.named_parameters():
        if "noise" in name:
            parameter.fill_(0.02)
    Gs.synthesis.blocks["4"].const.normal_(generator=torch.Generator().manual_seed(0))
    Gs.w_avg.copy_(latent_statistics(Gs, Draws(seed=1), 2000)[0])
    scale = 0.35 / float(Gs.synthesis(sample.styles(Gs, range(16))).std())
    for parameter in Gs.synthesis.to_rgb.parameters():
        parameter.mul_(scale)
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


def test_a_generated_image_is_found_again_whatever_is_projected_beside_it(Gs, lpips):
    targets = sample.sample(Gs, [1, 2], psi=0.7)
    first: list[torch.Tensor] = []
    config = ProjectionConfig(steps=50)
    found = project(
        Gs, targets, lpips=lpips, config=config, watch=lambda step, images: first.append(images)
    )

    start = sample.to_uint8(first[0])
    assert len(first) == 50
    assert (lpips(start.float(), targets.float()) > 0.08).all()
    assert (found.lpips < 0.02).all(), found.lpips
    assert (found.psnr > psnr(start, targets) + 10).all()
    torch.testing.assert_close(found.ws, found.ws[:, :1].expand(-1, 6, -1))
    again = sample.to_uint8(Gs.synthesis(found.ws, noise=found.noise))
    assert torch.equal(again, found.images)
    for layer in found.noise:
        torch.testing.assert_close(layer.mean(dim=(1, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.square().mean(dim=(1, 2, 3)), torch.ones(2))


def test_images_of_a_batch_know_nothing_of_each_other(Gs, lpips):
    targets = sample.sample(Gs, [1, 2], psi=0.7)
    config = ProjectionConfig(space="w+", steps=4, mean_latents=100)
    together = project(Gs, targets, lpips=lpips, config=config)
    alone = project(Gs, targets[1:], lpips=lpips, config=config)
    again = project(Gs, targets[1:], lpips=lpips, config=config)

    torch.testing.assert_close(together.ws[1:], alone.ws, rtol=1e-3, atol=1e-3)
    assert torch.equal(alone.ws, again.ws)
    assert torch.equal(alone.images, again.images)
    assert not torch.equal(alone.ws[:, 0], alone.ws[:, 1]), "each layer has its own w"


def test_what_cannot_be_projected_is_said_in_a_sentence(Gs, lpips):
    target = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a network of kind dcgan has none; take one of kind sty"):
        project(networks("dcgan")[0], target, lpips=lpips)
    with pytest.raises(ValueError, match=r"images are \(1, 3, 32, 32\), but the network makes \[n"):
        project(Gs, target, lpips=lpips)
    with pytest.raises(ValueError, match="steps of a projection is 0; choose 1 or more"):
        ProjectionConfig(steps=0)
    with pytest.raises(ValueError, match="noise_weight of a projection is -1"):
        ProjectionConfig(noise_weight=-1)


def test_the_command_writes_arrays_images_film_and_report(tmp_path, capsys):
    bundle = generators.bundle()
    bundles.write(bundle, tmp_path / "model", grid=Image.new("RGB", (8, 8)))
    model = Model(bundle)
    model.to_pil(model.sample([1]))[0].save(tmp_path / "square.png")
    Image.new("RGB", (90, 64), (200, 30, 30)).save(tmp_path / "wide.jpg")
    landmarks = tmp_path / "landmarks.json"
    landmarks.write_text(json.dumps({"wide.jpg": _landmarks(at=(30, 30))}))
    pictures = [str(tmp_path / name) for name in ("square.png", "wide.jpg")]
    out = tmp_path / "out"
    options = ["--model", str(tmp_path / "model"), "--landmarks", str(landmarks)]

    argv = ["project", *pictures, *options, "--steps", "3", "--batch", "1", "--out", str(out)]
    assert main(argv) == 0

    names = {path.name for path in out.iterdir()}
    assert names == {
        *("000-square.png", "001-wide.png", "comparison.png"),
        *("film.webp", "projected.npz", "report.json"),
    }
    report = json.loads((out / "report.json").read_text())
    square, wide = report["pictures"]
    assert square["notes"] == [f"no face: {landmarks} does not list it"]
    assert wide["notes"][0].startswith("its face lies ")
    assert wide["notes"][1] == "cut to its middle square"
    assert wide["face_offset"] > 0.1
    assert min(square["lpips"], wide["lpips"], square["psnr_db"]) > 0
    with Image.open(out / "film.webp") as film:
        assert film.n_frames == 4
    with np.load(out / "projected.npz") as arrays:
        ws = torch.from_numpy(arrays["w"])
        maps = [torch.from_numpy(arrays[f"noise{i}"]) for i in range(8)]
    with Image.open(out / "001-wide.png") as image:
        pixels = np.asarray(image).astype(int)
    expected = model.to_pil(model.synthesis(ws, noise=maps))[1]
    assert np.abs(pixels - np.asarray(expected)).max() <= 1

    terms = ["--plus", str(out / "projected.npz"), "--minus", "1", "--plus", "2"]
    sum_of = ["arithmetic", "--model", str(tmp_path / "model"), *terms]
    assert main([*sum_of, "--out", str(tmp_path / "sum.png")]) == 0
    capsys.readouterr()
    assert main([*sum_of, "--space", "z", "--out", str(tmp_path / "sum.png")]) == 2
    assert "holds w, not z; choose --space w" in capsys.readouterr().err
    assert main(["project", str(landmarks), *options[:2], "--out", str(out)]) == 2
    assert "is no picture that can be read" in capsys.readouterr().err
    assert main(["project", pictures[0], *options, "--align", "--out", str(out)]) == 2
    assert "square.png cannot be aligned: no face" in capsys.readouterr().err


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
