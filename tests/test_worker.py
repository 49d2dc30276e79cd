"""`python -m pipeline.worker`: one process, torch alone."""

import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.checkpoint import Checkpoints
from tests.test_loop import OPTIONS

SCRIPT = """
import sys
from pipeline.worker import main
code = main(sys.argv[1:])
known = {"ray", "mlflow"} & set(sys.modules)
assert not known, known
sys.exit(code)
"""


def _worker(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(OPTIONS))
    command = [sys.executable, "-c", SCRIPT, "--config", str(path), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_bare_machine_trains_with_neither_ray_nor_mlflow_imported(tiny_data, tmp_path):
    done = _worker(tmp_path, f"data.url={tiny_data}", "run_url=run", "schedule.total_kimg=0.096")
    assert done.returncode == 0, done.stderr
    assert "training begins" in done.stdout
    assert "trained to 0.1 kimg" in done.stdout
    assert [c.nimg for c in Checkpoints(str(tmp_path / "run")).list()] == [0, 96]


def test_a_wrong_request_ends_with_code_2_and_one_sentence(tiny_data, tmp_path):
    done = _worker(tmp_path, f"data.url={tiny_data}", "run_url=run", "loss.r1_gama=3")
    assert done.returncode == 2
    assert "unknown option loss.r1_gama; did you mean loss.r1_gamma?" in done.stderr


def test_a_resolution_that_the_data_do_not_have_is_refused(tiny_data, tmp_path):
    done = _worker(tmp_path, f"data.url={tiny_data}", "run_url=run", "network.resolution=64")
    assert done.returncode == 2
    assert "network.resolution is 64, but" in done.stderr
    assert "no level of 64 px" in done.stderr
