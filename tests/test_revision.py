"""Which code a run was made with: a commit, or a digest where there is no repository."""

import re
import shutil
import subprocess

import pytest

from pipeline.revision import PACKAGES, ROOT, code_revision, content_digest


def _git(folder, *args):
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def code(tmp_path):
    """A folder with code like this project's."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "revision.py").write_text(f"{name} = 1\n")
    return tmp_path


def test_the_revision_is_the_commit_and_whether_files_differ(code):
    _git(code, "init")
    assert code_revision(code).startswith("sha256:"), "files that this repository does not hold"
    _git(code, "add", ".")
    _git(code, "commit", "-m", "m")
    assert code_revision(code) == _git(code, "rev-parse", "HEAD").strip()
    (code / "stylegan" / "revision.py").write_text("2")
    assert code_revision(code) == _git(code, "rev-parse", "HEAD").strip() + "-dirty"


def test_without_a_repository_it_is_a_digest_of_the_code_wherever_it_lies(tmp_path):
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=ignored)

    revision = code_revision(tmp_path / "copy")

    assert re.fullmatch("sha256:[0-9a-f]{64}", revision)
    assert revision == content_digest() == content_digest(tmp_path / "copy")


@pytest.mark.parametrize("change", ["content", "name", "file"])
def test_any_change_of_the_code_is_another_digest(code, change):
    before = content_digest(code)
    path = code / "pipeline" / "revision.py"
    if change == "content":
        path.write_text("pipeline = 2\n")
    elif change == "name":
        path.rename(path.with_name("other.py"))
    else:
        (code / "stylegan" / "preset.yaml").touch()
    assert content_digest(code) != before


@pytest.mark.parametrize("name", [".gitignore", ".rayignore"])
def test_what_the_readme_makes_in_this_folder_is_neither_committed_nor_uploaded(name, tmp_path):
    """Ray leaves out of a submitted job what these files name, in git's own notation."""
    _git(tmp_path, "init")
    shutil.copyfile(ROOT / name, tmp_path / ".gitignore")
    paths = [
        "data/pictures/64/000000.tar",
        "runs/pictures/run.json",
        "models/pictures/G",
        "images/0",
    ]

    ignored = _git(tmp_path, "check-ignore", "--no-index", *paths)

    assert ignored.split() == paths
    kept = ["pipeline/data/x.py", "data_prep/images.py", "pipeline/driver.py"]
    done = subprocess.run(["git", "-C", tmp_path, "check-ignore", "--no-index", *kept])
    assert done.returncode == 1
