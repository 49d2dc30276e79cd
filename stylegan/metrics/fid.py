"""Fréchet inception distance (Heusel et al. 2017, Eq. 6), from streamed statistics.

Legend: d features.
"""

import logging

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from stylegan.metrics.features import FeatureMoments

logger = logging.getLogger(__name__)


def fid(reals: FeatureMoments, fakes: FeatureMoments, *, ddof: int = 1) -> float:
    """FID between two sets of images.

    Args:
        reals: Moments of the real images' features.
        fakes: Moments of the generated images' features, of the same network.
        ddof: 1 divides covariances by n - 1 as StyleGAN, pytorch-fid and torch-fidelity do; 0 by
            n as StyleGAN3 does.

    Raises:
        ValueError: Different widths, too few images, or features that are all the same.
    """
    if reals.dim != fakes.dim:
        raise ValueError(f"reals have {reals.dim} features and fakes {fakes.dim}: two networks?")
    gaussians = []
    # The smaller set first: its covariance has the lower rank.
    for name, moments in sorted([("reals", reals), ("fakes", fakes)], key=lambda x: x[1].count):
        covariance = moments.covariance(ddof=ddof)
        # Rounding leaves about 1e-16 of the mean squares where there is no variance at all.
        if covariance.trace() <= 1e-12 * moments.outer.trace() / moments.count:
            raise ValueError(
                f"all {moments.count} {name} have the same features; FID means nothing"
            )
        if moments.count <= moments.dim:
            logger.info(
                "%d %s for %d features: their covariance is singular and FID biased upwards; "
                "compare it only with FIDs of the same counts",
                moments.count,
                name,
                moments.dim,
            )
        gaussians.append((moments.mean(), covariance))
    return frechet_distance(*gaussians, rank_a=min(reals.count, fakes.count) - 1)


def frechet_distance(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], *, rank_a: int | None = None
) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982, Eq. 4).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    Args:
        a: Mean [d] and covariance [d, d].
        b: The other Gaussian.
        rank_a: What the rank of S_a cannot exceed: images - 1.

    Returns:
        The squared distance; 0 up to rounding for equal Gaussians, and never negative.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    trace = cov_a.trace() + cov_b.trace() - 2 * trace_sqrt_product(cov_a, cov_b, rank_a=rank_a)
    return max(float((mean_a - mean_b).square().sum() + trace), 0.0)


def trace_sqrt_product(
    a: Float64[Tensor, "d d"], b: Float64[Tensor, "d d"], *, rank_a: int | None = None
) -> Float64[Tensor, ""]:
    """tr((A B)^(1/2)) of two covariances, singular ones included.

    With A = L L^T the product A B has the eigenvalues of the symmetric L^T B L, which are real and
    not negative: no general matrix square root and nothing added to the diagonal. Where A is
    singular, rounding leaves 1e-16 of its largest eigenvalue in place of zeros, whose roots would
    count; `rank_a` leaves out those known to be zero.
    """
    factor = _pivoted_cholesky(a)[:, :rank_a]
    product = factor.T @ b @ factor
    values: Tensor = torch.linalg.eigvalsh(product)
    return values.clamp(min=0).sqrt().sum()


def _pivoted_cholesky(a: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """L of a = L L^T with as many columns as `a` has rank (LAPACK's pstrf; torch has none)."""
    lower, pivots, rank, info = dpstrf(a.cpu().numpy(), lower=1)
    if info < 0:
        raise ValueError(f"pstrf refused its argument {-info}; is the covariance finite?")
    factor = np.empty_like(lower[:, :rank])
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return torch.from_numpy(factor).to(a.device)
