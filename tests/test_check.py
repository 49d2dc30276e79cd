"""`python -m data_prep check` finds whatever is wrong with a data set, and names it."""

import dataclasses
import io
import json

import numpy as np
import pytest

from data_prep import storage
from data_prep.__main__ import main
from data_prep.check import check
from data_prep.manifest import Labels, Manifest, ShardIndex, manifest_url
from tests.small_sets import (
    copy_to,
    damage,
    expected_images,
    image_array,
    image_bytes,
    make_dataset,
    make_folder,
    shard,
    write_nonsense,
)


@pytest.fixture(scope="module")
def good_set(tmp_path_factory):
    """URL of a data set of 13 samples of 3 classes in 3 shards, 4 to 32 px, of every encoding."""
    return make_dataset(tmp_path_factory.mktemp("set"), 13, classes=3, side=32)


def _check(url):
    return check(url, lambda done, total, what: None)


def _errors(report):
    return {name: kind.count for name, kind in report.kinds.items() if kind.severity == "error"}


@pytest.mark.parametrize("copy", [None, "memory://checked"], ids=["local", "remote"])
def test_nothing_is_wrong_with_what_the_job_made(copy, good_set):
    url = good_set if copy is None else copy_to(good_set, copy)

    report = _check(url)

    assert report.kinds == {}
    assert report.facts["samples"] == 13
    assert report.facts["digest"] == Manifest.load(good_set).digest
    assert report.facts["MiB of a level"].keys() == {
        "32 px png",
        "16 px webp",
        "8 px npy",
        "4 px npy",
    }
    assert report.facts["images of a class"] == {
        "fewest": 4,
        "median": 4,
        "most": 5,
        "classes without any": 0,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 1},
        {"channels": 4, "alpha": "keep", "lower_encoding": "png"},
        {"encoding": "jpg", "downsampling": "lanczos"},
        {"height": 16, "encoding": "webp", "downsampling": "lanczos"},
        {"crop": "centre-wide"},
    ],
    ids=str,
)
def test_nothing_is_wrong_with_other_channels_shapes_and_encodings(options, tmp_path):
    from data_prep.images import ImageConfig
    from data_prep.job import run_job
    from data_prep.job_config import JobConfig

    source = make_folder(tmp_path / "images", 3, side=32)
    config = ImageConfig(resolution=32, **options)
    job = JobConfig(source=source, dest=str(tmp_path / "data"), image=config)
    run_job(job, lambda done, total, what: None)

    assert _check(str(tmp_path / "data")).kinds == {}


def _altered_labels(url, labels):
    """Other labels in the index of the full level's first shard, with right digests."""
    manifest = Manifest.load(url)
    index = ShardIndex.load(url, 32, 0, manifest)
    changed = dataclasses.replace(index, labels=(labels, *index.labels[1:]))
    _rewrite_index(url, changed)


def _rewrite_index(url, changed):
    import hashlib

    manifest, content = Manifest.load(url), changed.to_bytes()
    level = manifest.level(32)
    entry = dataclasses.replace(
        level.shards[0],
        index_bytes=len(content),
        index_sha256=hashlib.sha256(content).hexdigest(),
    )
    level = dataclasses.replace(level, shards=(entry, *level.shards[1:]))
    storage.write_atomic(f"{url}/32/000000.json", content)
    _write(url, dataclasses.replace(manifest, levels=(*manifest.levels[:-1], level)))


def _write(url, manifest):
    storage.write_atomic(manifest_url(url), manifest.to_json().encode())


def _wrong_key(url):
    index = ShardIndex.load(url, 32, 0, Manifest.load(url))
    _rewrite_index(url, dataclasses.replace(index, keys=("000000009", *index.keys[1:])))


def _wrong_offset(url):
    index = ShardIndex.load(url, 32, 0, Manifest.load(url))
    _rewrite_index(url, dataclasses.replace(index, offsets=(0, *index.offsets[1:])))


def _other_level(url):
    """The 8 px image of sample 3 is another than the full one made smaller."""
    buffer = io.BytesIO()
    np.save(buffer, image_array(99, 8))
    write_nonsense(url, 8, 3, buffer.getvalue())


def _other_size(url):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((16, 4, 3), np.uint8))
    write_nonsense(url, 8, 3, buffer.getvalue())


def _more_classes(url):
    _write(url, dataclasses.replace(Manifest.load(url), labels=Labels(kind="class", size=2)))


def _fewer_levels(url):
    manifest = Manifest.load(url)
    levels = (*manifest.levels[:1], *manifest.levels[2:])
    _write(url, dataclasses.replace(manifest, levels=levels))


