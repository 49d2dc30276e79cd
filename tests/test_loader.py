"""The loader: the right images at any position of any level, ahead of the training step."""

import shutil
import threading
import time

import numpy as np
import pytest
import torch

from data_prep import storage
from pipeline.loader import LoaderConfig
from pipeline.order import SampleOrder
from tests.loading import SAMPLES, read, wanted
from tests.small_sets import copy_to, make_dataset


def test_any_position_of_any_level_is_the_image_that_webdataset_reads(
    set_copy, level_images, make_loader
):
    positions = [0, 22, 23, 45, 7, 7, 10**9]
    order = SampleOrder(SAMPLES, seed=0)
    for held in (True, False):
        requests = [wanted(positions, resolution) for resolution in (4, 8, 16)]

        batches = read(make_loader(set_copy, held=held), *requests)

        samples = order.samples_at(np.array(positions))
        for batch, resolution in zip(batches, (4, 8, 16), strict=True):
            assert batch.images.dtype == torch.uint8
            np.testing.assert_array_equal(batch.images, level_images[resolution][samples])
            np.testing.assert_array_equal(batch.sample_ids, samples)


def test_an_epoch_shows_every_sample_once_and_the_level_switches_in_mid_run(
    set_copy, level_images, make_loader
):
    """The position carries on: what 8 px has shown, 16 px does not show again."""
    requests = [wanted(range(at, min(at + 4, 23)), 8 if at < 12 else 16) for at in range(0, 23, 4)]

    batches = read(make_loader(set_copy, held=False), *requests)

    ids = np.concatenate([batch.sample_ids for batch in batches])
    assert sorted(ids.tolist()) == list(range(SAMPLES))
    for request, batch in zip(requests, batches, strict=True):
        want = level_images[request.level_resolution][batch.sample_ids]
        np.testing.assert_array_equal(batch.images, want)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_together_read_what_one_reads(workers, original_set, make_loader):
    (whole,) = read(make_loader(original_set), wanted(range(24)))

    parts = [
        read(make_loader(original_set), wanted(range(rank, 24, workers)))[0]
        for rank in range(workers)
    ]

    for rank, part in enumerate(parts):
        torch.testing.assert_close(part.images, whole.images[rank::workers], rtol=0, atol=0)


def test_a_seek_reads_no_other_image(original_set, make_loader, s3, tmp_path):
    url = copy_to(original_set, f"{s3.url}/set")

    (batch,) = read(make_loader(url, held=False), wanted([10**6 + 1, 10**6 + 2]))

    kept = [path for path in (tmp_path / "cache" / "samples").rglob("*") if path.is_file()]
    assert len(kept) == len(set(batch.sample_ids.tolist()))


def test_no_positions_give_an_empty_batch(original_set, make_loader):
    batch, after = read(make_loader(original_set), wanted([]), wanted([1], 8))

    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.labels.shape == (0, 3)
    assert after.images.shape == (1, 3, 8, 8)


def test_labels_are_one_hot_and_those_of_other_samples_need_no_image(
    original_set, make_loader, tmp_path
):
    url = copy_to(original_set, str(tmp_path / "set"))
    (batch,) = read(make_loader(url), wanted(range(5), labels=[22, 0, 0, 7]))
    for tar in (tmp_path / "set").rglob("*.tar"):
        tar.unlink()

    (alone,) = read(make_loader(url), wanted([], labels=[22, 0, 0, 7]))

    # Images are sorted by class, then by number: 8, 8 and 7 of them.
    classes = np.repeat([0, 1, 2], [8, 8, 7])
    one_hot = np.eye(3, dtype=np.float32)[classes]
    np.testing.assert_array_equal(batch.labels, one_hot[batch.sample_ids])
    assert batch.labels.dtype == torch.float32
    for labels in (batch.extra_labels, alone.extra_labels):
        np.testing.assert_array_equal(labels, one_hot[[22, 0, 0, 7]])


def test_without_labels_there_are_none(make_loader, tmp_path):
    url = make_dataset(tmp_path / "set", 3)

    (batch,) = read(make_loader(url), wanted([0, 1], labels=[0]))

    assert batch.labels is None
    assert batch.extra_labels is None


def test_prefetching_looks_just_so_far_ahead(original_set, make_loader):
    asked = []

    def requests():
        for number in range(10):
            asked.append(number)
            yield wanted([number])

    stream = make_loader(original_set, prefetch=3).stream(requests())
    next(stream)
    assert asked == [0, 1, 2, 3]
    next(stream)
    assert asked == [0, 1, 2, 3, 4]

    stream.close()
    for thread in threading.enumerate():
        if thread.name.startswith("loader"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_stream_waits_for_nothing_once_it_is_warm_and_says_what_it_waited(
    original_set, make_loader
):
    stream = make_loader(original_set).stream(wanted(range(8)) for _ in range(20))
    waits_s = []
    for batch in stream:
        waits_s.append(batch.wait_s)
        time.sleep(0.02)  # the training step

    assert waits_s[0] > 0
    assert np.median(waits_s[5:]) < 0.005


def test_small_levels_stay_decoded_and_are_right_again(original_set, level_images, make_loader):
    loader = make_loader(original_set)
    first, second, third = read(loader, *[wanted(range(23)), wanted(range(23)), wanted([5])])

    torch.testing.assert_close(first.images, second.images, rtol=0, atol=0)
    np.testing.assert_array_equal(third.images, level_images[16][third.sample_ids])


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="threads is 0; choose at least 1"):
        LoaderConfig(threads=0)
    with pytest.raises(ValueError, match="stall_s is 0; choose seconds above 0"):
        LoaderConfig(stall_s=0)


def test_a_level_that_is_not_there_is_refused(original_set, make_loader):
    with pytest.raises(ValueError, match="has no level of 32 px; choose from 4, 8, 16"):
        read(make_loader(original_set), wanted([0], 32))


def test_a_local_data_set_that_vanishes_in_mid_run_is_named(original_set, make_loader, tmp_path):
    url = copy_to(original_set, str(tmp_path / "set"))
    stream = make_loader(url, held=False, prefetch=0).stream(wanted(range(23)) for _ in range(2))
    next(stream)
    shutil.rmtree(tmp_path / "set" / "16")

    with pytest.raises(storage.MissingError, match=r"cannot read .*/16/00000\d.tar: it is gone"):
        next(stream)
