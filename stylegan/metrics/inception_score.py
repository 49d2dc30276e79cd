"""Inception score (Salimans et al. 2016, Section 4) from class probabilities.

Legend: n images, c classes.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan.arguments import check_shape


def inception_score(
    probabilities: Float[Tensor, "n c"], *, splits: int = 10
) -> tuple[float, float]:
    """Mean and standard deviation over contiguous parts of exp(E KL(p(y|x) || p(y))).

    Args:
        probabilities: p(y|x) of each image: the softmax of the network's logits.
        splits: Number of parts; each has its own p(y). The deviation is that of the population.

    Raises:
        ValueError: No rows, or such that are no probabilities, or fewer images than parts.
    """
    remedy = "pass the softmax of the logits, one row for each image"
    check_shape("probabilities", probabilities, ("n", "c"), by="inception_score", remedy=remedy)
    p = probabilities.double()
    n = len(p)
    if not 1 <= splits <= n:
        raise ValueError(f"splits is {splits}; choose a number from 1 to that of images, {n}")
    sums = p.sum(dim=1)
    bad = ~((p >= 0).all(dim=1) & ((sums - 1).abs() < 1e-3))
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"probabilities of {int(bad.sum())} of {n} images are none: those of image {first} "
            f"start at {float(p[first].min()):.3g} and sum to {float(sums[first]):.3g}; pass the "
            f"softmax of the logits"
        )
    bounds = [split * n // splits for split in range(splits + 1)]
    scores = torch.stack([_score(p[a:b]) for a, b in itertools.pairwise(bounds)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """The mean KL is the entropy of the mean less the mean entropy."""
    mean = p.mean(dim=0)
    return (torch.xlogy(p, p).sum(dim=1).mean() - torch.xlogy(mean, mean).sum()).exp()
