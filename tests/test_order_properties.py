"""Properties of the order: every sample once, one sequence for all workers, seeks for free.

Ragged everywhere: the last shard, block, window, minibatch and epoch need not be whole.
"""

import itertools
import math
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config as configs
from pipeline.minibatches import minibatches
from pipeline.order import BLOCK, WINDOW, SampleOrder
from stylegan.schedule import ScheduleConfig
from stylegan.split import Split
from tests.benchmarks.shuffle_quality import BATCH, compare

WORLDS = (1, 2, 3, 4, 8)
HUGE = 10**9


def test_every_small_set_is_shown_once_an_epoch_whatever_is_ragged():
    """All of them: samples, block, window and two epochs in a row."""
    for samples, block, window in itertools.product(range(1, 31), range(1, 7), range(1, 5)):
        order = SampleOrder(samples, 11, block=block, window=window)
        epochs = order.samples_at(np.arange(2 * samples)).reshape(2, samples)
        assert (np.sort(epochs) == np.arange(samples)).all(), (samples, block, window)


@st.composite
def runs(draw):
    """A data set, an order of it, and a schedule whose batches change from level to level."""
    group = draw(st.sampled_from([1, 2, 4]))
    batch = st.integers(8, 20).map(lambda groups: groups * group)  # enough for 8 workers
    schedule = ScheduleConfig(
        first_resolution=4,
        stable_kimg=draw(st.integers(1, 400)) / 1000,
        fade_kimg=draw(st.integers(0, 300)) / 1000,
        total_kimg=draw(st.integers(1, 1500)) / 1000,
        table="none",
        batch={resolution: draw(batch) for resolution in (4, 8, 16, 32)},
        minibatch_repeats=draw(st.integers(1, 4)),
    )
    samples = draw(st.integers(1, 700))
    order = SampleOrder(
        samples,
        draw(st.integers(0, 2**64 - 1)),
        block=draw(st.integers(1, 50)),
        window=draw(st.integers(1, 20)),
    )
    return order, schedule, group, draw(st.sampled_from([0, group, 3 * group]))


CONFIG = configs.parse(
    {
        "name": "order",
        "run_url": "x",
        "data": {"url": "x"},
        "network": {"resolution": 32, "D": {"mbstd_group": 1}},  # each batch is valid
        "schedule": {"first_resolution": 4},
    }
)


def _shown(order, schedule, group, micro_batch, *, world_at):
    """Samples of the run in their global order, put together of what every worker reads."""
    run = replace(CONFIG, schedule=schedule)
    positions = {rank: [] for rank in range(8)}
    world = world_at(0)
    for minibatch in minibatches(run, 0):
        for rank in range(world):
            split = Split(world=world, rank=rank, group=group, micro_batch=micro_batch)
            for part in split.parts(minibatch.phase.batch):
                positions[rank].append(minibatch.nimg + part)
        end = minibatch.nimg + minibatch.phase.batch
        if minibatch.ends_iteration:
            world = world_at(end)
    shown = np.full(end, -1, np.int64)
    for parts in positions.values():
        own = np.concatenate([np.empty(0, np.int64), *parts])
        assert (shown[own] == -1).all()  # nobody else has read it
        shown[own] = order.samples_at(own)
    return shown


