"""Streams of the loader: what is read of the store, what threads share, and how all of it ends."""

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import storage
from data_prep.manifest import DigestError, Manifest, index_url, shard_url
from pipeline import loader as loader_module
from pipeline.loader import Loader, LoaderConfig
from pipeline.order import SampleOrder
from tests.file_server import FileServer, serve_files
from tests.loading import SAMPLES, read, wanted
from tests.small_sets import copy_to, damage


class Straight:
    """The order of the data set itself, so that a position tells the sample."""

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        return positions % SAMPLES


@pytest.fixture
def files(original_set) -> FileServer:
    """The data set on a web server that counts."""
    with serve_files(Path(original_set)) as served:
        yield served


@pytest.fixture
def damaged_set(original_set, tmp_path):
    """URL of a local copy in which these samples are damaged at 16 px."""

    def make(*samples):
        url = copy_to(original_set, str(tmp_path / "set"))
        for sample in samples:
            damage(url, 16, sample)
        return url

    return make


@pytest.fixture
def straight(tmp_path):
    """A loader whose positions are sample numbers."""

    def make(url, **options):
        config = LoaderConfig(**{"cache_dir": tmp_path / "cache", "threads": 2, **options})
        return Loader(url, Manifest.load(url), Straight(), config=config)

    return make


# What is read of the store.


def test_a_seek_far_into_the_run_reads_two_indices_and_one_image(files, straight, level_images):
    loader = straight(files.url, held_resolution=0, threads=4)
    files.reads.clear()

    (batch,) = read(loader, wanted([10**15 * SAMPLES + 13]))  # row 3 of shard 2

    np.testing.assert_array_equal(batch.images[0], level_images[16][13])
    assert sorted(files.read_paths(".json")) == ["16/000002.json", "4/000002.json"]  # and labels
    ((path, length),) = [entry for entry in files.reads if entry[0].endswith(".tar")]
    assert path == "16/000002.tar"
    assert length < 2048  # a PNG of 16 px, not its shard


SECOND = """
import sys
from pathlib import Path
import numpy as np
from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.order import SampleOrder
url, cache, held = sys.argv[1:]
config = LoaderConfig(cache_dir=Path(cache), held_resolution=int(held))
loader = Loader(url, Manifest.load(url), SampleOrder(23, 1), config=config)
request = Request(level_resolution=16, positions=np.arange(23), label_samples=np.arange(23))
(batch,) = loader.stream([request])
print(batch.images.sum().item())
"""


