"""What is damaged is never returned: an error says what and where, or a rule replaces it."""

import numpy as np
import pytest

from data_prep import storage
from data_prep.manifest import DigestError, index_url, shard_url
from pipeline.loader import SampleError
from pipeline.order import SampleOrder
from tests.loading import SAMPLES, read, wanted
from tests.small_sets import copy_to, damage, write_nonsense


def _assert_nothing_but(error, message, loader, *, resolution=16):
    """Reading everything raises this error; no batch comes before."""
    seen = []
    with pytest.raises(error, match=message):
        seen.extend(loader.stream([wanted(range(23), resolution)]))
    assert seen == []


def test_an_altered_shard_is_refused_with_url_and_key(set_copy, held, make_loader):
    damage(set_copy, 16, 7)

    key_and_url = rf"sample 0000000\d\d.*{shard_url(set_copy, 16, 1)} was altered: its"
    _assert_nothing_but(DigestError, key_and_url, make_loader(set_copy, held=held))


def test_a_truncated_shard_is_refused_with_url_and_key(set_copy, held, make_loader):
    """Cut at a member's border, where tar readers see nothing amiss."""
    tar = shard_url(set_copy, 16, 2)
    whole = storage.read_bytes(tar)
    storage.write_atomic(tar, whole[: len(whole) // 1024 * 512])

    message = rf"sample 0000000\d\d: {tar} has \d+ bytes, the manifest says {len(whole)}"
    _assert_nothing_but(DigestError, message, make_loader(set_copy, held=held))


def test_an_altered_index_is_refused_with_url_and_key(set_copy, held, make_loader):
    name = index_url(set_copy, 16, 3)
    storage.write_atomic(name, storage.read_bytes(name).replace(b"[", b"[ ", 1))

    message = rf"sample 0000000\d\d: {name} (was altered: its SHA-256|has \d+ bytes, the manifest)"
    _assert_nothing_but(DigestError, message, make_loader(set_copy, held=held))


@pytest.mark.parametrize("kind", ["tar", "json"])
def test_a_missing_file_is_named_with_the_key(kind, set_copy, held, make_loader):
    name = shard_url(set_copy, 16, 3).replace(".tar", f".{kind}")
    storage.delete(name)

    message = rf"sample 0000000\d\d: cannot .* {name}: "
    _assert_nothing_but(storage.MissingError, message, make_loader(set_copy, held=held))


def test_an_image_that_cannot_be_decoded_is_named(set_copy, held, make_loader):
    write_nonsense(set_copy, 16, 11)

    message = (
        f"sample 000000011 in {shard_url(set_copy, 16, 2)} cannot be decoded: .*max_bad_samples"
    )
    _assert_nothing_but(SampleError, message, make_loader(set_copy, held=held))


def test_damage_at_one_level_does_not_stop_another(
    original_set, level_images, make_loader, tmp_path
):
    url = copy_to(original_set, str(tmp_path / "set"))
    damage(url, 16, 7)

    (batch,) = read(make_loader(url), wanted(range(23), 8))

    np.testing.assert_array_equal(batch.images, level_images[8][batch.sample_ids])


# Allowed damage is replaced by rule.


def test_bad_samples_are_replaced_by_the_next_one_the_same_for_every_world_size(
    set_copy, held, level_images, make_loader, caplog
):
    """22 is the last: its successor is 0. 7 and 8 are neighbours: both give 9."""
    for sample in (7, 8):
        damage(set_copy, 16, sample)
    write_nonsense(set_copy, 16, 22)
    order = SampleOrder(SAMPLES, seed=0)
    positions = np.arange(46)
    successors = {7: 9, 8: 9, 22: 0}
    want = [successors.get(sample, sample) for sample in order.samples_at(positions).tolist()]

    for workers in (1, 2, 3):
        shown = np.empty(46, np.int64)
        for rank in range(workers):
            loader = make_loader(set_copy, held=held, max_bad_samples=3)
            batches = read(loader, wanted(positions[:23][rank::workers]),
                            wanted(positions[23:][rank::workers]))  # fmt: skip
            for half, batch in zip((shown[:23], shown[23:]), batches, strict=True):
                half[rank::workers] = batch.sample_ids
                np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
                classes = np.repeat([0, 1, 2], [8, 8, 7])[batch.sample_ids]
                np.testing.assert_array_equal(batch.labels.argmax(1), classes)
            assert {sample for _, sample in loader.bad_samples} <= {7, 8, 22}
        assert shown.tolist() == want
    assert "sample 000000022 in" in caplog.text
    assert "shown instead: the next intact sample (3 of max_bad_samples=3)" in caplog.text


def test_one_bad_sample_too_many_ends_the_run(original_set, make_loader, tmp_path):
    url = copy_to(original_set, str(tmp_path / "set"))
    for sample in (3, 9, 15):
        damage(url, 16, sample)

    _assert_nothing_but(DigestError, "was altered", make_loader(url, max_bad_samples=2))


def test_a_truncated_shard_gives_what_is_left_of_it_if_that_is_allowed(
    set_copy, held, level_images, make_loader
):
    tar = shard_url(set_copy, 16, 4)
    content = storage.read_bytes(tar)
    storage.write_atomic(tar, content[:700])  # in the first of samples 20, 21, 22

    (batch,) = read(make_loader(set_copy, held=held, max_bad_samples=3), wanted(range(23)))

    assert set(batch.sample_ids.tolist()) == set(range(20))
    np.testing.assert_array_equal(batch.images, level_images[16][batch.sample_ids])
