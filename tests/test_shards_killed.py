"""The sharding job under kill -9, for every form of source."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import source_forms
from tests.small_sets import image_array, image_bytes, shard, tree

COUNT, SIDE, EACH = 60, 32, 5
FORMS = ["folder", "zip", "tar", "tar.gz", "webdataset", "tfrecords", "lmdb", "ada"]
LABELLED = {"webdataset", "ada"}


def _source(form: str, folder: Path) -> Path:
    arrays = [image_array(number, SIDE) for number in range(COUNT)]
    images = [image_bytes(array) for array in arrays]
    if form == "tfrecords":
        return source_forms.tfrecords(folder / form, arrays)
    if form == "lmdb":
        return source_forms.lmdb(folder / form, images)
    if form == "ada":
        return source_forms.ada_zip(folder / "ada.zip", images, classes=3)
    if form == "webdataset":
        return source_forms.webdataset(folder / form, shards=4, each=COUNT // 4, side=SIDE)
    (folder / "images").mkdir()
    for number, image in enumerate(images):
        (folder / "images" / f"{number:04d}.png").write_bytes(image)
    if form == "folder":
        return folder / "images"
    packing = {"tar.gz": "gztar"}.get(form, form)
    return Path(shutil.make_archive(str(folder / "x"), packing, folder / "images"))


KILLED = """
import os, signal, sys
from data_prep.__main__ import main

dest, left = sys.argv[1], int(sys.argv[2])

def count(event, arguments):
    global left
    if event in ("open", "os.rename") and str(arguments[0]).startswith(dest):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
main(sys.argv[3:])
"""
"""The job, dead before its n-th file below DEST is opened or takes its final name."""


@pytest.mark.parametrize("form", FORMS)
def test_a_job_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(form, tmp_path):
    """Three times, at moments that differ from form to form.

    What can be seen then under a final name is what will be there in the end.
    """
    source, keyed = _source(form, tmp_path), random.Random(form)
    labels = "source" if form in LABELLED else "none"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shard(source, whole, resolution=SIDE, name="set", labels=labels)
    finished = tree(whole)

    for moments in ((1, 20), (60, 120), (60, 180)):
        command = [sys.executable, "-c", KILLED, killed, str(keyed.randint(*moments))]
        command += ["shard", source, killed, "--resolution", str(SIDE), "--name", "set"]
        command += ["--samples-per-shard", str(EACH), "--labels", labels, "--workers", "1"]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr

        visible = {name: content for name, content in tree(killed).items() if _is_final(name)}
        assert visible.items() <= finished.items()
        assert "manifest.json" not in visible
    receipts = len(list(killed.glob("_work/0*.json")))

    report = shard(source, killed, resolution=SIDE, name="set", labels=labels)

    assert 1 <= receipts == report.reused_shards < COUNT // EACH
    assert tree(killed) == finished


def _is_final(name: str) -> bool:
    return not (name.startswith("_work/") or name.endswith(".tmp"))
