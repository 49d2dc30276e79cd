"""`python -m pipeline.worker`: one process, torch alone."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import worker
from pipeline.checkpoint import Checkpoints
from pipeline.preflight import claimed
from tests.small_sets import copy_to, write_nonsense
from tests.test_loop import OPTIONS, tiny_config

SCRIPT = """
import sys
from pipeline.worker import main
code = main(sys.argv[1:])
known = {"ray", "mlflow"} & set(sys.modules)
assert not known, known
sys.exit(code)
"""


def _command(folder: Path, *arguments: str, **options: Any) -> list[str]:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**OPTIONS, **options}))
    return [sys.executable, "-c", SCRIPT, "--config", str(path), *arguments]


def _worker(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = _command(folder, *arguments, **options)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_bare_machine_trains_with_neither_ray_nor_mlflow_imported(tiny_data, tmp_path):
    done = _worker(tmp_path, f"data.url={tiny_data}", "run_url=run", "schedule.total_kimg=0.096")
    assert done.returncode == 0, done.stderr
    assert "training begins" in done.stdout
    assert "trained to 0.1 kimg" in done.stdout
    assert [c.nimg for c in Checkpoints(str(tmp_path / "run")).list()] == [0, 96]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_checkpoint_code_130_and_how_to_go_on(number, tiny_data, tmp_path):
    command = _command(tmp_path, f"data.url={tiny_data}", "run_url=run", "schedule.total_kimg=9000")
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert any(" kimg " in line for line in process.stdout), "it trains"
        process.send_signal(number)
        shown, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "error: stopped; run the same command again to go on\n"
    latest = Checkpoints(str(tmp_path / "run")).latest()
    assert latest.nimg >= 96
    assert f"trained to {latest.nimg / 1000:.1f} kimg" in shown


@pytest.fixture
def main(tmp_path, capsys):
    """Runs the command line in this process; exit code and what it says."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(OPTIONS))

    def run(data, *overrides):
        places = [f"data.url={data}", f"run_url={tmp_path}/run", "schedule.total_kimg=0.096"]
        code = worker.main(["--config", str(path), *places, *overrides])
        return code, capsys.readouterr().err

    return run


def test_a_number_of_workers_that_are_not_there_is_refused(main, tiny_data):
    code, said = main(tiny_data, "workers=4")
    assert code == 2
    assert said.startswith("error: workers=4, but 1 process is here; start as many by `torchrun")


def test_the_workers_of_a_preset_are_replaced_and_the_number_is_said(tiny_data, tmp_path):
    arguments = (f"data.url={tiny_data}", "run_url=run", "schedule.total_kimg=0.048")
    done = _worker(tmp_path, *arguments, workers=2)
    assert done.returncode == 0, done.stderr
    assert "tiny: workers=1" in done.stdout


def test_an_image_that_cannot_be_decoded_ends_with_code_1_and_its_name(main, tiny_data, tmp_path):
    data = copy_to(tiny_data, str(tmp_path / "data"))
    for sample in range(8):
        write_nonsense(data, 8, sample)
    code, said = main(data)
    assert code == 1
    assert "cannot be decoded" in said.splitlines()[-1]


def test_a_manifest_cut_short_ends_with_code_2_and_its_name(main, tiny_data, tmp_path):
    content = Path(tiny_data, "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(content[: len(content) // 2])
    code, said = main(tmp_path)
    assert code == 2
    assert said.startswith(f"error: {tmp_path}/manifest.json is not JSON")


def test_a_run_url_that_cannot_be_written_ends_with_code_2_and_its_name(main, tiny_data):
    code, said = main(tiny_data, "run_url=/proc/nope")
    assert code == 2
    assert said.startswith("error: run_url: /proc/nope cannot be written")


def test_a_run_that_is_trained_already_is_refused(main, tiny_data, tmp_path):
    with claimed(tiny_config(tiny_data, tmp_path / "run")):
        code, said = main(tiny_data)
    assert code == 2
    assert "is being trained already" in said


def test_a_wrong_request_ends_with_code_2_and_one_sentence(tiny_data, tmp_path):
    done = _worker(tmp_path, f"data.url={tiny_data}", "run_url=run", "loss.r1_gama=3")
    assert done.returncode == 2
    assert "unknown option loss.r1_gama; did you mean loss.r1_gamma?" in done.stderr


def test_a_resolution_that_the_data_do_not_have_is_refused(tiny_data, tmp_path):
    done = _worker(tmp_path, f"data.url={tiny_data}", "run_url=run", "network.resolution=64")
    assert done.returncode == 2
    assert "network.resolution is 64, but" in done.stderr
    assert "no level of 64 px" in done.stderr
