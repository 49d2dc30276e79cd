"""The sharding job on a Ray cluster: the same bytes as here, whoever is killed in the middle."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data_prep import storage
from data_prep.__main__ import main
from data_prep.images import ImageConfig
from data_prep.job_config import JobConfig
from data_prep.ray_start import JOB_VARIABLE
from data_prep.shards import ShardConfig, ShardTask, make_shard
from data_prep.sources import list_source
from tests.ray_cluster import RayCluster
from tests.services import free_ports
from tests.small_sets import make_folder, shard, tree

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

OPTIONS = ["--resolution", "64", "--samples-per-shard", "10", "--name", "set", "--max-bad", "1"]
COPIES = 12
SHARDS = 36


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """361 files of 30 images, one of them none: seconds of work, in two rounds."""
    folder = make_folder(tmp_path_factory.mktemp("source"), 30, side=64)
    for path in sorted(folder.iterdir()):
        for copy in range(1, COPIES):
            path.with_stem(f"{path.stem}-{copy}").hardlink_to(path)
    (folder / "0029-z.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """Files of the data set that processes of this machine made of it."""
    folder = tmp_path_factory.mktemp("finished") / "data"
    shard(source, folder, resolution=64, samples_per_shard=10, name="set", max_bad=1, workers=2)
    return tree(folder)


@contextmanager
def _job(source: Path, dest: Path, environment, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A job in another process, which is dead in the end."""
    command = [sys.executable, "-m", "data_prep", "shard", source, dest, *OPTIONS, *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _receipts(dest: Path) -> int:
    return len(list(dest.glob("_work/0*.json")))


def _wait_for_receipts(count: int, dest: Path, process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + 120
    while _receipts(dest) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end_s, "nothing happened in time"
        time.sleep(0.002)


def _kill_a_task(cluster: RayCluster) -> None:
    """kill -9 of a process that is at a shard."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        for process in cluster.processes():
            with suppress(psutil.NoSuchProcess):
                if "ray::_call" in " ".join(process.cmdline()):
                    process.kill()
                    return
    raise AssertionError("no task was running")


def test_a_submitted_job_writes_to_object_storage_what_a_local_one_writes(
    ray_cluster: RayCluster, source, finished, s3
):
    dest = f"{s3.url}/set"
    options = [str(source), dest, *OPTIONS, "--ray"]

    done = ray_cluster.submit("shard", *options, program="-m data_prep")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SHARDS * 10} samples in {SHARDS} shards per level" in done.stdout
    assert "1 unusable images left out" in done.stdout
    assert set(storage.listdir(dest)) - {"_work"} == {name.partition("/")[0] for name in finished}
    for name, content in finished.items():
        assert storage.read_bytes(f"{dest}/{name}") == content, name


def test_killed_tasks_are_repeated_and_the_bytes_are_the_same(
    ray_cluster: RayCluster, source, finished, tmp_path
):
    """kill -9 of two of Ray's processes, one after the other, while they make shards."""
    options = ["--ray", "--workers", "2"]
    with _job(source, tmp_path / "data", ray_cluster.environment, *options) as process:
        for receipts in (2, 8):
            _wait_for_receipts(receipts, tmp_path / "data", process)
            _kill_a_task(ray_cluster)
        output, _ = process.communicate(timeout=240)

    assert process.returncode == 0, output
    assert tree(tmp_path / "data") == finished


@pytest.mark.slow
def test_a_job_begun_here_and_killed_is_finished_by_a_cluster_whose_driver_is_killed_twice(
    ray_cluster: RayCluster, source, finished, tmp_path
):
    """kill -9 of each; nothing made before is made again, nothing is visible before the end."""
    dest = tmp_path / "data"
    for options in (["--workers", "2"], ["--ray"], ["--ray"]):
        with _job(source, dest, ray_cluster.environment, *options) as process:
            _wait_for_receipts(_receipts(dest) + 3, dest, process)
        assert not (dest / "manifest.json").exists()

    with _job(source, dest, ray_cluster.environment, "--ray") as process:
        output, _ = process.communicate(timeout=240)

    assert process.returncode == 0, output
    assert tree(dest) == finished


def test_what_a_killed_task_left_on_its_machine_goes_with_the_next_one(
    source, finished, tmp_path, monkeypatch
):
    """Where DEST is in a store, tars in the making lie among the temporary files of each node."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prefix = f"data_prep-{os.getuid()}-shard"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f"{prefix}-{pid}-left").mkdir()
    listing = list_source(source, tmp_path)
    image = ImageConfig(resolution=64)
    config = ShardConfig(source=listing.source, dest=str(tmp_path / "x"), scratch=None, image=image)

    make_shard(
        config, ShardTask(number=0, first_sample=0, entries=listing.entries[:10], labels=None)
    )

    assert [path.name for path in tmp_path.glob(f"{prefix}*")] == [f"{prefix}-{os.getppid()}-left"]
    assert (tmp_path / "x/64/000000.tar").read_bytes() == finished["64/000000.tar"]


@pytest.mark.parametrize("gone", ["source", "scratch"])
def test_a_machine_that_does_not_see_a_path_says_so_instead_of_condemning_images(gone, tmp_path):
    source = make_folder(tmp_path / "images", 1)
    listing = list_source(source, tmp_path)
    places = {"source": listing.source, "scratch": tmp_path}
    places[gone] = {
        "source": replace(listing.source, url=str(tmp_path / "gone")),
        "scratch": tmp_path / "gone",
    }[gone]
    config = ShardConfig(dest=str(tmp_path / "x"), image=ImageConfig(resolution=16), **places)

    with pytest.raises(
        ValueError, match=r"gone is not there on machine .* are URLs, or paths that"
    ):
        make_shard(config, ShardTask(number=0, first_sample=0, entries=(), labels=None))


def test_paths_of_a_submitted_job_do_not_lie_in_the_folder_that_ray_deletes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    image = ImageConfig(resolution=16)
    config = JobConfig(source=["a", "s3://b/c"], dest="data", image=image, ray="auto")
    assert (config.sources, config.dest) == ((f"{tmp_path}/a", "s3://b/c"), f"{tmp_path}/data")

    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(ValueError, match=r"DEST is data, relative to a submitted job's folder, wh"):
        JobConfig(source="/a", dest="data", image=image)
    with pytest.raises(ValueError, match="SOURCE is a, relative to a submitted job's folder"):
        JobConfig(source="a", dest="/data", image=image, ray="auto")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("images", "--ray {address} is no address of a cluster; write auto, local or HOST:PORT"),
        ("127.0.0.1:{port}", "--ray {address}: no cluster answers (nobody answers at {address}"),
    ],
)
def test_a_wrong_address_is_refused_at_once_in_one_sentence(address, message, tmp_path, capsys):
    address = address.format(port=free_ports(1)[0])
    source = make_folder(tmp_path / "images", 1)

    code = main(["shard", str(source), str(tmp_path / "x"), *OPTIONS, "--ray", address])

    err = capsys.readouterr().err
    assert code == 2
    assert message.format(address=address) in err
    assert err.count("\n") == 1
