"""The loader and the cache of a node: verified copies, shared by its processes."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from data_prep import storage
from data_prep.manifest import Manifest, shard_url
from pipeline.loader import Loader, LoaderConfig
from pipeline.order import SampleOrder
from tests.file_server import serve_files
from tests.loading import SAMPLES, read, wanted
from tests.small_sets import copy_to


def test_a_damaged_copy_is_fetched_again(
    original_set, held, level_images, make_loader, s3, tmp_path, caplog
):
    url = copy_to(original_set, f"{s3.url}/set")
    read(make_loader(url, held=held), wanted(range(23)))
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))

    (batch,) = read(make_loader(url, held=held), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
    kinds = ("is damaged: dropped",) if held else ("copy of an image of",)
    for kind in (*kinds, "is damaged, fetched again"):
        assert kind in caplog.text
    caplog.clear()
    read(make_loader(url, held=held), wanted(range(23)))
    assert caplog.text == ""


def test_held_levels_are_read_from_the_cache_when_the_store_has_lost_them(
    original_set, level_images, make_loader, s3
):
    url = copy_to(original_set, f"{s3.url}/set")
    read(make_loader(url), wanted(range(23)))
    for number in range(5):
        storage.delete(shard_url(url, 16, number))

    (batch,) = read(make_loader(url), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])


def test_without_a_cache_nothing_is_written(original_set, level_images, make_loader, s3, tmp_path):
    url = copy_to(original_set, f"{s3.url}/set")

    (batch,) = read(make_loader(url, cache_bytes=0), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_cache_that_cannot_be_written_is_done_without(
    original_set, level_images, make_loader, s3, tmp_path, caplog
):
    url = copy_to(original_set, f"{s3.url}/set")
    (tmp_path / "cache").write_text("no folder")

    (batch,) = read(make_loader(url), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
    assert caplog.text.count("no longer caching in") == 1


def test_nothing_is_written_for_local_data(original_set, make_loader, tmp_path):
    read(make_loader(original_set), wanted(range(23)))

    assert not (tmp_path / "cache").exists()


def test_neighbours_are_read_with_one_request(original_set, make_loader, level_images):
    with serve_files(Path(original_set)) as files:
        loader = make_loader(files.url, held=False, threads=1)

        (batch,) = read(loader, wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
    assert len(files.read_paths(".tar")) == 5  # one a shard


def _read_all(url, cache, resolution):
    manifest = Manifest.load(url)
    config = LoaderConfig(cache_dir=cache, threads=2, held_resolution=64)
    loader = Loader(url, manifest, SampleOrder(manifest.samples, 0), config=config)
    return read(loader, wanted(range(23), resolution))[0].images.numpy()


def test_two_processes_of_a_node_fetch_a_shard_once_together(original_set, level_images, tmp_path):
    context = multiprocessing.get_context("spawn")

    with serve_files(Path(original_set)) as files, ProcessPoolExecutor(2, context) as pool:
        files.delay_s = 0.1  # so that they meet
        arguments = [files.url] * 2, [tmp_path / "cache"] * 2, [16] * 2
        first, second = pool.map(_read_all, *arguments)

    order = SampleOrder(SAMPLES, 0).samples_at(np.arange(23))
    for images in (first, second):
        np.testing.assert_array_equal(images, level_images[16][order])
    for suffix in (".tar", "0.json", "1.json"):
        asked = files.read_paths(suffix)
        assert sorted(asked) == sorted(set(asked))
    assert len(files.read_paths(".tar")) == 5


def _child_reads(loader, queue):
    queue.put(read(loader, wanted(range(23)))[0].images.numpy())


def test_a_loader_survives_a_fork_with_a_stream_running_in_the_parent(
    original_set, level_images, make_loader, s3
):
    """Neither of the two may harm the connections of the other."""
    url = copy_to(original_set, f"{s3.url}/set")
    loader = make_loader(url, held=False, prefetch=0)
    stream = loader.stream(wanted(range(23), resolution) for resolution in (16, 8))
    next(stream)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    child = context.Process(target=_child_reads, args=(loader, queue))
    child.start()
    images = queue.get()
    child.join(30)

    assert child.exitcode == 0
    samples = SampleOrder(SAMPLES, 0).samples_at(np.arange(23))
    np.testing.assert_array_equal(images, level_images[16][samples])
    start_s = time.monotonic()
    np.testing.assert_array_equal(next(stream).images, level_images[8][samples])
    storage.write_atomic(f"{s3.url}/after", b"1")
    assert time.monotonic() - start_s < 10
    stream.close()


READ_ON = """
import itertools, sys
from pathlib import Path
import numpy as np
from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.order import SampleOrder
url, cache = sys.argv[1:]
streams = []
for held in (0, 64):
    config = LoaderConfig(cache_dir=Path(cache), cache_bytes=50_000, held_resolution=held)
    loader = Loader(url, Manifest.load(url), SampleOrder(23, 0), config=config)
    streams.append(loader.stream(Request(level_resolution=16, positions=np.arange(at, at + 9))
                                 for at in itertools.count()))
for batches in zip(*streams):
    print([int(batch.images.sum()) for batch in batches], flush=True)
"""


def test_a_kill_leaves_nothing_in_shared_memory_or_among_temporary_files(
    original_set, level_images, make_loader, tmp_path
):
    """What it leaves in the cache is whole; the next process goes on with it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serve_files(Path(original_set)) as files:
        child = subprocess.Popen(
            [sys.executable, "-c", READ_ON, files.url, str(tmp_path / "cache")],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
        )
        for _ in range(10):
            assert child.stdout.readline()
        process = psutil.Process(child.pid)
        used = [file.path for file in [*process.memory_maps(), *process.open_files()]]
        child.kill()
        child.wait()
        child.stdout.close()

        assert used
        assert not [path for path in used if path.startswith(("/dev/shm", str(temporary)))]
        assert list(temporary.iterdir()) == []
        whole = [
            path
            for path in (tmp_path / "cache").rglob("*")
            if path.is_file() and path.parent.name != "locks" and path.name[0] != "."
        ]
        assert whole
        for path in whole:
            assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.name)
        (batch,) = read(make_loader(files.url), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