def _wrong_bytes(url):
    manifest = Manifest.load(url)
    first = dataclasses.replace(manifest.levels[0], bytes=1)
    _write(url, dataclasses.replace(manifest, levels=(first, *manifest.levels[1:])))


DAMAGES = {
    "a byte of an image": (lambda url: damage(url, 16, 7), {"altered tar": 1, "altered image": 1}),
    "an image that is none": (lambda url: write_nonsense(url, 32, 7), {"undecodable image": 1}),
    "another image at a level": (_other_level, {"levels differ": 1}),
    "another size": (_other_size, {"wrong size": 1}),
    "a tar is gone": (lambda url: storage.delete(f"{url}/16/000001.tar"), {"missing file": 1}),
    "an index is gone": (lambda url: storage.delete(f"{url}/32/000001.json"), {"missing file": 1}),
    "an index was altered": (
        lambda url: storage.write_atomic(f"{url}/8/000002.json", b"{}"),
        {"altered index": 1},
    ),
    "half a tar": (
        lambda url: storage.write_atomic(
            f"{url}/32/000002.tar", storage.read_bytes(f"{url}/32/000002.tar")[:6000]
        ),
        {"altered tar": 1, "altered image": 2, "tar and index differ": 1, "unreadable tar": 1},
    ),
    "another class": (
        lambda url: _altered_labels(url, 2),
        {"levels differ": 3, "tar and index differ": 1},
    ),
    "no class at all": (
        lambda url: _altered_labels(url, -1),
        {"levels differ": 3, "tar and index differ": 1, "wrong label": 1},
    ),
    "more classes than said": (_more_classes, {"wrong label": 4}),
    "another key": (_wrong_key, {"wrong key": 1, "levels differ": 3}),
    "another offset": (_wrong_offset, {"tar and index differ": 1, "altered image": 1}),
    "a level less": (_fewer_levels, {"levels missing": 1}),
    "another length": (_wrong_bytes, {"level and shards differ": 1}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found_and_named(name, good_set, tmp_path):
    url = copy_to(good_set, f"{tmp_path}/set")
    make, expected = DAMAGES[name]
    make(url)

    report = _check(url)

    assert _errors(report) == expected
    for kind in report.kinds.values():
        assert all(where for where, _ in kind.examples)


def test_an_altered_manifest_ends_the_check_with_one_sentence(good_set, capsys, tmp_path):
    url = copy_to(good_set, f"{tmp_path}/set")
    text = storage.read_bytes(manifest_url(url)).replace(b'"samples": 13', b'"samples": 14')
    storage.write_atomic(manifest_url(url), text)

    assert main(["check", url]) == 2
    assert "manifest.json was altered: its content has digest" in capsys.readouterr().err
    assert main(["check", f"{tmp_path}/nothing"]) == 1
    assert "there is no such" in capsys.readouterr().err


def test_what_is_suspicious_but_not_wrong_is_a_warning_with_thumbnails(capsys, tmp_path):
    source = make_folder(tmp_path / "images", 11, classes=2)
    (source / "class-0" / "copy.png").write_bytes(image_bytes(image_array(3)))
    (source / "class-1" / "flat.png").write_bytes(image_bytes(np.full((16, 16, 3), 7, np.uint8)))
    (source / "class-1" / "bad.png").write_bytes(b"")
    shard(source, tmp_path / "data", labels="folder", max_bad=1)
    (tmp_path / "data" / "16" / "000009.tar").write_bytes(b"left over")
    (tmp_path / "data" / "notes.txt").write_bytes(b"mine")

    sheet, found = tmp_path / "sheet.png", tmp_path / "report.json"
    arguments = ["--workers", "1", "--sheet", str(sheet), "--json", str(found)]
    code = main(["check", f"{tmp_path}/data", *arguments])

    out = capsys.readouterr().out
    assert code == 0, "nothing is wrong"
    assert max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[-1] == "0 errors, 4 warnings"
    rows = {row["kind"]: row for row in json.loads(found.read_text())["findings"]}
    assert {kind: row["count"] for kind, row in rows.items()} == {
        "copy": 1,
        "one colour": 1,
        "no part of the data set": 2,
        "left out when it was made": 1,
    }
    assert rows["left out when it was made"]["examples"][0]["where"] == "class-1/bad.png"
    images = expected_images(f"{tmp_path}/data", 16)
    again, first = (int(text[-9:]) for text in rows["copy"]["examples"][0].values())
    np.testing.assert_array_equal(images[again], images[first])
    assert sheet.stat().st_size > 2000