@pytest.mark.parametrize("held_resolution", [0, 64], ids=["by image", "held"])
def test_a_second_process_on_the_node_reads_nothing_again(
    files, straight, level_images, tmp_path, held_resolution
):
    read(straight(files.url, held_resolution=held_resolution), wanted(range(23)))
    files.reads.clear()

    result = subprocess.run(
        [sys.executable, "-c", SECOND, files.url, tmp_path / "cache", str(held_resolution)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert int(result.stdout) == level_images[16].sum(dtype=np.int64), result.stderr
    assert [path for path, _ in files.reads] == ["manifest.json"]


@pytest.mark.parametrize("held_resolution", [0, 64], ids=["by image", "held"])
def test_what_only_the_transfer_damaged_is_read_again(
    files, straight, level_images, held_resolution
):
    loader = straight(files.url, held_resolution=held_resolution, threads=1)
    files.damage = {"000001.tar", "000001.json"}

    (batch,) = read(loader, wanted(range(4, 11)))

    assert not files.damage  # both were sent
    np.testing.assert_array_equal(batch.images, level_images[16][4:11])


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.order import SampleOrder
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
url, cache = sys.argv[1:]
for held in (64, 0):
    config = LoaderConfig(cache_dir=Path(cache), held_resolution=held, threads=1)
    loader = Loader(url, Manifest.load(url), SampleOrder(23, 1), config=config)
    (batch,) = loader.stream([Request(level_resolution=16, positions=np.arange(23))])
    print(batch.images.sum().item())
"""


def test_a_disk_that_takes_no_more_ends_caching_but_not_the_run(files, level_images, tmp_path):
    """The kernel refuses to write files longer than 500 bytes, as it would on a full disk."""
    result = subprocess.run(
        [sys.executable, "-c", FULL, files.url, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=False,
    )

    total = level_images[16].sum(dtype=np.int64)
    assert result.stdout.split() == [str(total)] * 2, result.stderr
    assert result.stderr.count(f"no longer caching in {tmp_path}/cache: ") == 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".")]


# What batches and threads share.


def test_batches_and_streams_are_independent_of_each_other(original_set, straight, level_images):
    loader = straight(original_set)

    for sample, (first, second) in enumerate(
        zip(
            loader.stream(wanted([sample, 3]) for sample in range(6)),
            loader.stream(wanted([sample, 3], 8) for sample in range(6)),
            strict=True,
        )
    ):
        np.testing.assert_array_equal(first.images, level_images[16][[sample, 3]])
        np.testing.assert_array_equal(second.images, level_images[8][[sample, 3]])
        first.images.zero_()
        second.images.zero_()


def test_levels_may_alternate_with_batches_on_their_way(original_set, straight, level_images):
    sides = [4, 4, 8, 16, 16, 4, 8, 16, 8, 8]
    requests = [wanted(np.arange(9) + 9 * at, side) for at, side in enumerate(sides)]

    batches = read(straight(original_set, prefetch=4), *requests)

    for at, (side, batch) in enumerate(zip(sides, batches, strict=True)):
        np.testing.assert_array_equal(
            batch.images, level_images[side][(np.arange(9) + 9 * at) % SAMPLES]
        )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_slices_of_all_workers_show_every_sample_once_per_epoch(
    original_set, make_loader, workers
):
    """Neither a batch nor a slice ends with an epoch."""
    shown = np.zeros((3, SAMPLES), np.int64)
    for rank in range(workers):
        parts = [
            part[part < 3 * SAMPLES] for part in np.arange(72).reshape(-1, 6)[:, rank::workers]
        ]
        batches = read(make_loader(original_set), *(wanted(part, 4) for part in parts))
        for part, batch in zip(parts, batches, strict=True):
            np.add.at(shown, (part // SAMPLES, batch.sample_ids), 1)

    assert (shown == 1).all()


@pytest.mark.parametrize("threads", [1, 8])
def test_one_damaged_image_counts_once_however_many_threads_meet_it(damaged_set, straight, threads):
    url = damaged_set(6, 7)

    for _ in range(10):
        loader = straight(url, max_bad_samples=2, threads=threads)
        for batch in loader.stream(wanted([6, 7] * 8) for _ in range(3)):
            assert set(batch.sample_ids) == {8}
        assert sorted(loader.bad_samples) == [(16, 6), (16, 7)]


# Damage that comes or is met in the middle.


def test_what_comes_before_a_damaged_image_is_shown_and_nothing_after_it(
    damaged_set, straight, level_images
):
    url = damaged_set(11)
    loader = straight(url, prefetch=2)
    stream = loader.stream([wanted([10, 12]), wanted([3, 11]), wanted([4])])

    np.testing.assert_array_equal(next(stream).images, level_images[16][[10, 12]])
    with pytest.raises(DigestError, match=f"sample 000000011 in {url}/16/000002.tar was altered"):
        next(stream)
    assert list(stream) == []


def test_a_shard_that_is_cut_short_while_it_is_read_is_noticed(damaged_set, straight, level_images):
    url = damaged_set()
    stream = straight(url, prefetch=0).stream([wanted([10]), wanted([13])])
    np.testing.assert_array_equal(next(stream).images, level_images[16][[10]])

    tar = Path(shard_url(url, 16, 2))
    tar.write_bytes(tar.read_bytes()[:2000])

    with pytest.raises(DigestError, match=f"sample 000000013 in {tar} was altered: its"):
        next(stream)


@pytest.mark.parametrize("held", [True, False], ids=["held", "by image"])
def test_an_intact_shard_at_the_place_of_another_is_refused(set_copy, make_loader, held):
    for url in (shard_url, index_url):
        storage.write_atomic(url(set_copy, 16, 2), storage.read_bytes(url(set_copy, 16, 1)))

    with pytest.raises(DigestError, match=r"sample 0000000\d\d: .*/16/000002\.\w+ (was alt|has )"):
        read(make_loader(set_copy, held=held), wanted(range(23)))


def test_a_data_set_without_an_intact_image_ends_the_run(damaged_set, straight):
    url = damaged_set(*range(SAMPLES))

    with pytest.raises(DigestError, match=f"no image of {url} is intact at 16 px"):
        read(straight(url, max_bad_samples=1000), wanted([4]))


# How a stream ends.


def _loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def _wait_until_no_thread_is_left():
    end_s = time.monotonic() + 10
    while _loader_threads() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not _loader_threads()


@pytest.mark.parametrize("end", ["close", "exhaust", "error", "forget"])
def test_the_threads_of_a_stream_end_with_it_and_at_once(original_set, straight, end, caplog):
    requests = (wanted([number, number + 1]) for number in range(4 if end == "exhaust" else 10**9))
    if end == "error":
        requests = itertools.chain([wanted([0])] * 3, [wanted([0], 32)])
    stream = straight(original_set, prefetch=2).stream(requests)
    next(stream)
    assert _loader_threads()

    start_s = time.monotonic()
    if end == "close":
        stream.close()
    elif end == "exhaust":
        assert len(list(stream)) == 3
    elif end == "error":
        with pytest.raises(ValueError, match="no level of 32 px; choose from 4, 8, 16"):
            next(stream)
    else:
        del stream

    assert time.monotonic() - start_s < 3
    assert "hangs" not in caplog.text
    _wait_until_no_thread_is_left()


def test_closing_does_not_wait_for_ever_for_a_store_that_hangs(
    files, straight, monkeypatch, caplog
):
    monkeypatch.setattr(loader_module, "_CLOSE_S", 0.5)
    loader = straight(files.url, prefetch=1)
    assert len(read(loader, wanted([0]))) == 1  # from now on in the cache
    files.reads.clear()
    files.delay_s = 2
    stream = loader.stream([wanted([0]), wanted([22])])
    next(stream)
    while not files.reads:
        time.sleep(0.01)

    start_s = time.monotonic()
    stream.close()

    assert 0.4 < time.monotonic() - start_s < 1.5
    assert f"a read of {files.url} still hangs; its thread is left alone" in caplog.text
    _wait_until_no_thread_is_left()


def test_a_slow_store_is_waited_for_once_and_what_came_ahead_is_not(files, straight):
    files.delay_s = 0.2
    loader = straight(files.url, held_resolution=0, prefetch=1)
    stream = loader.stream([wanted([0]), wanted([8])])

    first = next(stream)
    time.sleep(1.2)
    second = next(stream)

    assert first.wait_s > 0.35  # an index, then an image
    assert second.wait_s < 0.2


def test_the_order_of_the_run_is_what_is_shown(original_set, make_loader):
    positions = np.array([5, 10**12, 5, 0])

    (batch,) = read(make_loader(f"{original_set}/manifest.json", seed=4), wanted(positions))

    assert batch.sample_ids.tolist() == SampleOrder(SAMPLES, 4).samples_at(positions).tolist()
