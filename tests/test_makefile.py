"""The Makefile, with a Python that only writes down what it is asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = "-m pip install --quiet {}--constraint constraints.txt torch"
REST = "-m pip install --quiet --constraint constraints.txt --editable .[demo,test]"
UNINSTALL = "-m pip uninstall -qq --yes torch"
CU = "https://example.org/cu"

PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *"$FAIL_ON"*) test -z "$FAIL_ON" || exit 1 ;; esac
case "$*" in *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""


class Project:
    """A folder with our Makefile and such a Python."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.log = folder / "project", folder / "home", folder / "log"
        for path in (self.folder, self.home):
            path.mkdir()
        shutil.copy(ROOT / "Makefile", self.folder)
        for name in ("pyproject.toml", "constraints.txt"):
            (self.folder / name).touch()
        self.python = folder / "python"
        self.python.write_text(PYTHON.format(log=self.log))
        self.python.chmod(0o755)

    def make(self, *arguments: str, fail_on: str = "") -> tuple[int, list[str], str]:
        """Exit code, what the pip of the environment was asked, and the output."""
        self.log.write_text("")
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "FAIL_ON": fail_on}
        done = subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        asked = [
            line
            for line in self.log.read_text().splitlines()
            if line.startswith(("-m pip i", "-m pip u"))
        ]
        return done.returncode, asked, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def _torch(index: str = "") -> str:
    return TORCH.format(f"--extra-index-url {index} " if index else "")


def test_an_installation_is_made_once(project):
    assert project.make("install")[:2] == (0, [_torch(), REST])
    assert project.make("install")[:2] == (0, [])


def test_another_index_takes_torch_from_there_and_is_kept_without_being_named_again(project):
    project.make("install")

    assert project.make("install", f"TORCH_INDEX={CU}")[:2] == (0, [UNINSTALL, _torch(CU), REST])
    assert project.make("install", f"TORCH_INDEX={CU}")[:2] == (0, [])
    assert project.make("install")[:2] == (0, [])
    later = (project.folder / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(project.folder / "constraints.txt", (later, later))
    assert project.make("install")[:2] == (0, [_torch(CU), REST])
    other = f"{CU}2"
    assert project.make("install", f"TORCH_INDEX={other}")[1] == [UNINSTALL, _torch(other), REST]


@pytest.mark.parametrize("step", ["pip uninstall", "constraints.txt torch", "--editable"])
@pytest.mark.parametrize("was_there", [True, False])
def test_an_interrupted_installation_is_finished_by_the_same_command(project, step, was_there):
    if was_there:
        project.make("install")
    argument = f"TORCH_INDEX={CU}"

    assert project.make("install", argument, fail_on=step)[0] == 2
    code, asked, _ = project.make("install", argument)

    assert code == 0
    assert asked[-2:] == [_torch(CU), REST]
    torch_was_done = step == "--editable"
    assert (UNINSTALL in asked) is not torch_was_done
    assert project.make("install", argument)[1] == []


def test_the_former_index_after_an_interrupted_change_is_a_change_again(project):
    """What of torch is there then, nobody knows."""
    project.make("install", f"TORCH_INDEX={CU}")
    project.make("install", "TORCH_INDEX=other", fail_on="constraints.txt torch")

    assert project.make("install", f"TORCH_INDEX={CU}")[1] == [UNINSTALL, _torch(CU), REST]


def test_clean_takes_what_the_demo_made_and_names_what_it_leaves(project):
    demo = project.home / "stylegan-demo"
    for name in ("run/checkpoints", "data", "images"):
        (demo / name).mkdir(parents=True)
    (demo / "curves.png").touch()
    project.make("install")

    code, _, output = project.make("clean")

    assert (code, "left" in output) == (0, False)
    assert not demo.exists()
    assert not (project.folder / ".venv").exists()

    cache = project.home / ".cache" / "stylegan-pipeline"
    for path in (demo / "my-run", demo / "run", cache):
        path.mkdir(parents=True)
    code, _, output = project.make("clean")

    assert code == 0
    assert [path.name for path in demo.iterdir()] == ["my-run"]
    assert f"left: {demo}, which holds more than the demo made" in output
    assert f"left: {cache}, which other runs use" in output
    assert cache.exists()
