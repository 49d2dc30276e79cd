"""`python -m data_prep shard`: what it says, and its exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.manifest import Manifest
from tests.services import free_ports
from tests.small_sets import image_array, image_bytes, make_folder

SHARD = ["--resolution", "16", "--workers", "1"]


@pytest.fixture
def cli(capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as err:  # argparse
            code = err.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_folder_becomes_a_data_set_and_the_report_says_what_was_made(cli, tmp_path):
    source = make_folder(tmp_path / "images", 6)
    (source / "notes.txt").write_text("no image")
    (source / "small.png").write_bytes(image_bytes(image_array(0, side=8)))

    code, out, err = cli("shard", source, tmp_path / "data", *SHARD)

    manifest = Manifest.load(str(tmp_path / "data"))
    assert (code, manifest.samples, manifest.name) == (0, 7, "data")
    assert "1 images were smaller than 16 px: enlarged" in out
    assert "1 files are no images by their suffix: ignored" in out
    assert f"{tmp_path}/data: 7 samples in 1 shards per level" in out
    assert f"digest {manifest.digest}" in out
    assert "sharding: 7 of 7 images" in err

    code, out, _ = cli("shard", source, tmp_path / "data", *SHARD)

    assert code == 0
    assert "is complete: 7 samples" in out
    assert "nothing to do" in out


def test_it_runs_as_a_module_on_all_cores_without_torch_for_its_help(tmp_path):
    source = make_folder(tmp_path / "images", 3)
    command = [sys.executable, "-m", "data_prep", "shard", source, "data", "--resolution", "16"]

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "data: 3 samples in 1 shards per level" in run.stdout
    assert Manifest.load(str(tmp_path / "data")).samples == 3
    modules = "import sys, data_prep.__main__; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", modules], capture_output=True, check=True)
    assert loaded.stdout == b"False\n"


def test_an_unreadable_image_is_named_counted_quarantined_and_told_by_the_exit_code(cli, tmp_path):
    source = make_folder(tmp_path / "images", 5)
    (source / "0002.png").write_bytes(b"no image")
    (source / "0004.png").write_bytes((source / "0004.png").read_bytes()[:100])

    code, _, err = cli("shard", source, tmp_path / "data", *SHARD, "--max-bad", "1")

    assert code == 3
    assert "unusable: 0002.png: not an image in one of the formats PNG, JPEG" in err
    assert "unusable: 0004.png: " in err
    assert "error: 2 of 5 images cannot be used, but only 1 may be left out" in err
    assert "allow it by --max-bad 2" in err
    assert "0002.png" in (tmp_path / "data" / "quarantine.json").read_text()

    code, out, err = cli("shard", source, tmp_path / "data", *SHARD, "--max-bad", "2")

    assert code == 0
    assert f"2 unusable images left out, see {tmp_path}/data/quarantine.json" in out
    assert "unusable: 0002.png" in err
    assert Manifest.load(str(tmp_path / "data")).samples == 3


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nothing", [], "source {tmp}/nothing does not exist"),
        (
            "empty",
            [],
            "source {tmp}/empty holds no images; they are told by their suffixes, .bmp, ",
        ),
        ("text", [], "source {tmp}/text holds no images"),
        ("x.zip", [], "source {tmp}/x.zip is none of the known forms: folder, zip"),
        ("half.zip", [], "source {tmp}/half.zip is damaged: a zip whose end is missing"),
        ("images", ["--resolution", "48"], "resolution 48 is not a power of two from 4 to 16384"),
        ("images", ["--resolution", "2"], "resolution 2 is not a power of two from 4 to 16384"),
        ("images", ["--resolution", "1048576"], "resolution 1048576 is not a power of two from 4"),
        ("images", ["--samples-per-shard", "-1"], "samples per shard (-1) and workers (1) must be"),
        ("images", ["--workers", "0"], "workers (0) must be at least 1"),
        ("images", ["--max-bad", "-1"], "max-bad (-1) at least 0"),
        ("images", ["--background", "blu"], "background 'blu' is no colour; write white"),
        ("images", ["--labels", "folder"], "0000.png lies in no folder, but with --labels folder"),
    ],
)
def test_a_wrong_request_ends_with_one_sentence(source, options, message, cli, tmp_path):
    make_folder(tmp_path / "images", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.txt").write_text("no image")
    (tmp_path / "x.zip").write_bytes(b"no zip")
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and no more")

    code, out, err = cli("shard", tmp_path / source, tmp_path / "data", *SHARD, *options)

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(tmp=tmp_path) in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [["shard"], ["shard", "a", "b"], ["shrad"]])
def test_a_misspelt_command_shows_the_usage(arguments, cli):
    code, _, err = cli(*arguments)

    assert code == 2
    assert "usage: python -m data_prep" in err


def test_a_destination_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "data").write_text("a file")

    code, _, err = cli("shard", make_folder(tmp_path / "images", 2), tmp_path / "data", *SHARD)

    assert code == 2
    assert f"error: {tmp_path}/data is no folder; choose another DEST" in err


@pytest.mark.parametrize(
    ("dest", "message"),
    [
        ("", "DEST is empty; name a folder or a URL"),
        (" ", "DEST is empty"),
        ("memory://data", "DEST memory://data would be gone with this process; choose a folder"),
        ("data.json", "DEST data.json is to be a folder; choose a name that ends otherwise"),
        ("/proc/data", "/proc/data cannot be written (No such file or directory); repair that or"),
    ],
)
def test_a_destination_that_can_keep_no_data_set_is_refused(
    dest, message, cli, tmp_path, monkeypatch
):
    source = make_folder(tmp_path / "images", 2)
    monkeypatch.chdir(tmp_path)

    code, out, err = cli("shard", source, dest, *SHARD)

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert "run the same command again" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_empty_source_is_not_the_folder_one_is_in(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path / "images", 2))

    code, _, err = cli("shard", "", tmp_path / "data", *SHARD)

    assert code == 2
    assert "error: SOURCE is empty; name a folder, an archive or a URL" in err


def test_an_unknown_kind_of_store_is_refused(cli, tmp_path):
    code, _, err = cli("shard", make_folder(tmp_path / "images", 2), "foo://b/data", *SHARD)

    assert code == 2
    assert "error: foo://b/data names no store that can be used here: Protocol not known" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_ENDPOINT_URL": "{closed}"}, "{closed} cannot be reached in 10 s"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses s3://tests/x/data at http://127.0.0.1"),
    ],
    ids=["closed port", "wrong secret"],
)
def test_a_store_that_cannot_be_used_is_named_within_30_seconds(change, message, s3, tmp_path):
    closed = f"http://127.0.0.1:{free_ports(1)[0]}"
    changed = {key: text.format(closed=closed) for key, text in change.items()}
    command = [sys.executable, "-m", "data_prep", "shard", make_folder(tmp_path / "images", 2)]
    start_s = time.monotonic()

    run = subprocess.run(
        [*command, "s3://tests/x/data", *SHARD],
        env={**os.environ, **s3.environment, **changed},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert run.returncode == 1
    assert message.format(closed=closed) in run.stderr
    assert run.stderr.rstrip().endswith("run the same command again to go on")
    assert time.monotonic() - start_s < 30


def test_an_interrupted_job_says_how_to_go_on(tmp_path):
    source = make_folder(tmp_path / "images", 150, side=64)
    # Seconds of work, so that the signal comes in its midst.
    for path in sorted(Path(source).iterdir()):
        for copy in range(16):
            path.with_stem(f"{path.stem}-{copy}").hardlink_to(path)
    command = [sys.executable, "-m", "data_prep", "shard", source, tmp_path / "data"]
    command += ["--resolution", "64", "--workers", "2", "--samples-per-shard", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("data/_work/0*.json")):
        assert process.poll() is None
        time.sleep(0.005)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: stopped; run the same command again to go on"
    assert main(["shard", str(source), str(tmp_path / "data"), *map(str, command[6:])]) == 0
