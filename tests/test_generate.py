"""Pictures out of everything that holds a generator."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import bundle as bundles
from pipeline import generate, grids
from pipeline.generate import parse_seeds
from pipeline.registry import register
from pipeline.tracking import Tracker, TrackingConfig
from stylegan import sample
from tests import generators

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    """A folder as `pull` leaves it."""
    folder = tmp_path_factory.mktemp("pulled")
    bundle = generators.bundle()
    images = sample.sample(bundle.generator(), range(4))
    bundles.write(bundle, folder, grid=grids.sheet(images))
    return folder


def run(*argv):
    return generate.main([str(arg) for arg in argv])


def test_images_of_seeds_are_written_one_by_one_and_as_a_grid(pulled, tmp_path, capsys):
    assert (
        run("images", "--model", pulled, "--seeds", "3,5-6", "--psi", 0.5, "--out", tmp_path) == 0
    )

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["grid.png", "seed0003.png", "seed0005.png", "seed0006.png"]
    with Image.open(tmp_path / "seed0005.png") as image:
        pixels = np.asarray(image)
    expected = sample.sample(generators.generator(), [3, 5, 6], psi=0.5)[1].permute(1, 2, 0)
    np.testing.assert_array_equal(pixels, expected)
    assert "32x32 px, 64 kimg" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["checkpoint", "run"])
def test_a_checkpoint_and_a_run_give_images_at_the_level_they_have_reached(tmp_path, what):
    generators.checkpoint(str(tmp_path / "run"), nimg=4000, lod=2.0)
    committed, _ = generators.checkpoint(str(tmp_path / "run"), nimg=8000, lod=1.0)
    model = committed.url if what == "checkpoint" else tmp_path / "run"

    assert run("images", "--model", model, "--seeds", "0", "--out", tmp_path / "out") == 0

    with Image.open(tmp_path / "out" / "seed0000.png") as image:
        assert image.size == (16, 16)


def test_a_registered_model_gives_images(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = TrackingConfig(uri=uri, system_metrics=False)
    tracker = Tracker.open(config, run_id=None, spool=tmp_path / "spool")
    tracker.finish("FINISHED")
    register(generators.bundle(), uri=uri, run_id=tracker.run_id, name="faces", alias="champion")

    out = tmp_path / "out"
    options = ("--seeds", "0-2", "--noise", "keyed", "--tracking-uri", uri, "--out", out)
    assert run("images", "--model", "models:/faces@champion", *options) == 0
    assert len(list(out.iterdir())) == 4


def test_a_mixing_grid_has_the_sources_at_its_edges(pulled, tmp_path):
    out = tmp_path / "deep" / "mixing.png"
    options = ("--rows", "0-1", "--cols", "4-6", "--layers", "middle", "--psi", 1)
    assert run("mixing", "--model", pulled, *options, "--out", out) == 0

    with Image.open(out) as image:
        pixels = np.asarray(image)
    side, margin, gap = 64, 2, 8
    cell = [margin + i * (side + margin) + (gap if i else 0) for i in range(4)]
    assert pixels.shape == (cell[2] + side + margin, cell[3] + side + margin, 3)
    assert (pixels[cell[0] : side, cell[0] : side] == 255).all(), "the corner is empty"
    Gs = generators.generator()
    b = sample.sample(Gs, [4])[0].permute(1, 2, 0).numpy()
    a = sample.sample(Gs, [1])[0].permute(1, 2, 0).numpy()
    top = pixels[cell[0] : cell[0] + side : 2, cell[1] : cell[1] + side : 2]
    left = pixels[cell[2] : cell[2] + side : 2, cell[0] : cell[0] + side : 2]
    assert np.abs(top.astype(int) - b).max() <= 1
    assert np.abs(left.astype(int) - a).max() <= 1


def test_a_network_with_labels_wants_a_class(tmp_path, capsys):
    bundle = generators.bundle(label_size=3)
    bundles.write(bundle, tmp_path, grid=Image.new("RGB", (8, 8)))
    options = ("--model", tmp_path, "--seeds", "0", "--out", tmp_path / "out")

    assert run("images", *options) == 1
    assert "3 classes; choose one with --label" in capsys.readouterr().err
    assert run("images", *options, "--label", 3) == 1
    assert (
        "label is 3, but the network has 3 classes; choose from 0 to 2" in capsys.readouterr().err
    )
    assert run("images", *options, "--label", 2) == 0
    mixing = ("mixing", "--model", tmp_path, "--label", 1, "--out", tmp_path / "mixing.png")
    assert run(*mixing) == 0


def test_a_pulled_folder_with_changed_bytes_is_refused(pulled, tmp_path, capsys):
    for path in pulled.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / bundles.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    assert run("images", "--model", tmp_path, "--out", tmp_path / "out") == 1
    assert f"{weights} was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "{empty}"], "is no model: neither a pulled folder"),
        (["--model", "models:/faces"], "write it as NAME@ALIAS"),
        (["--model", "{pulled}", "--seeds", "5-1"], "seeds are '5-1'; write numbers from 0 to"),
        (["--model", "{pulled}", "--seeds", "0-200000"], "at most 100000 images at a time"),
        (["--model", ""], "the URL of a folder is empty"),
        (["--model", "{pulled}", "--cutoff", "-3"], "cutoff is -3, but the network has 8 layers"),
        (["--model", "{pulled}", "--cutoff", "9"], "choose from 0 to 8, or leave it out for all"),
        (["--model", "{pulled}", "--psi", "nan"], "psi is nan; choose a finite number"),
        (["--model", "{pulled}", "--psi", "inf"], "psi is inf; choose a finite number"),
    ],
)
def test_bad_input_is_answered_in_one_line(pulled, tmp_path, capsys, argv, message):
    places = {"empty": tmp_path, "pulled": pulled}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    argv = [arg.format(**places) for arg in argv]

    assert run("images", *argv, "--out", tmp_path / "out", "--tracking-uri", uri) == 1

    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_before_the_model_is_read(tmp_path, capsys):
    argv = ("images", "--model", tmp_path / "none", "--device", "cuda", "--out", tmp_path / "out")
    assert run(*argv) == 1
    assert capsys.readouterr().err == (
        "error: --device is cuda, but torch sees no GPU here; choose cpu or auto\n"
    )


def test_arithmetic_shows_each_group_with_its_mean_and_the_sum(pulled, tmp_path):
    out = tmp_path / "deep" / "sum.png"
    groups = ("--plus", "0-2", "--minus", "3-5", "--plus", "6,7")
    assert run("arithmetic", "--model", pulled, *groups, "--out", out) == 0
    with Image.open(out) as image:
        assert min(image.size) > 4 * 64


def test_arithmetic_of_nothing_is_refused(pulled, tmp_path, capsys):
    assert run("arithmetic", "--model", pulled, "--out", tmp_path / "sum.png") == 1
    assert "give groups of seeds with --plus and --minus" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["mixing"], ["arithmetic", "--plus", "0-1"]])
def test_every_command_wants_a_finite_psi(command, pulled, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert run(*command, "--model", pulled, "--psi", "nan", "--out", out) == 1
    assert "psi is nan; choose a finite number" in capsys.readouterr().err
    assert not out.exists()


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("7, 1-2,4294967295") == [7, 1, 2, 4294967295]
    for text in ("", "a", "1-", "-1", "1,,2", "4294967296"):
        with pytest.raises(ValueError, match="seeds are"):
            parse_seeds(text)
