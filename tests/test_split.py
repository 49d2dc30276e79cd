"""Shares of workers: whole minibatch-stddev groups, the same groups for every split."""

import numpy as np
import pytest

from stylegan.split import Split, refusal


def _groups(offsets: np.ndarray, group: int) -> set[frozenset[int]]:
    """Groups that the official strided arithmetic finds in a part."""
    groups = len(offsets) // group
    return {frozenset(offsets[m::groups].tolist()) for m in range(groups)}


@pytest.mark.parametrize(
    ("batch", "world"),
    [
        (batch, world)
        for batch in (4, 8, 32, 36)
        for world in (1, 2, 3, 4, 8)
        if batch // 4 >= world
    ],
)
@pytest.mark.parametrize("micro_batch", [0, 4, 6, 8, 100])
def test_every_split_of_a_batch_sees_the_same_groups(batch, world, micro_batch):
    parts = [
        part
        for rank in range(world)
        for part in Split(world=world, rank=rank, micro_batch=micro_batch).parts(batch)
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(batch))
    whole = _groups(np.arange(batch), 4)
    assert set().union(*(_groups(part, 4) for part in parts)) == whole
    if micro_batch:
        assert max(len(part) for part in parts) <= max(micro_batch, 4)


def test_unequal_shares_differ_by_one_group():
    shares = [sum(map(len, Split(world=3, rank=rank).parts(32))) for rank in range(3)]
    assert shares == [12, 12, 8]


def test_a_batch_below_the_group_size_is_one_group():
    assert [part.tolist() for part in Split().parts(3)] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("batch", "world", "micro_batch", "remedy"),
    [
        (10, 1, 0, "choose 8 or 12"),
        (8, 3, 0, "use at most 2 workers or a batch of at least 12"),
        (8, 1, 2, "choose a multiple of 4"),
    ],
)
def test_what_would_split_a_group_is_refused_with_the_sizes_that_work(
    batch, world, micro_batch, remedy
):
    assert remedy in refusal(batch, world=world, group=4, micro_batch=micro_batch)
    with pytest.raises(ValueError, match=remedy):
        Split(world=world, micro_batch=micro_batch).parts(batch)
