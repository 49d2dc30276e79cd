"""The other forms of sources: LMDB, FFHQ, WebDatasets, data sets, several."""

import shutil
import sys
import tarfile
from dataclasses import replace

import lmdb
import numpy as np
import pytest

from data_prep.images import BadImageError
from data_prep.manifest import ShardIndex
from data_prep.sources import SourceError, list_source, list_sources
from tests.small_sets import (
    expected_images,
    image_array,
    image_bytes,
    make_folder,
    read_webdataset,
    shard,
    tree,
)
from tests.source_forms import contents, ffhq, webdataset

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
    assert contents(listing) == {**files, "\udcff\udcfe": b"no image"}
    assert list_source(tmp_path / "x_lmdb" / "data.mdb", tmp_path).entries == listing.entries
    assert (report.manifest.samples, list(report.bad)) == (12, ["\udcff\udcfe"])


def test_an_lmdb_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    (tmp_path / "data.mdb").write_bytes(b"no LMDB" * 1000)
    with pytest.raises(SourceError, match="is no LMDB that can be read"):
        list_source(tmp_path, tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(SourceError, match=r"needs the package lmdb; pip install -e '\.\[lmdb\]'"):
        list_source(tmp_path, tmp_path)


def test_an_entry_that_the_lmdb_cannot_give_is_a_bad_image(tmp_path):
    with lmdb.open(str(tmp_path / "x_lmdb")) as environment, environment.begin(write=True) as write:
        write.put(b"key", b"value")
    listing = list_source(tmp_path / "x_lmdb", tmp_path)
    (entry,) = listing.entries

    with pytest.raises(BadImageError, match="damaged: the LMDB does not give it"):
        listing.source.read(replace(entry, member=""))
    with pytest.raises(BadImageError, match="changed: the LMDB no longer has it"):
        listing.source.read(replace(entry, member="00"))


def test_ffhq_keeps_author_and_licence_of_every_image_at_the_full_level(tmp_path):
    manifest = shard(ffhq(tmp_path / "ffhq"), tmp_path / "data").manifest

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
    folder = ffhq(tmp_path / "ffhq", "in-the-wild-images")
    path = folder / "in-the-wild-images/00000/00002.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (folder / "in-the-wild-images/00000/00003.png").unlink()

    report = shard(folder / "ffhq-dataset-v2.json", tmp_path / "data", max_bad=2)

    assert report.bad.keys() == {f"in-the-wild-images/00000/0000{n}.png" for n in (2, 3)}
    reasons = sorted(report.bad.values())
    assert reasons[0].startswith("cannot be read: [Errno 2] No such file")
    assert reasons[1] == "damaged: its MD5 is another than ffhq-dataset-v2.json says"


def test_a_damaged_list_of_ffhq_and_one_without_images_are_refused(tmp_path):
    folder = ffhq(tmp_path / "ffhq")
    with pytest.raises(SourceError, match="none of images1024x1024, in-the-wild-images and thumbn"):
        list_source(folder, tmp_path, "in-the-wild-images/*")
    (folder / "ffhq-dataset-v2.json").write_text('{"0": {"image": []}}')
    with pytest.raises(SourceError, match="is not the list of FFHQ: "):
        list_source(folder, tmp_path)


def test_a_webdataset_is_its_shards_in_order_with_their_labels(tmp_path):
    folder = webdataset(tmp_path / "wds")

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
    sources = (a, tmp_path / "b.zip", webdataset(tmp_path / "wds", shards=2, each=2))

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


def test_a_tar_without_images_is_empty_not_unknown(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass

    with pytest.raises(ValueError, match=r"source .*x.tar holds no images; they are told by th"):
        shard(tmp_path / "x.tar", tmp_path / "data")
