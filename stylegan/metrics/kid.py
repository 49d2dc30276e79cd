"""Kernel inception distance (Binkowski et al. 2018, Sec. 4), not multiplied by 1000.

Legend: n real and m generated images, d features, s subsets of k images. Features of another width
are refused by `_check`, which says more than an annotation could.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from stylegan.metrics.features import check_features, check_finite


def kid(reals: Float[Tensor, "n d"], fakes: Float[Tensor, "m _"], *, tile: int = 4096) -> float:
    """KID: unbiased estimate of the squared MMD from all images, whose value may be negative.

    Args:
        reals: Features of real images.
        fakes: Features of generated images.
        tile: Rows and columns of the kernel matrix held at a time.
    """
    _check(reals, fakes, size=2)
    x, y = fakes.double(), reals.double()
    m, n = len(x), len(y)
    within_x = (_kernel_sum(x, x, tile) - _kernel_diagonal_sum(x)) / (m * (m - 1))
    within_y = (_kernel_sum(y, y, tile) - _kernel_diagonal_sum(y)) / (n * (n - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y, tile) / (m * n))


def kid_of_subsets(
    reals: Float[Tensor, "n d"],
    fakes: Float[Tensor, "m _"],
    *,
    reals_index: Int[np.ndarray, "s k"],
    fakes_index: Int[np.ndarray, "s k"],
) -> float:
    """Mean KID over subsets of equal size, the usual figure of the papers (see `subsets`)."""
    _check(reals, fakes, size=2)
    values = [
        kid(reals[torch.from_numpy(r).long()], fakes[torch.from_numpy(f).long()])
        for r, f in zip(reals_index, fakes_index, strict=True)
    ]
    return float(np.mean(values))


def subsets(
    reals: int, fakes: int, *, count: int = 100, size: int = 1000, seed: int = 0
) -> tuple[Int[np.ndarray, "s k"], Int[np.ndarray, "s k"]]:
    """Indices of the subsets of reals and of fakes, in the order of draws of StyleGAN3's metric.

    Args:
        reals: Number of real images.
        fakes: Number of generated images.
        count: Number of subsets.
        size: Images in each; fewer where there are fewer.
        seed: Of NumPy's legacy generator, whose stream is frozen.

    Returns:
        (reals_index, fakes_index) for `kid_of_subsets`.
    """
    size = min(size, reals, fakes)
    generator = np.random.RandomState(seed)
    pairs = [
        (generator.choice(fakes, size, replace=False), generator.choice(reals, size, replace=False))
        for _ in range(count)
    ]
    return np.stack([r for _, r in pairs]), np.stack([f for f, _ in pairs])


def _kernel(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    """Polynomial kernel (x.y / d + 1)^3 (Sec. 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sum(
    x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"], tile: int
) -> Float64[Tensor, ""]:
    """Sum over all pairs, by tiles."""

    def sums() -> Iterator[Tensor]:
        for rows in x.split(tile):
            for columns in y.split(tile):
                yield _kernel(rows, columns).sum()

    return torch.stack(list(sums())).sum()


def _kernel_diagonal_sum(x: Float64[Tensor, "a d"]) -> Float64[Tensor, ""]:
    """Sum of the kernel of each row with itself."""
    return ((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum()


def _check(reals: Tensor, fakes: Tensor, *, size: int) -> None:
    check_features("reals", reals)
    check_features("fakes", fakes)
    if reals.shape[1] != fakes.shape[1]:
        raise ValueError(
            f"reals have {reals.shape[1]} features and fakes {fakes.shape[1]}: two networks?"
        )
    if min(len(reals), len(fakes)) < size:
        raise ValueError(f"KID needs {size} images of each, not {len(reals)} and {len(fakes)}")
    check_finite(reals)
    check_finite(fakes)
