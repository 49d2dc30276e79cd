"""Sources in S3 and on the web read as they do from a folder."""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

from data_prep import storage
from data_prep.images import BadImageError
from data_prep.manifest import Manifest
from data_prep.sources import SourceError, list_source, list_sources
from tests.file_server import serve_files
from tests.small_sets import make_folder, shard, tree
from tests.source_forms import TFRECORDS, contents, ffhq, webdataset


def _store(folder: Path) -> dict[str, Path]:
    """One source of each form that a store can hold."""
    images = make_folder(folder / "folder", 6, classes=2)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(folder / "packed"), kind, images)
    shard(images, folder / "set", labels="folder")
    webdataset(folder / "wds", shards=2)
    ffhq(folder / "ffhq")
    shutil.copytree(TFRECORDS, folder / "golden")
    names = ("folder", "packed.zip", "packed.tar", "packed.tar.gz", "set", "wds", "ffhq", "golden")
    return {name: folder / name for name in names}


def test_every_form_reads_the_same_from_s3(s3, tmp_path):
    (tmp_path / "store").mkdir()
    sources = _store(tmp_path / "store")
    for name, content in tree(tmp_path / "store").items():
        storage.write_atomic(f"{s3.url}/{name}", content)

    for name, path in sources.items():
        here, there = list_source(path, tmp_path), list_source(f"{s3.url}/{name}", tmp_path)
        assert contents(there) == contents(here), name
        assert there.labels == here.labels
        assert there.sidecars.keys() == here.sidecars.keys()
        again = list_source(f"{s3.url}/{name}", tmp_path)
        assert [entry.identity for entry in again.entries] == [
            entry.identity for entry in there.entries
        ]
    for kind in ("s3", "folder"):
        source = f"{s3.url}/wds" if kind == "s3" else sources["wds"]
        shard(source, tmp_path / kind, labels="source", name="x")
    assert Manifest.load(str(tmp_path / "s3")) == Manifest.load(str(tmp_path / "folder"))


def test_an_object_that_is_missing_and_one_that_changed_are_bad_images(s3, tmp_path):
    for name, content in tree(make_folder(tmp_path / "images", 3)).items():
        storage.write_atomic(f"{s3.url}/{name}", content)
    listing = list_source(s3.url, tmp_path)

    storage.delete(f"{s3.url}/0001.png")
    storage.write_atomic(f"{s3.url}/0002.png", b"other")

    with pytest.raises(BadImageError, match=r"cannot be read: .*there is no such object"):
        listing.source.read(listing.entries[1])
    with pytest.raises(BadImageError, match="truncated: only 5 of"):
        listing.source.read(listing.entries[2])
    with pytest.raises(SourceError, match=r"source .*/nothing does not exist"):
        list_source(f"{s3.url}/nothing", tmp_path)


def test_archives_and_data_sets_are_read_from_the_web(tmp_path):
    (tmp_path / "store").mkdir()
    sources = _store(tmp_path / "store")
    with serve_files(tmp_path / "store") as server:
        for name in ("packed.zip", "packed.tar", "packed.tar.gz", "set/manifest.json"):
            here = list_source(sources[name.partition("/")[0]], tmp_path)
            server.reads.clear()
            there = list_source(f"{server.url}/{name}", tmp_path)
            assert contents(there) == contents(here), name
        wds = list_sources([f"{server.url}/wds/{{000..001}}.tar"], tmp_path)
        assert len(contents(wds)) == 8
        with pytest.raises(SourceError, match=r"x.zip does not exist"):
            list_source(f"{server.url}/x.zip", tmp_path)


def test_a_folder_of_the_web_is_listed_by_its_pages(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a b.png").write_bytes(b"1")
    (tmp_path / "sub" / "ü.png").write_bytes(b"22")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        listing = list_source(f"http://127.0.0.1:{server.server_port}/", tmp_path)
        assert contents(listing) == {"a b.png": b"1", "sub/ü.png": b"22"}
        server.shutdown()


def test_reading_a_member_of_a_zip_in_a_store_reads_little_else(tmp_path):
    images = make_folder(tmp_path / "images", 8, side=64)
    shutil.make_archive(str(tmp_path / "x"), "zip", images)
    with serve_files(tmp_path) as server:
        listing = list_source(f"{server.url}/x.zip", tmp_path)
        server.reads.clear()
        content = listing.source.read(listing.entries[3])
        assert [length for _, length in server.reads] == [pytest.approx(len(content), abs=200)]
