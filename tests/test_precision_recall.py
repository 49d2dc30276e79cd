"""Precision and recall, density and coverage: closed forms."""

import math

import pytest
import torch

from stylegan.metrics.precision_recall import (
    density_coverage,
    memberships,
    precision_recall,
    squared_radii,
)
from tests.random_arrays import normal

LINE_REALS = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
LINE_FAKES = torch.tensor([[-1.0], [0.5], [4.5], [10.0]])


def test_manifolds_on_a_line_are_intervals():
    """k = 1: reals span [-1, 4], bounds included; fakes' balls reach from -2.5 to 15.5."""
    assert squared_radii(LINE_REALS, k=1).tolist() == [1, 1, 1, 1]
    assert squared_radii(LINE_FAKES, k=1).tolist() == [2.25, 2.25, 16, 30.25]
    assert precision_recall(LINE_REALS, LINE_FAKES, k=1) == (0.5, 1.0)


def test_density_counts_balls_around_fakes_and_coverage_balls_with_fakes():
    """-1 lies in one real ball and 0.5 in two; balls of 0 and 1 have fakes in them."""
    balls, inside = memberships(LINE_FAKES, LINE_REALS, squared_radii(LINE_REALS, k=1))

    assert balls.tolist() == [1, 2, 0, 0]
    assert inside.tolist() == [2, 1, 0, 0]
    assert density_coverage(LINE_REALS, LINE_FAKES, k=1) == (0.75, 0.5)


@pytest.mark.parametrize("tile", [4096, 16])
def test_a_set_compared_with_itself_has_k_neighbours_and_itself_in_each_ball(rng, tile):
    x = normal(rng, 100, 24)

    assert precision_recall(x, x, k=3, tile=tile) == (1, 1)
    density, coverage = density_coverage(x, x, k=5, tile=tile)
    assert (density, coverage) == (pytest.approx(6 / 5), 1)


@pytest.mark.parametrize("tile", [4096, 40, 7])
def test_precision_and_recall_by_tiles_equal_those_of_the_whole_distance_matrix(rng, tile):
    reals, fakes = normal(rng, 80, 6), 1.3 * normal(rng, 50, 6) + 0.5

    def share(manifold, points):
        own = torch.cdist(manifold.double(), manifold.double())
        radii = own.sort(dim=1).values[:, 3]
        within = torch.cdist(points.double(), manifold.double()) <= radii
        return float(within.any(dim=1).double().mean())

    expected = share(reals, fakes), share(fakes, reals)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert precision_recall(reals, fakes, k=3, tile=tile) == pytest.approx(expected, rel=1e-12)


def test_collapsed_fakes_are_precise_and_recall_nothing():
    reals = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [6.0, 8.0]])
    fakes = torch.tensor([[1.0, 1.0]]).repeat(5, 1)

    assert squared_radii(fakes, k=3).tolist() == [0] * 5
    assert precision_recall(reals, fakes, k=3) == (1, 0)


def test_features_that_cannot_be_compared_are_refused(rng):
    with pytest.raises(ValueError, match="k is 3, but each of 3 images has 2 neighbours"):
        precision_recall(normal(rng, 5, 4), normal(rng, 3, 4), k=3)
    with pytest.raises(ValueError, match="4 features and fakes 5: two networks"):
        precision_recall(normal(rng, 9, 4), normal(rng, 9, 5))
    with pytest.raises(ValueError, match="not finite"):
        density_coverage(normal(rng, 9, 4), torch.full((9, 4), math.nan))
