"""The manifest: its digest covers every byte, and says what was altered."""

import contextlib
import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.manifest import (
    DigestError,
    Labels,
    Level,
    Manifest,
    Shard,
    ShardIndex,
    folder_url,
    manifest_url,
    sample_digest,
)
from tests.small_sets import make_dataset, make_folder, shard


def _manifest(**changes) -> Manifest:
    level = Level(
        resolution=4,
        encoding="npy",
        bytes=3000,
        shards=(_shard(5), _shard(5), _shard(2)),
    )
    return Manifest(
        **{
            "name": "faces",
            "samples": 12,
            "resolution": 4,
            "channels": 3,
            "samples_per_shard": 5,
            "source_transform": {"crop": "centre"},
            "levels": (level,),
            "labels": Labels(kind="class", size=3),
            **changes,
        }
    )


def _shard(samples: int) -> Shard:
    return Shard(
        samples=samples, bytes=1000, sha256="ab" * 32, index_bytes=100, index_sha256="cd" * 32
    )


def _index(**changes) -> ShardIndex:
    return ShardIndex(
        **{
            "keys": ("000000000", "000000001"),
            "sources": ("a.png", "ü/b\udcff.png"),
            "offsets": (512, 1536),
            "lengths": (3, 4),
            "sha256": (sample_digest(b"abc"), sample_digest(b"defg")),
            "labels": (1, 0),
            **changes,
        }
    )


NAMED = Labels(kind="class", size=3, names=("a", "b", "c"))


def test_a_manifest_is_read_back_as_it_was_written():
    manifest = _manifest()

    assert Manifest.from_json(manifest.to_json()) == manifest
    for labels in (None, NAMED):
        assert Manifest.from_json(_manifest(labels=labels).to_json()) == _manifest(labels=labels)
    with pytest.raises(ValueError, match="labels have 3 names, but size 4; run data_prep again"):
        dataclasses.replace(NAMED, size=4)


def test_the_digest_of_a_manifest_never_changes_silently():
    """Another value means that no run recognises its data set any more."""
    assert _manifest().digest == (
        "9f270aa2704366706ec6203bb8b3ffa2bb93fe0f769b33a6bcae2f478f96cc6f"
    )


def test_the_digest_covers_everything_but_the_name():
    manifest = _manifest()
    level = manifest.levels[0]

    assert _manifest(name="other").digest == manifest.digest
    others = [
        _manifest(channels=1),
        _manifest(resolution=8),
        _manifest(source_transform={"crop": "none"}),
        _manifest(labels=None),
        _manifest(labels=NAMED),
        _manifest(resample="lanczos"),
        _manifest(levels=(dataclasses.replace(level, encoding="png"),)),
        _manifest(levels=(dataclasses.replace(level, bytes=1),)),
        _manifest(levels=(dataclasses.replace(level, shards=(*level.shards[:2], _other(2))),)),
    ]
    assert len({manifest.digest, *(other.digest for other in others)}) == len(others) + 1


def _other(samples: int) -> Shard:
    return dataclasses.replace(_shard(samples), index_sha256="ef" * 32)


def test_two_data_sets_of_the_same_images_have_one_digest_wherever_they_lie(tmp_path):
    source = make_folder(tmp_path / "images", 7)

    first = shard(source, tmp_path / "first").manifest
    second = shard(source, tmp_path / "second", name="second").manifest

    assert first.digest == second.digest


@given(st.integers(0, 10**6))
def test_an_altered_manifest_is_refused(place):
    text = _manifest().to_json()
    place %= len(text)
    altered = text[:place] + ("7" if text[place] != "7" else "8") + text[place + 1 :]

    with contextlib.suppress(ValueError):
        read = Manifest.from_json(altered)
        # Only white space and the name may differ unnoticed.
        assert read == dataclasses.replace(_manifest(), name=read.name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.json is not JSON"),
        (b"\xff\xfe", "m.json is not JSON"),
        ("[]", "m.json has format None, but this version reads format 1; make the data set again"),
        ('{"format": 2}', "m.json has format 2, but this version reads format 1"),
    ],
)
def test_what_is_no_manifest_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Manifest.from_json(text, url="m.json")


def test_a_manifest_with_a_right_digest_but_missing_entries_is_refused():
    content = json.loads(_manifest().to_json())
    del content["levels"], content["digest"]
    canonical = json.dumps(
        {key: content[key] for key in content if key != "name"},
        sort_keys=True,
        separators=(",", ":"),
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()

    with pytest.raises(ValueError, match=r"m.json is no manifest of a data set: KeyError"):
        Manifest.from_json(json.dumps({**content, "digest": digest}), url="m.json")


def test_shards_must_add_up():
    level = dataclasses.replace(_manifest().levels[0], shards=(_shard(5), _shard(7)))

    with pytest.raises(ValueError, match=r"level 4 holds shards of \[5, 7\] samples, but 12 "):
        _manifest(levels=(level,))
    with pytest.raises(ValueError, match="0 samples in shards of 5; both must be at least 1"):
        _manifest(samples=0)


def test_samples_are_located_by_arithmetic():
    manifest = _manifest()

    assert [manifest.locate(sample) for sample in (0, 4, 5, 11)] == [(0, 0), (0, 4), (1, 0), (2, 1)]
    with pytest.raises(ValueError, match="sample 12 is not in data set faces; choose from 0 to 11"):
        manifest.locate(12)
    with pytest.raises(ValueError, match="faces has no level of 8 px; choose from 4"):
        manifest.level(8)


def test_an_index_is_read_back_and_verified():
    index = _index()
    content = index.to_bytes()
    entry = dataclasses.replace(_shard(2), index_sha256=hashlib.sha256(content).hexdigest())

    assert ShardIndex.from_bytes(content, entry) == index
    vectors = _index(labels=((0.5, 1.0), (0.0, -1.0)))
    vector_entry = dataclasses.replace(
        entry, index_sha256=hashlib.sha256(vectors.to_bytes()).hexdigest()
    )
    assert ShardIndex.from_bytes(vectors.to_bytes(), vector_entry) == vectors
    with pytest.raises(DigestError, match=r"u.json was altered: its SHA-256 is"):
        ShardIndex.from_bytes(content + b" ", entry, url="u.json")


def test_a_data_set_is_named_by_its_folder_or_its_manifest(tmp_path):
    url = make_dataset(tmp_path, 3)

    assert Manifest.load(url) == Manifest.load(f"{url}/manifest.json")
    assert Manifest.load(f"file://{url}") == Manifest.load(url + "/")
    assert manifest_url("s3://b/x/") == "s3://b/x/manifest.json"
    assert folder_url("s3://b/x/manifest.json") == "s3://b/x"
    assert folder_url("s3://b/x/") == "s3://b/x"


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"cannot read {tmp_path}/x/manifest.json: there is"
    ):
        Manifest.load(str(tmp_path / "x"))
