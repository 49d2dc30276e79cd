"""Truncation, stochastic variation, films and the sheet of all figures."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import animation
from pipeline.bundle import Bundle
from pipeline.generate import figures, interpolate, noise, truncation
from pipeline.model import Model
from stylegan import sample
from tests import generators
from tests.networks import networks

CELL, MARGIN = 96, 2


@pytest.fixture(scope="module")
def model():
    """Its noise matters."""
    model = Model(generators.bundle())
    with torch.no_grad():
        for name, parameter in model.Gs.named_parameters():
            if "noise" in name:
                parameter.fill_(0.3)
    return model


def of_kind(name) -> Model:
    G, _ = networks(name)
    network = sample.describe(G.config)
    return Model(Bundle(tensors=G.state_dict(), network=network, lineage={}))


def cell(picture, row, column):
    """Pixels of a table's image of 32 px, where the last row alone has labels."""
    y, x = (MARGIN + place * (CELL + MARGIN) for place in (row, column))
    return np.asarray(picture)[y : y + CELL : 3, x : x + CELL : 3].astype(int)


def test_truncation_goes_from_the_image_through_the_mean_to_its_opposite(model):
    picture = truncation.table(model, [3, 5], psis=(1, 0, -1))
    for row, seed in enumerate([3, 5]):
        for column, psi in enumerate((1, 0, -1)):
            (image,) = sample.sample(model.Gs, [seed], psi=psi)
            expected = image.permute(1, 2, 0).numpy()
            assert np.abs(cell(picture, row, column) - expected).max() <= 1
    assert (cell(picture, 0, 1) == cell(picture, 1, 1)).all()


def test_the_deviation_is_that_of_the_pixels_over_drawn_noise(model):
    ws = model.styles([4])
    shown, deviation = noise.variation(model, ws, seed=4, count=11)
    maps = [sample.noise_inputs(model.Gs, [4], "random", variation=i) for i in range(11)]
    drawn = torch.cat([model.synthesis(ws, noise=m) for m in maps])
    expected = sample.to_uint8(drawn).double().std(dim=0, unbiased=False).mean(dim=0)

    assert expected.max() > 3
    torch.testing.assert_close(deviation[0], expected, rtol=0, atol=0.5)
    assert len(shown) == 3
    assert not torch.equal(shown[0], shown[1])


def test_noise_in_some_layers_alone_is_none_in_the_others(model):
    ws = model.styles([4])
    everywhere, nowhere, fine, coarse = noise.by_layers(model, ws, seed=4)
    maps = sample.noise_inputs(model.Gs, [4], "random")
    by_hand = [
        *(model.synthesis(ws, noise=n, noise_seeds=[4]) for n in ("random", "none")),
        model.synthesis(ws, noise=[m * (m.shape[2] >= 16) for m in maps]),
        model.synthesis(ws, noise=[m * (m.shape[2] < 16) for m in maps]),
    ]
    for image, expected in zip((everywhere, nowhere, fine, coarse), by_hand, strict=True):
        assert (image.int() - sample.to_uint8(expected)[0].int()).abs().max() <= 1
    assert noise.layer_names(model)[2:] == ["noise at 16-32 px", "noise at 4-8 px"]
    assert noise.first_fine([4, 8, 8, 16, 16, 32, 64, 128, 256, 512, 1024, 1024]) == 64
    with pytest.raises(ValueError, match="count is 1; a deviation takes 2 images or more"):
        noise.table(model, [0], count=1)


def test_a_path_in_w_is_closed_and_goes_along_lines(model):
    ws = interpolate.path(model, [1, 2], frames=4)
    a, b = model.styles([1, 2])

    assert len(ws) == 8
    torch.testing.assert_close(ws[[0, 2, 4, 6]], torch.stack([a, (a + b) / 2, b, (a + b) / 2]))
    steps = (ws - ws.roll(1, dims=0)).flatten(1).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(8))


@pytest.mark.parametrize("name", ["gan", "stylegan"])
def test_a_path_in_z_meets_its_seeds_and_keeps_the_length_of_z(name):
    model = of_kind(name)
    ws = interpolate.path(model, [1, 2, 3], space="z", frames=3)
    torch.testing.assert_close(ws[::3], model.styles([1, 2, 3]), rtol=1e-4, atol=1e-5)

    a, b = model.z([1]), model.z([2])
    lengths = interpolate._great_circle(a, b, torch.tensor([[0.0], [0.5], [1.0]])).norm(dim=1)
    middle = (a.norm() + b.norm()) / 2
    torch.testing.assert_close(lengths, torch.stack([a.norm(), middle, b.norm()]))
    with pytest.raises(ValueError, match="a path goes through 2 or more"):
        interpolate.path(model, [1])


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_film_holds_all_frames_and_begins_again(tmp_path, suffix):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (9, 9, 9)]
    frames = [animation.enlarged(Image.new("RGB", (32, 32), colour)) for colour in colours]
    path = animation.write(iter(frames), tmp_path / "deep" / f"film.{suffix}", fps=20)

    with Image.open(path) as film:
        assert (film.n_frames, film.info["loop"], film.size) == (4, 0, (256, 256))
        for number, colour in enumerate(colours):
            film.seek(number)
            assert np.abs(np.asarray(film.convert("RGB"))[9, 9].astype(int) - colour).max() < 9
            assert film.info["duration"] == 50


def test_an_mp4_is_written_by_ffmpeg_and_refused_without_it(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (64, 64), (60 * number, 0, 0)) for number in range(4)]
    there = shutil.which("ffmpeg") is not None
    assert there or os.environ.get("CI") != "true", "the tests of CI have ffmpeg"
    if there:
        content = animation.write(frames, tmp_path / "film.mp4").read_bytes()
        assert content[4:8] == b"ftyp"
        with pytest.raises(animation.NoFfmpegError, match="ffmpeg refuses: "):
            animation.write([Image.new("RGB", (63, 63))], tmp_path / "odd.mp4")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(animation.NoFfmpegError, match="which is not installed"):
        animation.write(frames, tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="is no film; let its name end with"):
        animation.write(frames, tmp_path / "film.avi")


def test_the_sheet_needs_no_other_file_and_says_what_is_left_out(model):
    drawn = figures.draw(model)
    page = figures.as_html("a <model>", drawn)
    sources = re.findall(r'src="([^"]*)"', page)

    assert [f.title for f in drawn if f.reason] == []
    assert len(sources) == 7 == len(drawn)
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "<title>a &lt;model&gt;</title>" in page

    reasons = {f.title: f.reason for f in figures.draw(of_kind("gan"), film=False)}
    assert reasons["Samples"] == reasons["Latent arithmetic"] == ""
    assert "no styles to mix" in reasons["Style mixing"]
    assert "no noise inputs" in reasons["Stochastic variation"]
    assert "no w to draw towards its mean" in reasons["Truncation"]
