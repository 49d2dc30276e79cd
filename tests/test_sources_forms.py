"""The other forms of sources: TFRecords, LMDB, FFHQ, WebDatasets, data sets, stores, several."""

import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from data_prep import storage
from data_prep.images import BadImageError
from data_prep.manifest import Manifest, ShardIndex
from data_prep.pyramid import pyramid
from data_prep.sources import Listing, SourceError, list_source, list_sources
from data_prep.sources.crc32c import crc32c, masked_crc32c
from tests import goldens
from tests.file_server import serve_files
from tests.small_sets import (
    expected_images,
    image_array,
    image_bytes,
    make_folder,
    read_webdataset,
    shard,
    tree,
)

TFRECORDS = Path(__file__).parent / "golden" / "F2_tfrecords"
GOLDEN_TFRECORDS = [
    (name, folder)
    for name in goldens.sets("F2_*")
    for folder in goldens.GOLDEN_DIR.glob("F2_tfrecords*")
]


def _images(listing: Listing) -> np.ndarray:
    """All images [n, c, h, w]."""
    files = [listing.source.read(entry) for entry in listing.entries]
    arrays = [np.atleast_3d(np.asarray(Image.open(io.BytesIO(file)))) for file in files]
    return np.stack(arrays).transpose(0, 3, 1, 2)


def _contents(listing: Listing) -> dict[str, bytes]:
    return {entry.name: listing.source.read(entry) for entry in listing.entries}


# TFRecords.


def _levels(folder: Path) -> dict[int, Path]:
    files = sorted(folder.glob("*.tfrecords"))
    return {2 ** int(re.search(r"-r(\d\d)\.", file.name)[1]): file for file in files}


@pytest.mark.parametrize(("name", "folder"), GOLDEN_TFRECORDS)
def test_golden_tfrecords_hold_the_levels_that_were_written(name, folder, tmp_path):
    written = goldens.arrays(name)
    assert _levels(folder)

    for resolution, file in _levels(folder).items():
        images = _images(list_source(file, tmp_path))

        assert images.shape[2:] == (resolution, resolution)
        np.testing.assert_array_equal(images, written[f"out/res{resolution}"])


@pytest.mark.parametrize(("name", "folder"), GOLDEN_TFRECORDS)
def test_golden_tfrecords_become_a_data_set_with_the_official_levels_and_labels(
    name, folder, tmp_path
):
    """Only the full level is read. Ours below it differ by a rounding at most where the files leave
    out the level that theirs were made of.
    """
    resolution = max(_levels(folder))

    manifest = shard(folder, tmp_path / "data", resolution=resolution, labels="source").manifest

    assert [level.resolution for level in manifest.levels] == sorted(_levels(folder))
    made_of = goldens.arrays(name)["in/u8"].shape[-1]
    for level, file in _levels(folder).items():
        images = expected_images(str(tmp_path / "data"), level).astype(int)
        difference = np.abs(images - _images(list_source(file, tmp_path))).max()
        assert difference <= (level < resolution < made_of)
    (labels_file,) = folder.glob("*.labels")
    labels = np.load(labels_file)
    index = ShardIndex.load(str(tmp_path / "data"), resolution, 0, manifest)
    found = np.array(
        [np.eye(labels.shape[1])[x] if isinstance(x, int) else x for x in index.labels]
    )
    np.testing.assert_array_equal(found, labels[: len(found)])
    assert manifest.labels.size == labels.shape[1]


def test_a_flipped_bit_in_golden_tfrecords_is_a_bad_image_or_a_named_rest(tmp_path):
    whole = min(_levels(TFRECORDS).items())[1]
    content = whole.read_bytes()
    copy = tmp_path / whole.name
    entries = list_source(whole, tmp_path).entries
    ends = {0, *(entry.offset + entry.size + 4 for entry in entries)}

    for at in range(0, len(content), 3):
        copy.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        listing = list_source(copy, tmp_path)
        bad = {}
        for entry in listing.entries:
            try:
                listing.source.read(entry)
            except BadImageError as err:
                bad[entry.name] = str(err)
        (reason,) = bad.values()
        assert re.match(r"damaged: its CRC-32C|truncated archive: at byte \d+, ", reason)
        assert len(listing.entries) <= len(entries) + 1
    for length in set(range(0, len(content), 7)) - ends:
        copy.write_bytes(content[:length])
        last = list_source(copy, tmp_path).entries[-1]
        assert last.refused.startswith("truncated archive: ")


