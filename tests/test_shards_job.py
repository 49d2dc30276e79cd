"""The sharding job: the same bytes however it was run, and WebDatasets as anyone reads them."""

import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import storage
from data_prep.job import TooManyBadError
from data_prep.manifest import Manifest, ShardIndex, sample_digest, shard_url
from data_prep.pyramid import pyramid
from data_prep.storage import local_path
from data_prep.workers import process_pool, unordered
from tests.small_sets import (
    expected_images,
    image_array,
    image_bytes,
    make_dataset,
    make_folder,
    read_webdataset,
    shard,
    tree,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """23 images of two classes."""
    return make_folder(tmp_path_factory.mktemp("source"), 23, classes=2)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """Files of the data set that one process made of it."""
    folder = tmp_path_factory.mktemp("finished") / "data"
    shard(source, folder, name="set", labels="folder")
    return tree(folder)


@pytest.mark.parametrize("workers", [2, 3])
def test_shards_are_the_same_bytes_for_any_number_of_processes(workers, source, finished, tmp_path):
    shard(source, tmp_path / "data", name="set", labels="folder", workers=workers)

    assert tree(tmp_path / "data") == finished


def test_a_data_set_is_tars_indices_and_a_manifest_and_nothing_else(finished):
    levels = ("4", "8", "16")
    numbers = range(5)
    expected = {f"{level}/{number:06d}.{kind}" for level in levels for number in numbers
                for kind in ("tar", "json")}  # fmt: skip

    assert set(finished) == {*expected, "job.json", "manifest.json"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_gives_the_same_data_set_as_its_folder(kind, source, finished, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "images"), kind, source)

    shard(Path(archive), tmp_path / "data", name="set", labels="folder")

    jobs = {"job.json"}  # it says what was listed, times included
    found = tree(tmp_path / "data")
    assert {name: found[name] for name in found.keys() - jobs} == {
        name: finished[name] for name in finished.keys() - jobs
    }


def test_webdataset_reads_the_shards_unchanged(source, tmp_path):
    """Keys, images and classes, decoded by webdataset itself."""
    shard(source, tmp_path / "data", labels="folder")

    samples = read_webdataset(tmp_path / "data/16/{000000..000004}.tar", decode="rgb8")

    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(23)]
    ordered = sorted(source.rglob("*.png"), key=lambda path: path.relative_to(source).as_posix())
    for sample, path in zip(samples, ordered, strict=True):
        np.testing.assert_array_equal(sample["png"], np.asarray(Image.open(path)))
        assert sample["cls"] == int(path.parent.name == "class-1")


@pytest.mark.slow
def test_every_level_holds_the_levels_of_every_image(tmp_path):
    url = make_dataset(tmp_path, 7)

    for number in range(7):
        for level in pyramid(image_array(number)):
            found = expected_images(url, level.shape[0])[number]
            np.testing.assert_array_equal(found, level.transpose(2, 0, 1))


def test_members_are_anonymous_and_of_no_time(finished):
    for name, content in finished.items():
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                members = {(member.mtime, member.uname, member.mode) for member in tar}
            assert members == {(0, "root", 0o644)}


def test_the_index_leads_to_every_image_and_the_manifest_to_every_file(source, tmp_path):
    shard(source, tmp_path / "data", labels="folder")
    manifest = Manifest.load(str(tmp_path / "data"))

    assert [len(level.shards) for level in manifest.levels] == [5, 5, 5]
    for level in manifest.levels:
        for number, entry in enumerate(level.shards):
            url = shard_url(str(tmp_path / "data"), level.resolution, number)
            content = local_path(url).read_bytes()
            assert (len(content), storage.sha256(url)) == (entry.bytes, entry.sha256)
            index = ShardIndex.load(str(tmp_path / "data"), level.resolution, number, manifest)
            assert len(index) == entry.samples
            rows = zip(index.offsets, index.lengths, index.sha256, strict=True)
            for offset, length, digest in rows:
                assert sample_digest(content[offset : offset + length]) == digest


COMMAND = [sys.executable, "-m", "data_prep", "shard"]


