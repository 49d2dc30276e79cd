"""Values of metrics: how they are computed of features, and what goes with them.

A number without its fingerprint is none: two that differ there are not compared.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from pipeline.bundle import MetricValue
from stylegan.metrics.features import FeatureMoments
from stylegan.metrics.fid import fid
from stylegan.metrics.kid import kid, kid_of_subsets, subsets

Metric = Literal["fid", "kid"]

NETWORKS: Mapping[str, str] = {"fid": "inception-2015-12-05", "kid": "inception-2015-12-05"}
"""Feature network of each metric."""
DDOF = 1
"""FID divides covariances by n - 1, as StyleGAN does."""
KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 0

_MOMENTS_BLOCK = 1024
"""Images whose features are summed up at a time."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A value, what it was measured on and how."""

    name: str
    """Metric and number of generated images, e.g. fid50k."""
    value: float
    """Lower is better."""
    fingerprint: Mapping[str, Any]
    """All that the value depends on but the generator; what JSON can hold."""
    subject: Mapping[str, Any]
    """The generator: url, digest, nimg, attempt, lod."""
    note: str = ""
    """What a reader of the value should know, if anything."""

    @property
    def fingerprint_digest(self) -> str:
        """SHA-256 of the fingerprint."""
        return _digest(self.fingerprint)

    def as_value(self) -> MetricValue:
        """As it goes to the registry, which leaves `snapshot` out when it compares."""
        snapshot = self.subject["digest"]
        return MetricValue(value=self.value, fingerprint={**self.fingerprint, "snapshot": snapshot})


def comparable(a: MetricResult, b: MetricResult) -> bool:
    """Whether the two were measured in the same way, on whatever generators."""
    return a.fingerprint == b.fingerprint


def metric_name(metric: str, fakes: int) -> str:
    """How a metric of so many generated images is called, e.g. fid50k or fid300."""
    return f"{metric}{fakes // 1000}k" if fakes % 1000 == 0 else f"{metric}{fakes}"


def compute(metric: str, reals: Tensor, fakes: Tensor) -> float:
    """The value of a metric of two sets of features.

    Raises:
        ValueError: It has none, as FID of images that are all equal.
    """
    return _COMPUTE[metric](reals, fakes)


def estimator(metric: str, *, reals: int, fakes: int) -> dict[str, Any]:
    """How `compute` computes it, for the fingerprint."""
    if metric == "fid":
        return {"ddof": DDOF}
    if min(reals, fakes) <= KID_SUBSET_SIZE:
        return {"estimator": "unbiased, all pairs"}
    subset = f"{KID_SUBSETS} subsets of {KID_SUBSET_SIZE}, seed {KID_SEED}"
    return {"estimator": f"unbiased, {subset}"}


def _fid(reals: Tensor, fakes: Tensor) -> float:
    """FID, summed up in blocks that are the same for every batch size and number of tasks."""
    moments = []
    for features in (reals, fakes):
        moments.append(FeatureMoments(features.shape[1]))
        for block in features.split(_MOMENTS_BLOCK):
            moments[-1].update(block)
    return fid(*moments, ddof=DDOF)


def _kid(reals: Tensor, fakes: Tensor) -> float:
    """KID from all pairs of small sets, and from the usual subsets of large ones."""
    if min(len(reals), len(fakes)) <= KID_SUBSET_SIZE:
        return kid(reals, fakes)
    reals_index, fakes_index = subsets(
        len(reals), len(fakes), count=KID_SUBSETS, size=KID_SUBSET_SIZE, seed=KID_SEED
    )
    return kid_of_subsets(reals, fakes, reals_index=reals_index, fakes_index=fakes_index)


_COMPUTE: Mapping[str, Callable[[Tensor, Tensor], float]] = {"fid": _fid, "kid": _kid}
assert set(_COMPUTE) == set(NETWORKS) == set(get_args(Metric))


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
