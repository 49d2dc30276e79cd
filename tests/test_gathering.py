"""What an evaluation holds and keeps: rows on disk, and sums that do not grow with the images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import gathering, tasks
from pipeline.evaluate import evaluate
from pipeline.feature_cache import FeatureCache
from pipeline.gathering import Gathered, Progress
from stylegan.metrics.features import FeatureMoments, StreamedMoments
from tests.measured import SMALL, values

WIDTH = 12
STATE_BYTES = (StreamedMoments.BLOCK + WIDTH + 1) * (WIDTH + 1) * 8
"""At most: sums, and the images of a block that is not full."""


def streamed(rows, cuts, *, stop=None):
    """Moments of rows that come in parts; the stream ends at `stop` and begins anew there."""
    moments, start = StreamedMoments(len(rows)), 0
    for part in rows.split(cuts):
        if stop is not None and start >= stop:
            state, stop = moments.state(), None
            moments = StreamedMoments(len(rows))
            moments.restore(state)
        moments.add(part, start=start)
        start += len(part)
        assert moments.state().nbytes < STATE_BYTES
    return moments.moments()


@pytest.mark.parametrize("count", [2, 1024, 5000])
def test_streamed_moments_are_those_of_all_rows_however_they_are_cut_and_stopped(rng, count):
    rows = torch.from_numpy(rng.standard_normal((count, WIDTH)).astype(np.float32) + 3)
    whole = FeatureMoments.of(rows)
    found = [streamed(rows, cuts, stop=count * 6 // 10) for cuts in (count, 512, 333, 2000)]

    for moments in found:
        assert moments.count == count
        torch.testing.assert_close(moments.covariance(), whole.covariance(), rtol=1e-9, atol=1e-9)
        assert torch.equal(moments.packed(), found[0].packed()), "to the last bit"


def test_moments_of_the_first_images_ignore_those_behind_and_those_that_come_twice(rng):
    rows = torch.from_numpy(rng.standard_normal((30, WIDTH)).astype(np.float32))
    moments = StreamedMoments(20)
    for start in (0, 0, 10, 5, 10, 20):
        moments.add(rows[start : start + 10], start=start)

    assert torch.equal(moments.moments().packed(), FeatureMoments.of(rows[:20]).packed())


def test_features_that_are_not_finite_are_said_when_the_moments_are_asked_for(rng):
    rows = torch.from_numpy(rng.standard_normal((8, WIDTH)).astype(np.float32))
    rows[5, 2] = torch.nan
    moments = StreamedMoments(8)
    moments.add(rows, start=0)

    with pytest.raises(ValueError, match=r"1 of 8 images are not finite, the first is number 5"):
        moments.moments()


def test_what_is_held_and_kept_for_fid_does_not_grow_with_the_images(
    checkpoint, data, tmp_path, monkeypatch
):
    """20 times as many images: files, sums and what one task gives are as large."""
    monkeypatch.setattr(Progress, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(StreamedMoments, "BLOCK", 8)
    monkeypatch.setattr(tasks, "MOST_BATCHES", 2)
    largest = {}
    for count in (64, 64 * 20):
        url = tmp_path / str(count)
        sizes = []

        def narrow(function, pieces, url=url, sizes=sizes):
            for piece in pieces:
                rng = np.random.RandomState(piece.batches[0].start)
                rows = rng.rand(sum(map(len, piece.batches)), WIDTH).astype(np.float32)
                sizes.append(rows.nbytes)
                yield (rows,)
                sizes.append(sum(file.stat().st_size for file in url.iterdir()))

        config = dataclasses.replace(SMALL, metrics=("fid",), num_images=count, batch=8)
        config = dataclasses.replace(config, num_reals=20)
        monkeypatch.setattr(gathering, "on_disk", None)
        evaluate(checkpoint, data, config, cache_url=str(url), map=narrow)
        largest[count] = max(sizes)

    # The keys say how many images.
    assert largest[64 * 20] == pytest.approx(largest[64], rel=0.05)


def test_rows_lie_on_disk_and_are_recalled_from_there(tmp_path, rng):
    rows = rng.rand(30, WIDTH).astype(np.float32)
    gathered = Gathered({"of": "x"}, count=30, table=True, sums=[30])
    for start in (0, 10, 20):
        gathered.add(rows[start : start + 10], start=start)
    cache = FeatureCache(str(tmp_path))
    gathered.store(cache)
    again = Gathered({"of": "x"}, count=30, table=True, sums=[30])

    assert again.recall(cache)
    for one in (gathered, again):
        assert isinstance(one._table, np.memmap)
        np.testing.assert_array_equal(one.rows(), rows)
    assert torch.equal(again.sums[30].moments().packed(), gathered.sums[30].moments().packed())
    only_sums = Gathered({"of": "x"}, count=30, table=False, sums=[30])
    assert only_sums.recall(cache), "rows are enough for sums"
    (entry,) = Path(tmp_path).iterdir()
    assert entry.stat().st_size < rows.nbytes + 1000
    assert not Gathered({"of": "y"}, count=30, table=True).recall(cache)


def test_fid_alone_and_beside_others_is_the_same_to_the_last_bit(checkpoint, data):
    def some(function, pieces):
        for piece in pieces:
            rng = np.random.RandomState([piece.batches[0].start, len(function.__name__)])
            yield (rng.rand(sum(map(len, piece.batches)), WIDTH).astype(np.float32),)

    found = [
        values(evaluate(checkpoint, data, dataclasses.replace(SMALL, metrics=names), map=some))
        for names in (("fid",), ("kid", "fid"))
    ]

    assert found[0]["fid10"] == found[1]["fid10"]
