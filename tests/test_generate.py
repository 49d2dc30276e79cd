"""Pictures out of everything that holds a generator."""

from argparse import ArgumentTypeError

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import bundle as bundles
from pipeline import grids
from pipeline.generate.__main__ import main
from pipeline.generate.options import parse_seeds
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
    """The exit code, also where argparse ends the process."""
    try:
        return main([str(arg) for arg in argv])
    except SystemExit as end:
        return end.code


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
    options = ("--seeds", "0-2", "--noise", "random", "--tracking-uri", uri, "--out", out)
    assert run("images", "--model", "models:/faces@champion", *options) == 0
    assert len(list(out.iterdir())) == 4


def test_a_mixing_table_has_the_sources_at_its_edges(pulled, tmp_path):
    out = tmp_path / "deep" / "mixing.png"
    options = ("--columns", "4-6", "--rows", "middle=0,1", "--rows", "2-5=7", "--psi", 1)
    assert run("mix", "--model", pulled, *options, "--out", out) == 0

    with Image.open(out) as image:
        pixels = np.asarray(image).astype(int)
    Gs = generators.generator()
    a, b = sample.styles(Gs, [4, 5, 6]), sample.styles(Gs, [0, 1, 7])
    mixed = sample.mix(a[2:], b[2:], layers=range(2, 6))
    side, margin, gap, factor = 96, 2, 8, 3
    title = pixels.shape[0] - (margin + 4 * (side + margin) + gap)
    assert title == pixels.shape[1] - (margin + 4 * (side + margin) + gap) > 10

    def cell(row, column):
        y = title + margin + row * (side + margin) + (gap if row else 0)
        x = title + margin + column * (side + margin) + (gap if column else 0)
        return pixels[y : y + side : factor, x : x + side : factor]

    assert (cell(0, 0) == 255).all(), "the corner is empty"
    for place, ws in (((0, 1), a[:1]), ((2, 0), b[1:2]), ((3, 3), mixed)):
        expected = sample.to_uint8(Gs.synthesis(ws))[0].permute(1, 2, 0).numpy()
        assert np.abs(cell(*place) - expected).max() <= 1, place


def test_the_mixing_table_has_the_rows_of_the_paper_that_the_network_has(pulled, tmp_path):
    """8 layers: coarse and middle; 5 columns and 5 rows beside the sources."""
    assert run("mix", "--model", pulled, "--out", tmp_path / "mixing.png") == 0
    with Image.open(tmp_path / "mixing.png") as image:
        assert [side // 98 for side in image.size] == [6, 6]


def test_a_network_with_labels_wants_a_class(tmp_path, capsys):
    bundle = generators.bundle(label_size=3)
    bundles.write(bundle, tmp_path, grid=Image.new("RGB", (8, 8)))
    options = ("--model", tmp_path, "--seeds", "0", "--out", tmp_path / "out")

    assert run("images", *options) == 2
    assert "3 classes; choose one as its label" in capsys.readouterr().err
    assert run("images", *options, "--label", 3) == 2
    assert (
        "label is 3, but the network has 3 classes; choose from 0 to 2" in capsys.readouterr().err
    )
    assert run("images", *options, "--label", 2) == 0
    assert run("images", *options, "--label", "0,2", "--save", "files", "npz", "grid") == 0
    with np.load(tmp_path / "out" / "images.npz") as arrays:
        assert arrays["labels"].tolist() == [0, 2]
        assert arrays["z"].shape == (2, 8)
        assert arrays["w"].shape == (2, 8, 8)
        with Image.open(tmp_path / "out" / "seed0000-class2.png") as image:
            np.testing.assert_array_equal(np.asarray(image), arrays["images"][1])
    mixing = ("mix", "--model", tmp_path, "--label", 1, "--out", tmp_path / "mixing.png")
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

    code = run("images", *argv, "--out", tmp_path / "out", "--tracking-uri", uri)

    assert code == (1 if "models:/faces" in argv else 2)
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_before_the_model_is_read(tmp_path, capsys):
    argv = ("images", "--model", tmp_path / "none", "--device", "cuda", "--out", tmp_path / "out")
    assert run(*argv) == 2
    assert capsys.readouterr().err == (
        "error: device is 'cuda', but torch sees no GPU here; choose from auto, cpu\n"
    )


def test_arithmetic_shows_each_group_with_its_mean_and_the_sum(pulled, tmp_path):
    out = tmp_path / "deep" / "sum.png"
    groups = ("--plus", "0-2", "--minus", "3-5", "--plus", "6,7")
    assert run("arithmetic", "--model", pulled, *groups, "--out", out) == 0
    with Image.open(out) as image:
        assert min(image.size) > 4 * 64


def test_arithmetic_of_nothing_is_refused(pulled, tmp_path, capsys):
    assert run("arithmetic", "--model", pulled, "--out", tmp_path / "sum.png") == 2
    assert "give groups of seeds with --plus and --minus" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["mix"], ["arithmetic", "--plus", "0-1"]])
def test_every_command_wants_a_finite_psi(command, pulled, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert run(*command, "--model", pulled, "--psi", "nan", "--out", out) == 2
    assert "psi is nan; choose a finite number" in capsys.readouterr().err
    assert not out.exists()


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("7, 1-2,4294967295") == [7, 1, 2, 4294967295]
    for text in ("", "a", "1-", "-1", "1,,2", "4294967296"):
        with pytest.raises(ArgumentTypeError, match="seeds are"):
            parse_seeds(text)
