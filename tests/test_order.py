"""The order of samples: exactly once per epoch, mixed, a function of (seed, epoch, place) alone."""

import hashlib
import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import BLOCK, WINDOW, SampleOrder


@given(
    samples=st.integers(1, 5000),
    seed=st.integers(0, 2**64 - 1),
    block=st.integers(1, 80),
    window=st.integers(1, 80),
    epoch=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_every_sample_is_shown_exactly_once_in_every_epoch(samples, seed, block, window, epoch):
    order = SampleOrder(samples, seed, block=block, window=window)

    shown = order.samples_at(np.arange(samples) + epoch * samples)

    assert shown.dtype == np.int64
    np.testing.assert_array_equal(np.sort(shown), np.arange(samples))


@pytest.mark.parametrize(
    "samples",
    [
        BLOCK * WINDOW,  # one full window
        BLOCK * WINDOW + 1,  # a window and a block of one sample
        2 * BLOCK * WINDOW - BLOCK,  # a window short by one block
        70_000,  # FFHQ
    ],
)
def test_usual_sizes_are_permuted_as_a_whole(samples):
    order = SampleOrder(samples, seed=1)

    shown = order.samples_at(np.arange(samples, 2 * samples))

    np.testing.assert_array_equal(np.sort(shown), np.arange(samples))


@given(
    samples=st.integers(1, 200_000),
    positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=40),
)
@settings(max_examples=50, deadline=None)
def test_a_position_does_not_depend_on_what_is_asked_with_it(samples, positions):
    order = SampleOrder(samples, seed=5)

    together = order.samples_at(np.array(positions))
    alone = [order.samples_at(np.array([position]))[0] for position in positions]

    assert together.tolist() == alone


RECORDED = {
    # (samples, block, window, seed): SHA-256 over two epochs, about 3,000 positions.
    (1, 64, 256, 0): "374708fff771",
    (5, 64, 256, 0): "04138e874a0c",
    (4_009, 64, 256, 0): "482266f71088",
    (70_000, 64, 256, 0): "e18a40fbe3f1",
    (70_000, 64, 256, 2**64 - 1): "95ff5d9f6645",
    (100_000_000, 64, 256, 7): "817519c59d8b",
    (1_000, 7, 9, 3): "10fa7de4a5e7",
}


@pytest.mark.parametrize(("samples", "block", "window", "seed"), RECORDED)
def test_an_order_never_changes_silently(samples, block, window, seed):
    """Another value means that no run can be resumed or repeated across the change."""
    order = SampleOrder(samples, seed, block=block, window=window)
    positions = np.arange(0, 2 * samples, max(1, samples // 1500))

    shown = order.samples_at(positions).astype("<i8").tobytes()

    assert hashlib.sha256(shown).hexdigest()[:12] == RECORDED[samples, block, window, seed]


def test_the_first_samples_of_the_demo_are_known():
    shown = SampleOrder(4009, seed=0).samples_at(np.arange(8))

    assert shown.tolist() == [2440, 127, 3547, 2734, 3918, 2880, 1996, 2578]


def test_every_epoch_and_every_seed_has_another_order():
    orders = {
        tuple(SampleOrder(50, seed).samples_at(np.arange(50) + 50 * epoch))
        for seed, epoch in itertools.product(range(20), range(20))
    }

    assert len(orders) == 400


@pytest.mark.parametrize("samples", [3, 4, 5])
def test_all_permutations_of_a_few_samples_are_equally_likely(samples):
    runs = 200 * math.factorial(samples)
    order = SampleOrder(samples, seed=2)
    epochs = order.samples_at(np.arange(samples * runs)).reshape(runs, samples)

    counts = Counter(map(tuple, epochs.tolist()))

    assert len(counts) == math.factorial(samples)
    _assert_uniform(np.array(list(counts.values())))


@pytest.mark.parametrize(
    ("samples", "block", "window"), [(37, 64, 256), (300, 64, 256), (60, 4, 5)]
)
def test_every_sample_is_equally_likely_at_every_place(samples, block, window):
    """With several windows, too: the short block and the short window are bound to no place."""
    epochs = 400_000 // samples
    order = SampleOrder(samples, seed=4, block=block, window=window)
    shown = order.samples_at(np.arange(samples * epochs)).reshape(epochs, samples)

    for place in range(samples):
        if place in (0, 1, samples // 2, samples - 1):
            _assert_uniform(np.bincount(shown[:, place], minlength=samples))


@pytest.mark.parametrize("samples", [8, 17, 300, 4009])
def test_neighbours_in_a_window_are_unrelated(samples):
    """The difference of what is shown at two places in a row is uniform, but never 0."""
    shown = SampleOrder(samples, seed=3).samples_at(np.arange(400_000 // samples * samples))
    epochs = shown.reshape(-1, samples)

    differences = np.bincount((np.diff(epochs) % samples).ravel(), minlength=samples)

    assert differences[0] == 0
    _assert_uniform(differences[1:])


def test_a_small_data_set_is_mixed_as_a_whole_and_a_large_one_by_windows():
    small = SampleOrder(4009, seed=0).samples_at(np.arange(32))
    large = SampleOrder(1_000_000, seed=0).samples_at(np.arange(BLOCK * WINDOW))

    assert np.ptp(small) > 3000
    # All samples of a window are of 256 blocks, which lie anywhere.
    blocks = np.unique(large // BLOCK)
    assert len(blocks) in (WINDOW, WINDOW + 1)  # one more where the short block cuts another
    assert np.ptp(blocks) > 900_000 // BLOCK
    # Neighbours in the data set are shown at unrelated places.
    assert abs(np.corrcoef(np.arange(len(large)), large)[0, 1]) < 0.05


def test_a_hundred_million_samples_cost_nothing():
    positions = np.arange(32) + 3 * 10**8
    tracemalloc.start()

    shown = SampleOrder(100_000_000, seed=0).samples_at(positions)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000
    assert len(set(shown.tolist())) == 32
    assert shown.min() >= 0
    assert shown.max() < 100_000_000


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="samples of the data order is 0; it must be at least 1"):
        SampleOrder(0, seed=0)
    with pytest.raises(ValueError, match="window of the data order is 0"):
        SampleOrder(5, seed=0, window=0)
    with pytest.raises(ValueError, match=r"seed is -1; choose from 0 to 2\^64 - 1"):
        SampleOrder(5, seed=-1)
    with pytest.raises(ValueError, match="position -3 of the run; positions begin at 0"):
        SampleOrder(5, seed=0).samples_at(np.array([2, -3]))


def test_no_positions_give_no_samples():
    assert SampleOrder(5, seed=0).samples_at(np.array([], np.int64)).tolist() == []
    assert SampleOrder(50_000, seed=0).samples_at(np.array([], np.int64)).tolist() == []


def _assert_uniform(counts):
    """A chi-squared test at 5 sigma; the seeds are fixed, so it cannot fail by chance."""
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom), counts
