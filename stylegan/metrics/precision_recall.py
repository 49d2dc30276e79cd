"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    precision, recall = precision_recall(reals, fakes)
    density, coverage = density_coverage(reals, fakes)

A set of features stands for a manifold: a ball around each of its points, as large as the distance
to the k-th nearest of the others, its surface included. Distances are computed by tiles in float64,
so memory is tile^2 numbers however many images there are.

Legend: n points of a manifold, m points asked about, d features; N real and M generated images.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from stylegan.metrics.features import check_features, check_finite

TILE = 4096
"""Rows and columns of the distance matrix held at a time."""
_ROUNDING = 1e-12


def precision_recall(
    reals: Float[Tensor, "N d"], fakes: Float[Tensor, "M _"], *, k: int = 3, tile: int = TILE
) -> tuple[float, float]:
    """Shares of fakes in the manifold of reals and of reals in that of fakes (Eq. 1 and 2).

    Args:
        reals: Features of real images.
        fakes: Features of generated images; the paper takes as many of each.
        k: Which nearest neighbour is the radius; 3 in the paper.
        tile: See `TILE`.
    """
    _check(reals, fakes)
    shares = []
    for manifold, points in ((reals, fakes), (fakes, reals)):
        radii = squared_radii(manifold, k=k, tile=tile)
        balls, _ = memberships(points, manifold, radii, tile=tile)
        shares.append(float((balls > 0).double().mean()))
    return shares[0], shares[1]


def density_coverage(
    reals: Float[Tensor, "N d"], fakes: Float[Tensor, "M _"], *, k: int = 5, tile: int = TILE
) -> tuple[float, float]:
    """Real balls around a fake, in k, and share of real balls with a fake in them (Sec. 3).

    Unlike precision and recall, neither looks at the manifold of fakes, whose outliers inflate it.
    The arguments are those of `precision_recall`; density may exceed 1.
    """
    _check(reals, fakes)
    radii = squared_radii(reals, k=k, tile=tile)
    balls, points = memberships(fakes, reals, radii, tile=tile)
    return float(balls.double().mean() / k), float((points > 0).double().mean())


def squared_radii(
    features: Float[Tensor, "n d"], *, k: int, tile: int = TILE
) -> Float64[Tensor, " n"]:
    """Squared distance of each point to the k-th nearest of the others; duplicates count.

    Raises:
        ValueError: There is no k-th neighbour.
    """
    if not 1 <= k < len(features):
        raise ValueError(
            f"k is {k}, but each of {len(features)} images has {max(len(features) - 1, 0)} "
            f"neighbours; choose a k from 1 to that or use more images"
        )
    # One more than k: every point is its own nearest.
    squared, _ = nearest_neighbours(features, features, k=k + 1, tile=tile)
    return squared[:, k]


def nearest_neighbours(
    points: Float[Tensor, "m d"], others: Float[Tensor, "n d"], *, k: int, tile: int = TILE
) -> tuple[Float64[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Squared distances to the k nearest others and their indices, from the nearest one on."""
    found = []
    for rows in points.split(tile):
        nearest = torch.empty(len(rows), 0, dtype=torch.float64, device=points.device)
        indices = torch.empty(len(rows), 0, dtype=torch.int64, device=points.device)
        for start in range(0, len(others), tile):
            distances = _squared_distances(rows, others[start : start + tile])
            numbers = torch.arange(start, start + distances.shape[1], device=points.device)
            candidates = torch.cat([nearest, distances], dim=1)
            nearest, at = candidates.topk(min(k, candidates.shape[1]), dim=1, largest=False)
            indices = torch.cat([indices, numbers.expand(len(rows), -1)], dim=1).gather(1, at)
        found.append((nearest, indices))
    return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])


def memberships(
    points: Float[Tensor, "m d"],
    manifold: Float[Tensor, "n d"],
    radii: Float64[Tensor, " n"],
    *,
    tile: int = TILE,
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " n"]]:
    """Balls of the manifold that each point lies in, and points in each ball.

    Args:
        points: Features asked about.
        manifold: Centres of the balls.
        radii: Their squared radii.
        tile: See `TILE`.
    """
    # A point on the surface is inside, whichever way its distance was rounded.
    norms = torch.linalg.vector_norm(manifold, dim=1).double().square()
    reach = radii + _ROUNDING * (radii + norms)
    balls = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    inside = torch.zeros(len(manifold), dtype=torch.int64, device=points.device)
    for i in range(0, len(points), tile):
        for j in range(0, len(manifold), tile):
            rows, columns = slice(i, i + tile), slice(j, j + tile)
            within = _squared_distances(points[rows], manifold[columns]) <= reach[columns]
            balls[rows] += within.sum(dim=1)
            inside[columns] += within.sum(dim=0)
    return balls, inside


def _squared_distances(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float64[Tensor, "m n"]:
    """|x|^2 + |y|^2 - 2 x.y, exact where products and sums of features are."""
    x, y = x.double(), y.double()
    norms = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return norms.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def _check(reals: Tensor, fakes: Tensor) -> None:
    check_features("reals", reals)
    check_features("fakes", fakes)
    if reals.shape[1] != fakes.shape[1]:
        raise ValueError(
            f"reals have {reals.shape[1]} features and fakes {fakes.shape[1]}: two networks?"
        )
    check_finite(reals)
    check_finite(fakes)