def test_labels_that_do_not_fit_golden_tfrecords_are_refused(tmp_path):
    shutil.copytree(TFRECORDS, tmp_path / "x")
    (labels,) = (tmp_path / "x").glob("*.labels")
    with labels.open("wb") as file:
        np.save(file, np.zeros((7, 3), np.float32))
    with pytest.raises(SourceError, match=r"labels has labels of shape \(7, 3\), but .* holds \d+"):
        list_source(tmp_path / "x", tmp_path)
    labels.write_bytes(b"no array")
    with pytest.raises(SourceError, match=r"labels is no .npy file of labels"):
        list_source(tmp_path / "x", tmp_path)
    for name in ("other-r02.tfrecords", "more-r03.tfrecords"):
        (tmp_path / "x" / name).write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"holds the TFRecords of \w+ and more and other; name on"
    ):
        list_source(tmp_path / "x", tmp_path)


def test_crc32c_is_that_of_rfc_3720():
    """Appendix B.4, and the definition bit by bit for other lengths."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    for length in (1, 3, 4, 5, 63, 64, 1000, 4097):
        data, expected = os.urandom(length), 0xFFFFFFFF
        for byte in data:
            expected ^= byte
            for _ in range(8):
                expected = expected >> 1 ^ 0x82F63B78 * (expected & 1)
        assert crc32c(data) == expected ^ 0xFFFFFFFF
    assert masked_crc32c(b"") == 0xA282EAD8


# LMDB.


def test_an_lmdb_gives_its_values_in_the_order_of_their_keys(tmp_path):
    files = {f"{7919 * n % 100:040x}": image_bytes(image_array(n), "WEBP") for n in range(12)}
    environment = lmdb.open(str(tmp_path / "x_lmdb"), map_size=2**24)
    with environment, environment.begin(write=True) as transaction:
        for key, value in files.items():
            transaction.put(key.encode(), value)
        transaction.put(b"\xff\xfe", b"no image")

    listing = list_source(tmp_path / "x_lmdb", tmp_path)
    report = shard(tmp_path / "x_lmdb", tmp_path / "data", max_bad=1, workers=2)

    assert [entry.name for entry in listing.entries] == [*sorted(files), "\udcff\udcfe"]
    assert _contents(listing) == {**files, "\udcff\udcfe": b"no image"}
    assert list_source(tmp_path / "x_lmdb" / "data.mdb", tmp_path).entries == listing.entries
    assert (report.manifest.samples, list(report.bad)) == (12, ["\udcff\udcfe"])


def test_an_lmdb_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    (tmp_path / "data.mdb").write_bytes(b"no LMDB" * 1000)
    with pytest.raises(SourceError, match="is no LMDB that can be read"):
        list_source(tmp_path, tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(SourceError, match=r"needs the package lmdb; pip install 'stylegan-pipelin"):
        list_source(tmp_path, tmp_path)


# FFHQ.


def _ffhq(folder: Path, form: str = "images1024x1024") -> Path:
    folder.mkdir(parents=True)
    records = {}
    for number in range(4):
        content = image_bytes(image_array(number))
        name = f"00000/{number:05d}.png"
        (folder / form / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / form / name).write_bytes(content)
        file = {"file_size": len(content), "file_md5": hashlib.md5(content).hexdigest()}
        records[str(number)] = {
            "category": "training",
            "metadata": {"author": f"Ünal {number}", "license": "Public Domain"},
            **{
                key: {**file, "file_path": f"{place}/{name}"}
                for key, place in (
                    ("image", "images1024x1024"),
                    ("in_the_wild", "in-the-wild-images"),
                    ("thumbnail", "thumbnails128x128"),
                )
            },
        }
    (folder / "ffhq-dataset-v2.json").write_text(json.dumps(records))
    return folder


def test_ffhq_keeps_author_and_licence_of_every_image_at_the_full_level(tmp_path):
    manifest = shard(_ffhq(tmp_path / "ffhq"), tmp_path / "data").manifest

    expected = [{"author": f"Ünal {n}", "license": "Public Domain"} for n in range(4)]
    index = ShardIndex.load(str(tmp_path / "data"), 16, 0, manifest)
    assert list(index.metadata) == expected
    assert ShardIndex.load(str(tmp_path / "data"), 8, 0, manifest).metadata is None
    samples = read_webdataset(tmp_path / "data/16/000000.tar", decode="pil")
    assert [sample["json"] for sample in samples] == expected
    assert all("json" not in s for s in read_webdataset(tmp_path / "data/8/000000.tar"))
    assert '"metadata"' not in (tmp_path / "data/8/000000.json").read_text()

    # Also through a data set made of that data set.
    again = shard(tmp_path / "data", tmp_path / "again", resolution=8).manifest
    assert list(ShardIndex.load(str(tmp_path / "again"), 8, 0, again).metadata) == expected


def test_an_image_of_ffhq_with_another_checksum_is_bad(tmp_path):
    folder = _ffhq(tmp_path / "ffhq", "in-the-wild-images")
    path = folder / "in-the-wild-images/00000/00002.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (folder / "in-the-wild-images/00000/00003.png").unlink()

    report = shard(folder / "ffhq-dataset-v2.json", tmp_path / "data", max_bad=2)

    assert report.bad.keys() == {f"in-the-wild-images/00000/0000{n}.png" for n in (2, 3)}
    reasons = sorted(report.bad.values())
    assert reasons[0].startswith("cannot be read: [Errno 2] No such file")
    assert reasons[1] == "damaged: its MD5 is another than ffhq-dataset-v2.json says"


def test_a_damaged_list_of_ffhq_and_one_without_images_are_refused(tmp_path):
    folder = _ffhq(tmp_path / "ffhq")
    with pytest.raises(SourceError, match="none of images1024x1024, in-the-wild-images and thumbn"):
        list_source(folder, tmp_path, "in-the-wild-images/*")
    (folder / "ffhq-dataset-v2.json").write_text('{"0": {"image": []}}')
    with pytest.raises(SourceError, match="is not the list of FFHQ: "):
        list_source(folder, tmp_path)


# WebDatasets and data sets.


def _webdataset(folder: Path, shards: int = 3, each: int = 4) -> Path:
    from webdataset import TarWriter

    folder.mkdir(parents=True)
    for number in range(shards):
        with (folder / f"{number:03d}.tar").open("wb") as file:
            writer = TarWriter(file)
            for row in range(each):
                sample = number * each + row
                image = image_bytes(image_array(sample))
                writer.write({"__key__": f"{row:04d}", "png": image, "cls": sample % 3})
            writer.close()
    return folder


def test_a_webdataset_is_its_shards_in_order_with_their_labels(tmp_path):
    folder = _webdataset(tmp_path / "wds")

    manifest = shard(folder, tmp_path / "data", labels="source", samples_per_shard=100).manifest
    braces = list_sources([f"{folder}/{{000..002}}.tar"], tmp_path)

    index = ShardIndex.load(str(tmp_path / "data"), 16, 0, manifest)
    assert index.sources == tuple(f"00{n // 4}.tar/{n % 4:04d}.png" for n in range(12))
    assert index.labels == tuple(n % 3 for n in range(12))
    images = expected_images(str(tmp_path / "data"), 16)
    np.testing.assert_array_equal(images[7], image_array(7).transpose(2, 0, 1))
    assert [entry.name for entry in braces.entries] == list(index.sources)


@pytest.mark.parametrize("resolution", [8, 16])
def test_a_data_set_is_a_source_with_its_labels(resolution, tmp_path):
    """Of its full level, be it PNG or bare arrays."""
    source = make_folder(tmp_path / "images", 12, side=resolution, classes=2)
    shard(source, tmp_path / "a", labels="folder", name="x", resolution=resolution)

    shard(tmp_path / "a", tmp_path / "b", labels="source", name="x", resolution=resolution)

    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    del first["job.json"], second["job.json"]
    assert first == second
    listing = list_source(tmp_path / "a" / "manifest.json", tmp_path)
    assert len(listing.entries) == 12
    tar = tmp_path / "a" / str(resolution) / "000001.tar"
    content = bytearray(tar.read_bytes())
    content[listing.entries[5].offset + 60] ^= 1
    tar.write_bytes(content)
    with pytest.raises(BadImageError, match="damaged: its SHA-256 is another than the index says"):
        listing.source.read(listing.entries[5])


def test_another_programs_manifest_json_is_a_file_like_any_other(tmp_path):
    source = make_folder(tmp_path / "images", 2)
    for content in ("[]", "{}", "no json"):
        (source / "manifest.json").write_text(content)
        assert len(list_source(source, tmp_path).entries) == 2


# Several.


def test_several_sources_are_one_whatever_their_order(tmp_path):
    shutil.make_archive(str(tmp_path / "b"), "zip", make_folder(tmp_path / "images", 3))
    a = make_folder(tmp_path / "a", 3)
    sources = (a, tmp_path / "b.zip", _webdataset(tmp_path / "wds", shards=2, each=2))

    first = shard(sources, tmp_path / "x", name="x", workers=2).manifest
    second = shard(sources[::-1], tmp_path / "y", name="x").manifest

    assert first.digest == second.digest
    assert tree(tmp_path / "x") == tree(tmp_path / "y")
    names = [entry.name for entry in list_sources(list(map(str, sources)), tmp_path).entries]
    assert names[2:5] == ["a/0002.png", "b.zip/0000.png", "b.zip/0001.png"]
    assert names[6:] == [f"wds/00{n}.tar/000{m}.png" for n in (0, 1) for m in (0, 1)]


def test_sources_of_one_name_are_told_apart_and_the_same_one_twice_is_refused(tmp_path):
    sources = [str(make_folder(tmp_path / name / "images", 1)) for name in ("a", "b")]

    names = [entry.name for entry in list_sources(sources, tmp_path).entries]

    assert names == ["a/images/0000.png", "b/images/0000.png"]
    with pytest.raises(SourceError, match="is given twice; name it once"):
        list_sources([*sources, f"{sources[0]}/../images"], tmp_path)


def test_only_what_the_pattern_matches_is_included(tmp_path):
    source = make_folder(tmp_path / "images", 12, classes=3)

    listing = list_source(source, tmp_path, "class-1/*")

    assert [entry.name[:7] for entry in listing.entries] == ["class-1"] * 4
    assert listing.ignored == 8


# Stores.


def _store(folder: Path) -> dict[str, Path]:
    """One source of each form that a store can hold."""
    images = make_folder(folder / "folder", 6, classes=2)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(folder / "packed"), kind, images)
    shard(images, folder / "set", labels="folder")
    _webdataset(folder / "wds", shards=2)
    _ffhq(folder / "ffhq")
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
        assert _contents(there) == _contents(here), name
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
            assert _contents(there) == _contents(here), name
        wds = list_sources([f"{server.url}/wds/{{000..001}}.tar"], tmp_path)
        assert len(_contents(wds)) == 8
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
        assert _contents(listing) == {"a b.png": b"1", "sub/ü.png": b"22"}
        server.shutdown()


def test_reading_a_member_of_a_zip_in_a_store_reads_little_else(tmp_path):
    images = make_folder(tmp_path / "images", 8, side=64)
    shutil.make_archive(str(tmp_path / "x"), "zip", images)
    with serve_files(tmp_path) as server:
        listing = list_source(f"{server.url}/x.zip", tmp_path)
        server.reads.clear()
        content = listing.source.read(listing.entries[3])
        assert [length for _, length in server.reads] == [pytest.approx(len(content), abs=200)]


def test_pyramids_of_grey_tfrecords_are_read(tmp_path):
    """One channel, and values packed or not, as protobuf leaves it to the writer."""
    image = image_array(1)[:, :, :1]
    for packed in (True, False):
        record = _example(image.transpose(2, 0, 1), packed=packed)
        head = len(record).to_bytes(8, "little")
        (tmp_path / "x-r04.tfrecords").write_bytes(
            head
            + masked_crc32c(head).to_bytes(4, "little")
            + record
            + masked_crc32c(record).to_bytes(4, "little")
        )

        images = _images(list_source(tmp_path, tmp_path))

        np.testing.assert_array_equal(images[0], image.transpose(2, 0, 1))
        assert pyramid(image)[-1].shape == (16, 16, 1)


def _example(image: np.ndarray, *, packed: bool) -> bytes:
    def field(number: int, content: bytes) -> bytes:
        length = len(content)
        size = bytes([length & 0x7F | 0x80, length >> 7]) if length > 127 else bytes([length])
        return bytes([number << 3 | 2]) + size + content

    numbers = (bytes([n]) for n in image.shape)
    shape = field(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers)
    data = field(1, image.tobytes())
    features = b"".join(
        field(1, field(1, name) + field(2, field(kind, value)))
        for name, kind, value in ((b"shape", 3, shape), (b"data", 1, data))
    )
    return field(1, features)


def test_a_tar_without_images_is_empty_not_unknown(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass

    with pytest.raises(ValueError, match=r"source .*x.tar holds no images; their suffixes tell th"):
        shard(tmp_path / "x.tar", tmp_path / "data")