def test_a_job_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = make_folder(tmp_path / "images", 150, side=64)
    options = ["--resolution", "64", "--samples-per-shard", "5", "--name", "set", "--workers", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shard(source, whole, resolution=64, name="set")

    process = subprocess.Popen([*COMMAND, source, killed, *options], stderr=subprocess.DEVNULL)
    _wait_until(lambda: len(list(killed.glob("_work/0*.json"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_until(lambda: _is_free(killed / "_work" / "lock"))
    receipts = len(list(killed.glob("_work/0*.json")))
    assert not (killed / "manifest.json").exists()
    report = shard(source, killed, resolution=64, name="set")

    assert 3 <= receipts <= report.reused_shards < 30
    assert tree(killed) == tree(whole)


def _is_free(lock: Path) -> bool:
    """Whether no process, workers included, holds the lock or is about to write."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    time.sleep(0.3)  # the workers notice their parent's end
    return True


def _wait_until(condition, timeout_s=60):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.002)


def test_what_a_killed_job_left_half_written_is_made_again(source, finished, tmp_path):
    data = tmp_path / "data"
    shard(source, data, name="set", labels="folder")
    # As if it had been killed before the end: no manifest, receipts, one tar damaged, one lost.
    for name in ("manifest.json", "16/000002.tar"):
        (data / name).unlink()
    (data / "8/000001.tar").write_bytes(b"half")
    (data / "_work/scratch/tmp").mkdir(parents=True)
    (data / "_work/000003.json").write_text("{half")
    (data / "8/.000004.tar.123.ab12cd34.tmp").write_bytes(b"half")

    shard(source, data, name="set", labels="folder")

    assert tree(data) == finished


def test_running_a_finished_job_again_changes_nothing(source, finished, tmp_path):
    shard(source, tmp_path / "data", name="set", labels="folder")

    report = shard(source, tmp_path / "data", name="set", labels="folder")

    assert report.already_complete
    assert tree(tmp_path / "data") == finished


def test_another_job_into_the_same_folder_is_refused(source, tmp_path):
    shard(source, tmp_path / "data")

    with pytest.raises(
        ValueError, match="was begun with --resolution 16 instead of 8; choose another"
    ):
        shard(source, tmp_path / "data", resolution=8)
    with pytest.raises(ValueError, match=r"was made from other images.*; choose another DEST"):
        shard(make_folder(tmp_path / "other", 3), tmp_path / "data")
    (tmp_path / "data" / "job.json").unlink()
    with pytest.raises(ValueError, match="holds another data set; choose another DEST"):
        shard(source, tmp_path / "data")


def _bitmaps(folder: Path, *seeds: int) -> Path:
    """Images whose files have one size, whatever they show; one of them from each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        path = folder / f"{number:04d}.bmp"
        path.write_bytes(image_bytes(image_array(seed), "BMP"))
        os.utime(path, ns=(0, seed))
    return folder


def test_a_changed_image_of_the_same_size_is_noticed_when_the_job_was_done(tmp_path):
    source = _bitmaps(tmp_path / "images", 0, 1, 2)
    shard(source, tmp_path / "data")
    assert shard(source, tmp_path / "data").already_complete

    _bitmaps(source, 0, 9, 2)

    with pytest.raises(ValueError, match="made from other images, or they were written again"):
        shard(source, tmp_path / "data")


def test_a_changed_image_of_the_same_size_is_noticed_when_the_job_goes_on(tmp_path):
    source = _bitmaps(tmp_path / "images", *range(10))
    (source / "last.png").write_bytes(b"no image")
    with pytest.raises(TooManyBadError):
        shard(source, tmp_path / "data")
    (source / "last.png").unlink()
    _bitmaps(source, 0, 99, *range(2, 10))

    report = shard(source, tmp_path / "data")

    assert report.reused_shards == 1, "the one without the changed image"
    expected = expected_images(str(tmp_path / "data"), 16)[1]
    np.testing.assert_array_equal(expected, image_array(99).transpose(2, 0, 1))


def test_in_a_zip_the_bytes_of_an_image_tell_whether_it_changed(tmp_path):
    def pack(seed: int, year: int) -> Path:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            member = zipfile.ZipInfo("0.bmp", (year, 1, 1, 0, 0, 0))
            archive.writestr(member, image_bytes(image_array(seed), "BMP"))
        return tmp_path / "images.zip"

    shard(pack(0, 2000), tmp_path / "data")
    assert shard(pack(0, 2020), tmp_path / "data").already_complete
    with pytest.raises(ValueError, match="made from other images"):
        shard(pack(1, 2000), tmp_path / "data")


def test_another_name_for_a_finished_data_set_is_refused_and_none_is_the_one_it_has(
    source, tmp_path
):
    shard(source, tmp_path / "data", name="set")

    assert shard(source, tmp_path / "data").manifest.name == "set"
    assert shard(source, tmp_path / "data", name="set").already_complete
    with pytest.raises(ValueError, match="is complete and its name is set, not other; leave"):
        shard(source, tmp_path / "data", name="other")


def test_two_jobs_at_once_are_refused(source, tmp_path):
    (tmp_path / "data" / "_work").mkdir(parents=True)
    with (tmp_path / "data" / "_work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(ValueError, match=r"another job is writing .*data; wait for its end"):
            shard(source, tmp_path / "data")


def _with_bad_images(folder: Path) -> Path:
    make_folder(folder, 12)
    (folder / "0003.png").write_bytes(b"no image")
    (folder / "0009.png").write_bytes((folder / "0009.png").read_bytes()[:60])
    return folder


def test_bad_images_stop_the_job_named_and_counted(tmp_path):
    source = _with_bad_images(tmp_path / "images")

    with pytest.raises(
        TooManyBadError, match=r"2 of 12 images cannot be used, but only 1 may"
    ) as bad:
        shard(source, tmp_path / "data", max_bad=1)

    assert sorted(bad.value.bad) == ["0003.png", "0009.png"]
    quarantine = (tmp_path / "data" / "quarantine.json").read_text()
    assert '"0003.png"' in quarantine
    assert "not an image in one of the formats" in quarantine
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_allowed_bad_images_are_left_out_as_if_they_had_never_been_there(workers, tmp_path):
    clean = make_folder(tmp_path / "clean", 12)
    for name in ("0003.png", "0009.png"):
        (clean / name).unlink()
    shard(clean, tmp_path / "expected", name="set")
    source = _with_bad_images(tmp_path / "images")
    with pytest.raises(TooManyBadError):
        shard(source, tmp_path / "data", name="set")

    report = shard(source, tmp_path / "data", name="set", max_bad=2, workers=workers)

    assert sorted(report.bad) == ["0003.png", "0009.png"]
    found, expected = tree(tmp_path / "data"), tree(tmp_path / "expected")
    assert "0003.png" in found.pop("quarantine.json").decode()
    del found["job.json"], expected["job.json"]  # they say what was listed
    assert found == expected


def test_a_repaired_image_leaves_the_quarantine(tmp_path):
    source = _with_bad_images(tmp_path / "images")
    with pytest.raises(TooManyBadError):
        shard(source, tmp_path / "data")
    make_folder(source, 12)

    report = shard(source, tmp_path / "data")

    assert report.bad == {}
    assert report.manifest.samples == 12
    assert not (tmp_path / "data" / "quarantine.json").exists()


def test_a_source_without_one_good_image_is_refused_whatever_is_allowed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"no image")

    with pytest.raises(TooManyBadError, match=r"no image of .*images can be used"):
        shard(tmp_path / "images", tmp_path / "data", max_bad=5)


def test_labels_must_come_from_folders(tmp_path):
    with pytest.raises(ValueError, match=r"0000.png lies in no folder, but with --labels folder"):
        shard(make_folder(tmp_path / "images", 2), tmp_path / "data", labels="folder")


def test_the_job_writes_to_an_object_store_what_it_writes_to_a_folder(
    s3, source, finished, tmp_path
):
    """Killed before its end and run again, too."""
    dest = f"{s3.url}/set"
    shard(source, dest, labels="folder")
    storage.delete(f"{dest}/manifest.json")
    storage.delete(f"{dest}/16/000001.tar")

    shard(source, dest, labels="folder")

    assert set(storage.listdir(dest)) - {"_work"} == {"4", "8", "16", "job.json", "manifest.json"}
    for name, content in finished.items():
        assert storage.read_bytes(f"{dest}/{name}") == content, name


def test_a_folder_that_was_there_before_outlives_a_failed_job(tmp_path):
    (tmp_path / "data").mkdir()

    for dest in ("data", "new"):
        with pytest.raises(ValueError, match="does not exist"):
            shard(tmp_path / "nothing", tmp_path / dest)

    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert list((tmp_path / "data").iterdir()) == []


def test_processes_have_the_environment_of_the_job_not_of_the_first_job(monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("AWS_PROFILE_OF_THIS_TEST", value)
        with process_pool(2) as executor:
            found = set(unordered(executor, os.getenv, ["AWS_PROFILE_OF_THIS_TEST"] * 4))
        assert found == {value}
