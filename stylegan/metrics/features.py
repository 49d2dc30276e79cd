"""Mean and covariance of features, gathered batch by batch in float64.

    moments = FeatureMoments(dim=2048)
    for images in batches:
        moments.update(network(images))
    mean, covariance = moments.mean(), moments.covariance(ddof=1)

Memory is dim^2 numbers however many images there are. The last bits depend on the order of batches;
for equal values on every number of workers, update in the order of the global image index.

Legend: n images, d features, e = d + 1.
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

    @classmethod
    def unpacked(cls, packed: Float64[Tensor, "e e"]) -> "FeatureMoments":
        """What `packed` gave."""
        moments = cls(len(packed) - 1, device=packed.device)
        moments.count = int(packed[0, 0])
        moments.sum, moments.outer = packed[0, 1:].clone(), packed[1:, 1:].clone()
        return moments

    def packed(self) -> Float64[Tensor, "e e"]:
        """All of it as one array: the sum of outer products of (1, features)."""
        count = self.sum.new_tensor([self.count])
        first = torch.cat([count, self.sum])
        return torch.cat([first[None], torch.cat([self.sum[:, None], self.outer], dim=1)])

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


class StreamedMoments:
    """Moments of the first images of a stream, which comes in parts and may begin anew.

    They are summed up in blocks of their own, so that the last bits do not depend on the parts.
    What is wrong with features is said when the moments are asked for, so that a stream which feeds
    more than these goes on.
    """

    BLOCK = 1024
    """Images that are summed up together."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._moments: FeatureMoments | None = None
        self._rest = torch.empty(0, 0)
        self._error: ValueError | None = None

    @property
    def done(self) -> int:
        """Images that have come."""
        return (self._moments.count if self._moments else 0) + len(self._rest)

    def add(self, features: Float[Tensor, "n d"], *, start: int) -> None:
        """Take features of images start, start + 1, ...; those that have come are ignored."""
        assert start <= self.done or self._error, "images come in their order"
        new = features[max(self.done - start, 0) : max(self.count - start, 0)]
        if self._moments is None:
            self._moments = FeatureMoments(features.shape[1])
            self._rest = new[:0].clone()
        for part in new.split(self.BLOCK):
            self._rest = torch.cat([self._rest, part])
            if len(self._rest) >= self.BLOCK:
                self._sum_up(self._rest[: self.BLOCK])
                self._rest = self._rest[self.BLOCK :].clone()

    def moments(self) -> FeatureMoments:
        """Of all images.

        Raises:
            ValueError: Features were not finite.
        """
        self._sum_up(self._rest)
        self._rest = self._rest[:0]
        if self._error:
            raise self._error
        assert self._moments is not None
        assert self.done == self.count, "the stream has ended"
        return self._moments

    def state(self) -> Float64[Tensor, "m e"] | None:
        """What `restore` takes, below 1024 + e rows; None where there is nothing to go on from."""
        if self._error or self._moments is None:
            return None
        rest = self._rest.double()
        ones = rest.new_ones(len(rest), 1)
        return torch.cat([self._moments.packed(), torch.cat([ones, rest], dim=1)])

    def restore(self, state: Float64[Tensor, "m e"]) -> None:
        """Go on from a state."""
        e = state.shape[1]
        self._moments = FeatureMoments.unpacked(state[:e])
        self._rest = state[e:, 1:].float()

    def _sum_up(self, features: Float[Tensor, "n d"]) -> None:
        try:
            if self._moments is not None and not self._error:
                self._moments.update(features)
        except ValueError as err:
            self._error = err


_CHECKED_TOGETHER = 4096
"""Rows that are looked at together, so that memory does not grow with them."""


def check_finite(features: Float[Tensor, "n d"]) -> None:
    """Refuse NaN and infinity, naming the first image."""
    bad = torch.cat([~rows.isfinite().all(dim=1) for rows in features.split(_CHECKED_TOGETHER)])
    if bad.any():
        raise ValueError(
            f"features of {int(bad.sum())} of {len(bad)} images are not finite, the first is "
            f"number {int(bad.nonzero()[0, 0])} of this batch; look at the images and the weights"
        )
