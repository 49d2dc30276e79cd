"""The cache of a node: verified, bounded, shared, and no reason to fail."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_prep.manifest import DigestError
from pipeline.cache import DiskCache
from tests.file_server import serve_files


def _source(folder, size=1000, seed=0):
    """URL, digest and content of a file."""
    content = hashlib.shake_128(str(seed).encode()).digest(size)
    path = folder / f"source-{seed}"
    path.write_bytes(content)
    return str(path), hashlib.sha256(content).hexdigest(), content


def _bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_once_and_found_by_its_digest(tmp_path):
    url, sha256, content = _source(tmp_path)
    cache = DiskCache(tmp_path / "cache", max_bytes=10**6)

    path = cache.fetch(url, sha256=sha256, size=1000)
    Path(url).unlink()

    assert path.read_bytes() == content
    assert cache.fetch(url, sha256=sha256, size=1000) == path
    assert (
        DiskCache(tmp_path / "cache", max_bytes=10**6).fetch(url, sha256=sha256, size=1000) == path
    )


def test_a_file_that_is_not_the_one_expected_is_refused_and_leaves_nothing(tmp_path, caplog):
    url, sha256, content = _source(tmp_path)
    cache = DiskCache(tmp_path / "cache", max_bytes=10**6)
    Path(url).write_bytes(content[:-1] + b"?")

    with pytest.raises(DigestError, match=f"{url} was altered: its SHA-256 is .* says {sha256}"):
        cache.fetch(url, sha256=sha256, size=1000)
    assert "arrived altered: fetched again" in caplog.text
    with pytest.raises(DigestError, match=f"{url} has 1000 bytes, the manifest says 999"):
        cache.fetch(url, sha256=sha256, size=999)

    assert _bytes_in(tmp_path / "cache") == 0
    Path(url).unlink()
    with pytest.raises(FileNotFoundError, match=f"{url}: there is no such object"):
        cache.fetch(url, sha256=sha256, size=1000)


def test_samples_are_kept_and_dropped(tmp_path):
    cache = DiskCache(tmp_path / "cache", max_bytes=10**6)
    assert cache.get("ab12") is None

    cache.put("ab12", b"image")
    assert cache.get("ab12") == b"image"
    cache.drop("ab12")
    cache.drop("ab12")

    assert cache.get("ab12") is None


def test_the_cache_stays_within_its_bounds_and_keeps_what_was_used_last(tmp_path):
    cache = DiskCache(tmp_path / "cache", max_bytes=64_000)
    cache.put("aa-first", bytes(1000))
    for number in range(200):
        cache.put(f"bb-{number}", bytes(1000))
        assert cache.get("aa-first") is not None  # used all the time
        assert _bytes_in(tmp_path / "cache") <= 64_000
        _older(tmp_path / "cache", f"bb-{number}", 1000 - number)

    assert cache.get("bb-0") is None
    assert cache.get("bb-199") is not None


def _older(folder, name, seconds):
    for path in folder.rglob(name):
        then = time.time() - seconds
        os.utime(path, (then, then))


def test_two_caches_in_one_folder_stay_within_the_bounds_together(tmp_path):
    caches = [DiskCache(tmp_path / "cache", max_bytes=64_000) for _ in range(2)]
    for number in range(200):
        caches[number % 2].put(f"aa-{number}", bytes(1000))

    assert _bytes_in(tmp_path / "cache") <= 64_000


def test_other_things_in_the_folder_are_not_touched(tmp_path):
    """Somebody may give a folder that is not empty."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1").write_bytes(bytes(500_000))
    (tmp_path / ".hidden").write_bytes(b"x")
    for path in (tmp_path / "thesis" / "chapter-1", tmp_path / ".hidden"):
        os.utime(path, (0, 0))
    cache = DiskCache(tmp_path, max_bytes=10_000)

    for number in range(100):
        cache.put(f"aa-{number}", bytes(1000))

    assert (tmp_path / "thesis" / "chapter-1").stat().st_size == 500_000
    assert (tmp_path / ".hidden").exists()


def test_what_a_killed_process_left_half_written_goes_when_it_is_old(tmp_path):
    cache = DiskCache(tmp_path / "cache", max_bytes=10_000)
    cache.put("aa-0", bytes(10))
    half = tmp_path / "cache" / "samples" / "aa" / ".aa-1.99.abcd"
    half.write_bytes(bytes(100))
    fresh = half.with_name(".aa-2.99.abcd")
    fresh.write_bytes(bytes(100))
    os.utime(half, (0, 0))

    for number in range(2, 9):
        cache.put(f"aa-{number}", bytes(100))

    assert not half.exists()
    assert fresh.exists()


def test_a_full_disk_ends_caching_but_not_the_run(tmp_path, monkeypatch, caplog):
    url, sha256, _ = _source(tmp_path)
    cache = DiskCache(tmp_path / "cache", max_bytes=10**6)
    cache.put("aa-0", b"before")

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache.put("aa-1", b"x")
    cache.put("aa-2", b"x")

    assert cache.fetch(url, sha256=sha256, size=1000) is None
    assert cache.get("aa-0") == b"before"
    assert cache.get("aa-1") is None
    assert caplog.text.count("no longer caching in") == 1
    assert "No space left on device" in caplog.text


def test_what_would_push_out_all_else_is_not_fetched(tmp_path):
    url, sha256, _ = _source(tmp_path, size=6000)
    cache = DiskCache(tmp_path / "cache", max_bytes=10_000)
    cache.put("aa-0", bytes(5000))

    assert cache.fetch(url, sha256=sha256, size=6000) is None
    assert cache.get("aa-0") is not None


def test_a_copy_that_was_cut_short_is_fetched_again(tmp_path, caplog):
    url, sha256, content = _source(tmp_path)
    cache = DiskCache(tmp_path / "cache", max_bytes=10**6)
    path = cache.fetch(url, sha256=sha256, size=1000)
    path.write_bytes(content[:999])

    assert cache.fetch(url, sha256=sha256, size=1000).read_bytes() == content
    assert f"copy of {url} is cut short, fetched again" in caplog.text


FETCH = """
import sys
from pathlib import Path
from pipeline.cache import DiskCache
url, sha256, cache = sys.argv[1:]
DiskCache(Path(cache), max_bytes=10**6).fetch(url, sha256=sha256, size=1000)
"""


def test_a_process_killed_while_it_fetches_holds_up_nobody(tmp_path):
    url, sha256, content = _source(tmp_path)
    with serve_files(tmp_path) as files:
        files.delay_s = 60
        url = f"{files.url}/{Path(url).name}"
        child = subprocess.Popen([sys.executable, "-c", FETCH, url, sha256, tmp_path / "cache"])
        while not files.reads:
            time.sleep(0.01)
        child.kill()
        child.wait()

        files.delay_s = 0
        path = DiskCache(tmp_path / "cache", max_bytes=10**6).fetch(url, sha256=sha256, size=1000)

    assert path.read_bytes() == content


def test_many_threads_that_want_one_file_get_it_whole(tmp_path):
    url, sha256, content = _source(tmp_path, size=3_000_000)
    caches = [DiskCache(tmp_path / "cache", max_bytes=10**8) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        fetch = [
            pool.submit(caches[number % 4].fetch, url, sha256=sha256, size=len(content))
            for number in range(16)
        ]
        paths = {future.result() for future in fetch}

    assert len(paths) == 1
    assert paths.pop().read_bytes() == content
    files = list((tmp_path / "cache" / "files").iterdir())
    assert len(files) == 1
