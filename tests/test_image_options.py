"""The options of images on the command line, and what the data sets they make say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.align import aligned
from data_prep.manifest import Manifest
from pipeline import config as configs
from tests.small_sets import expected_images, image_array, image_bytes
from tests.test_align import UPRIGHT, landmarks_of


def _shard(source, dest, *options):
    return main(["shard", str(source), str(dest), "--workers", "1", *map(str, options)])


@pytest.fixture
def photographs(tmp_path):
    """Three photographs of 100 px with landmarks for the first two."""
    folder = tmp_path / "in-the-wild-images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(image_bytes(image_array(number, 100)))
    records = {
        str(number): {
            "in_the_wild": {
                "file_path": f"in-the-wild-images/{number}.png",
                "face_landmarks": landmarks_of(),
            }
        }
        for number in range(2)
    }
    (tmp_path / "landmarks.json").write_text(json.dumps(records))
    return folder


def test_faces_are_cropped_where_the_landmarks_say(photographs, tmp_path, capsys):
    options = ["--resolution", 16, "--crop", "face", "--landmarks", tmp_path / "landmarks.json"]

    assert _shard(photographs, tmp_path / "data", *options) == 3
    assert "2.png: no face: the landmarks do not name this image" in capsys.readouterr().err
    assert _shard(photographs, tmp_path / "data", *options, "--max-bad", 1) == 0

    manifest = Manifest.load(str(tmp_path / "data"))
    assert (manifest.samples, manifest.source_transform["crop"]) == (2, "face")
    for number, image in enumerate(expected_images(str(tmp_path / "data"), 16)):
        face, _ = aligned(Image.fromarray(image_array(number, 100)), UPRIGHT, 16)
        np.testing.assert_array_equal(image.transpose(1, 2, 0), face)
    assert main(["check", str(tmp_path / "data"), "--workers", "1"]) == 0


def test_options_go_to_the_manifest_and_a_started_job_keeps_them(photographs, tmp_path, capsys):
    options = [
        "--size",
        "48x32",
        "--channels",
        4,
        "--downsampling",
        "lanczos",
        "--encoding",
        "webp",
    ]

    assert _shard(photographs, tmp_path / "data", *options) == 0

    manifest = Manifest.load(str(tmp_path / "data"))
    assert (manifest.resolution, manifest.height, manifest.channels) == (48, 32, 4)
    assert (manifest.resample, manifest.source_transform["alpha"]) == ("lanczos", "keep")
    assert manifest.levels[-1].encoding == "webp"
    capsys.readouterr()
    assert _shard(photographs, tmp_path / "data", *options[:-2]) == 2
    assert "was begun with --encoding webp instead of leaving it out" in capsys.readouterr().err
    given = [f"data.url={tmp_path}/data", "run_url=x"]
    with pytest.raises(ValueError, match=r"are 48x32, but networks make squares; rerun data_prep"):
        configs.load("ffhq-256", given).check_data(manifest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "48"], "size 48 is not WxH; write it as 512x384"),
        (["--size", "1000x999"], "size 1000x999 halves to 1000x999 and no further; choose sides"),
        (["--resolution", "48"], "resolution 48 is not a power of two from 4 to 16384"),
        (["--resolution", "16", "--crop", "face"], "--crop face needs --landmarks or --face-model"),
        (
            ["--resolution", "16", "--crop", "face", "--landmarks", "landmarks.csv"],
            "landmarks landmarks.csv do not exist; give ffhq-dataset-v2.json",
        ),
        (["--resolution", "16", "--landmarks", "x"], "and they are for it alone; give all or none"),
        (["--resolution", "16", "--channels", "2"], "channels 2 are not offered; choose 1, 3 or 4"),
        (["--resolution", "16", "--alpha", "keep"], "channels 3 and alpha keep do not go together"),
        (
            ["--resolution", "16", "--encoding", "jpg", "--quality", "101"],
            "quality 101 is not from",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(
    options, message, photographs, tmp_path, capsys
):
    assert _shard(photographs, tmp_path / "data", *options) == 2

    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "data").exists()


def test_the_full_level_alone_is_the_full_level_of_all(photographs, tmp_path, capsys):
    every, alone = str(tmp_path / "all"), str(tmp_path / "alone")
    assert _shard(photographs, every, "--resolution", 16) == 0
    assert _shard(photographs, alone, "--resolution", 16, "--levels", "full") == 0

    assert [level.resolution for level in Manifest.load(alone).levels] == [16]
    assert Manifest.load(alone).level(16) == Manifest.load(every).level(16)
    assert main(["check", alone, "--workers", "1"]) == 0
    Path(alone, "manifest.json").unlink()
    assert _shard(photographs, alone, "--resolution", 16) == 2
    assert "--levels full instead of leaving it out" in capsys.readouterr().err
