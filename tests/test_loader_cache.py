"""The loader and the cache of a node: verified copies, shared by its processes."""

import functools
import http.server
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_prep import storage
from data_prep.manifest import Manifest, shard_url
from pipeline.loader import Loader, LoaderConfig
from pipeline.order import SampleOrder
from tests.loading import SAMPLES, read, wanted
from tests.small_sets import copy_to


def test_a_damaged_copy_is_fetched_again(
    original_set, held, level_images, make_loader, s3, tmp_path, caplog
):
    url = copy_to(original_set, f"{s3.url}/set")
    read(make_loader(url, held=held), wanted(range(23)))
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.stat().st_size:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))

    (batch,) = read(make_loader(url, held=held), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
    assert "is damaged" in caplog.text
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


class _CountingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, whole or a range, and notes what was asked for."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        self.send_response(206 if asked else 200)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            self.server.ranges.append((self.path, int(first), int(last)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[int(first) : int(last) + 1]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(original_set):
    """The data set on a web server: (URL, ranges asked for)."""
    folder = Path(original_set)
    handler = functools.partial(_CountingHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.ranges = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", server.ranges
        server.shutdown()
        thread.join()


def test_neighbours_are_read_with_onewanted(web, make_loader, level_images):
    url, ranges = web

    (batch,) = read(make_loader(url, held=False, threads=1), wanted(range(23)))

    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
    assert len([path for path, _, _ in ranges if path.endswith(".tar")]) == 5  # one a shard


def _read_all(url, cache, resolution):
    manifest = Manifest.load(url)
    config = LoaderConfig(cache_dir=cache, threads=2, held_resolution=64)
    loader = Loader(url, manifest, SampleOrder(manifest.samples, 0), config=config)
    return read(loader, wanted(range(23), resolution))[0].images.numpy()


def test_two_processes_of_a_node_fetch_a_shard_once_together(web, level_images, tmp_path):
    url, ranges = web
    context = multiprocessing.get_context("spawn")

    with ProcessPoolExecutor(2, mp_context=context) as pool:
        arguments = [url] * 2, [tmp_path / "cache"] * 2, [16] * 2
        first, second = pool.map(_read_all, *arguments)

    order = SampleOrder(SAMPLES, 0).samples_at(np.arange(23))
    for images in (first, second):
        np.testing.assert_array_equal(images, level_images[16][order])
    asked = [path for path, _, _ in ranges]
    assert sorted(asked) == sorted(set(asked))


def _child_reads(loader, queue):
    queue.put(read(loader, wanted(range(23)))[0].images.numpy())


def test_a_loader_survives_a_fork_with_a_stream_running_in_the_parent(
    original_set, level_images, make_loader, s3
):
    url = copy_to(original_set, f"{s3.url}/set")
    loader = make_loader(url, held=False)
    stream = loader.stream(wanted(range(23)) for _ in range(3))
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
    np.testing.assert_array_equal(next(stream).images, level_images[16][samples])
    stream.close()