@given(run=runs(), samples_per_shard=st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_all_workers_together_show_one_sequence_that_holds_every_sample_once_an_epoch(
    run, samples_per_shard
):
    """Batches change with the level and end no epoch; workers may change at any commit."""
    order, schedule, group, micro_batch = run
    total = schedule.total_kimg * 1000

    sequences = [
        _shown(order, schedule, group, micro_batch, world_at=world_at)
        for world_at in (
            *(lambda nimg, world=world: world for world in WORLDS),
            lambda nimg: 8 if nimg < total / 3 else 3 if nimg < total / 3 * 2 else 5,
        )
    ]

    for sequence in sequences[1:]:
        np.testing.assert_array_equal(sequence, sequences[0])
    shown = sequences[0]
    for start in range(0, len(shown), order.samples):
        epoch = shown[start : start + order.samples]
        places = set(zip(*np.divmod(epoch, samples_per_shard), strict=True))  # shard and row
        assert len(places) == len(epoch)
        assert epoch.min() >= 0
        assert epoch.max() < order.samples


# Seeks.


@given(position=st.integers(0, 2**62), samples=st.sampled_from([HUGE, HUGE + 7, 2**31 - 1]))
@settings(max_examples=50, deadline=None)
def test_a_seek_among_a_thousand_million_samples_costs_kilobytes(position, samples):
    order = SampleOrder(samples, seed=1)
    tracemalloc.start()
    (sample,) = order.samples_at(np.array([position]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0 <= sample < samples
    assert peak_bytes < 20_000


def test_a_seek_takes_as_many_steps_in_a_thousand_million_samples_as_in_a_hundred_thousand():
    """At the begin of a run as at its ten thousandth epoch; counted, not timed.

    A step is a line of Python, which works on 32 places: more would show in the memory above.
    """

    def steps(samples, start):
        order, count = SampleOrder(samples, seed=1), 0

        def trace(frame, event, argument):
            nonlocal count
            count += event == "line"
            return trace

        former = sys.gettrace()
        sys.settrace(trace)
        try:
            for seek in range(start, start + 30 * 32, 32):
                order.samples_at(np.arange(seek, seek + 32))
        finally:
            sys.settrace(former)
        return count

    usual = steps(10**5, 0)

    assert usual > 30 * 20
    assert steps(HUGE, 0) < 1.5 * usual
    assert steps(HUGE, 10**4 * HUGE + 123_456_789) < 1.5 * usual


def test_windows_of_a_thousand_million_samples_hold_whole_blocks_from_anywhere():
    """Any of the 61,036; that all of them together hold each block once, small sets show."""
    size = BLOCK * WINDOW
    samples = -(-HUGE // size) * size
    order = SampleOrder(samples, seed=2)
    seen = set()

    for window in (0, 1, samples // size // 2, samples // size - 1):
        shown = order.samples_at(np.arange(window * size, (window + 1) * size) + 5 * samples)
        blocks, counts = np.unique(shown // BLOCK, return_counts=True)
        assert len(np.unique(shown)) == size
        assert len(blocks) == WINDOW
        assert (counts == BLOCK).all()
        assert np.ptp(blocks) > 0.9 * samples / BLOCK
        assert seen.isdisjoint(blocks)
        seen.update(blocks)


# Mixing.


def _windows(samples, epochs=1):
    """What whole windows show, where all windows are whole."""
    size = BLOCK * WINDOW
    assert samples % size == 0
    order = SampleOrder(samples, seed=6)
    return order.samples_at(np.arange(samples * epochs)).reshape(-1, size)


def test_neighbours_in_a_window_are_not_correlated():
    """What is shown at two places, 1 to 64 apart, has no correlation: 5 sigma of 1 / sqrt(n)."""
    windows = _windows(40 * BLOCK * WINDOW)
    values = windows - windows.mean(axis=1, keepdims=True)
    values = values / values.std(axis=1, keepdims=True)

    for lag in (1, 2, 3, 4, 8, 16, 32, 64):
        products = values[:, :-lag] * values[:, lag:]
        assert abs(products.mean()) < 5 / math.sqrt(products.size), lag


def test_neighbours_of_the_data_set_are_shown_at_unrelated_places_of_their_window():
    """The distance of the places of two samples in a row has the law of two independent ones."""
    windows = _windows(40 * BLOCK * WINDOW)
    size = windows.shape[1]
    by_sample = np.argsort(windows, axis=1)  # places, in the order of the data set
    inside = np.diff(np.sort(windows, axis=1), axis=1) == 1
    distances = np.abs(np.diff(by_sample, axis=1))[inside]

    edges = np.linspace(0, size, 33).astype(int)
    counts = np.histogram(distances, bins=edges)[0]

    # P(distance > d) = ((size - d) / size)^2 but for terms of 1 / size.
    beyond = ((size - edges) / size) ** 2
    expected = len(distances) * -np.diff(beyond)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 31) < 5 * math.sqrt(2 * 31), counts


def test_a_window_shows_each_of_its_blocks_evenly_over_its_length():
    """Every sixteenth of a window holds a sixteenth of each block, as chance has it."""
    windows = _windows(40 * BLOCK * WINDOW)
    parts = (windows // BLOCK).reshape(len(windows), 16, -1)
    statistic = freedom = 0.0
    for window in parts:
        blocks = np.unique(window)
        ranks = np.searchsorted(blocks, window)
        counts = np.stack([np.bincount(part, minlength=WINDOW) for part in ranks])
        expected = BLOCK / 16
        statistic += ((counts - expected) ** 2 / expected).sum()
        freedom += 15 * (len(blocks) - 1)
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("samples", "classes", "share"),
    [
        (126_000, 6, 0.99),  # a few classes, as LSUN would be if it were one data set
        (400_000, 300, 0.93),  # many, sorted: 256 blocks of a window hold two thirds of them
    ],
)
def test_a_minibatch_of_a_sorted_data_set_is_nearly_as_mixed_as_by_a_full_permutation(
    samples, classes, share
):
    """The whole table is in tests/benchmarks/RESULTS.md (`shuffle_quality`)."""
    ours, full = compare(samples, classes)

    independent = classes * (1 - (1 - 1 / classes) ** BATCH)
    assert abs(full.classes_in_batch / independent - 1) < 0.01
    assert ours.classes_in_batch > share * full.classes_in_batch
    assert ours.batch_spread < 1.15
    assert ours.batch_correlation < 0.2
