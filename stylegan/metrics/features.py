"""Mean and covariance of features, gathered batch by batch in float64.

    moments = FeatureMoments(dim=2048)
    for images in batches:
        moments.update(network(images))
    mean, covariance = moments.mean(), moments.covariance(ddof=1)

Memory is dim^2 numbers however many images there are. The last bits depend on the order of batches;
for equal values on every number of workers, update in the order of the global image index.

Legend: n images, d features.
"""

import logging

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stylegan.arguments import check_shape

logger = logging.getLogger(__name__)


class FeatureMoments:
    """Count, sum and sum of outer products of features."""

    def __init__(self, dim: int, *, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "FeatureMoments":
        """Moments of features that are there as a whole."""
        check_features("features", features)
        moments = cls(features.shape[1], device=features.device)
        moments.update(features)
        return moments

    @property
    def dim(self) -> int:
        """Number of features d."""
        return len(self.sum)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Add the features of some images.

        Raises:
            ValueError: Another width, or features that are not finite.
        """
        check_features("features", features)
        if features.shape[1] != self.dim:
            raise ValueError(f"features have {features.shape[1]} columns, but moments {self.dim}")
        check_finite(features)
        x = features.to(self.sum)
        self.count += len(x)
        self.sum += x.sum(dim=0)
        self.outer.addmm_(x.T, x)

    def mean(self) -> Float64[Tensor, " d"]:
        """Mean over the images."""
        self._require(1)
        return self.sum / self.count

    def covariance(self, *, ddof: int = 1) -> Float64[Tensor, "d d"]:
        """Covariance, divided by count - ddof.

        Args:
            ddof: 1 is the unbiased covariance of StyleGAN, pytorch-fid and torch-fidelity; 0 that
                of StyleGAN2-ADA and StyleGAN3.
        """
        if ddof not in (0, 1):
            raise ValueError(f"ddof is {ddof}; choose 1 (StyleGAN) or 0 (StyleGAN3)")
        self._require(1 + ddof)
        mean = self.mean()
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - ddof)

    def _require(self, count: int) -> None:
        if self.count < count:
            raise ValueError(
                f"statistics of {self.count} images were asked for, but at least {count} are needed"
            )


def check_features(name: str, features: Tensor) -> None:
    """See that features are one row for each image.

    Raises:
        ValueError: They have more or fewer axes.
    """
    remedy = "pass one row of features for each image"
    check_shape(name, features, ("n", "d"), by="this metric", remedy=remedy)


def check_finite(features: Float[Tensor, "n d"]) -> None:
    """Refuse NaN and infinity, naming the first image."""
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"features of {int(bad.sum())} of {len(bad)} images are not finite, the first is "
            f"number {int(bad.nonzero()[0, 0])} of this batch; look at the images and the weights"
        )
