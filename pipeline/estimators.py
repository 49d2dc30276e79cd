"""What metrics are made of, and how: from rows of features to values.

    values = compute(parse("pr300", 300), Rows(reals=reals, fakes=[fakes]))

Rows are those of `pipeline.features` and `pipeline.probes`, in the order of the global index. The
arithmetic is that of `stylegan.metrics`; here stand the choices that go into fingerprints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.metric import HIGHER, Metric
from stylegan.metrics import swd as patches
from stylegan.metrics.features import StreamedMoments, check_finite
from stylegan.metrics.fid import fid
from stylegan.metrics.inception import probabilities
from stylegan.metrics.inception_score import inception_score
from stylegan.metrics.kid import kid, kid_of_subsets, subsets
from stylegan.metrics.ppl import PathConfig, perceptual_path_length
from stylegan.metrics.precision_recall import density_coverage, precision_recall
from stylegan.metrics.separability import separability

DDOF = 1
"""FID divides covariances by n - 1, as StyleGAN does."""
KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 0
NEIGHBOUR, DENSITY_NEIGHBOUR = 3, 5
"""Whose distance is the radius, in precision and recall, and in density and coverage."""
SPLITS = 10
"""Parts of the images whose Inception scores are averaged."""
EPSILON = PathConfig().epsilon
SWD_SEED, SWD_FACTOR = 0, 1000
"""Of the directions; SWD is reported in thousandths."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What a metric is computed of, one row an image."""

    fakes: Sequence[Tensor] = ()
    """Features of generated images; or lengths, similarities; or z, w and logits."""
    reals: Tensor | None = None
    """Features of real images, for metrics that compare."""
    sums: tuple[StreamedMoments, StreamedMoments] | None = None
    """Of features of real and of generated images, which is all that FID needs."""
    logits: Tensor | None = None
    """Weights of the classes, for the Inception score."""
    attributes: Sequence[str] = ()
    """What the logits of separability are of."""
    levels: Sequence[int] = field(default=())
    """Sides of the levels of which patches are, in pixels."""


def compute(metric: Metric, rows: Rows) -> Mapping[str, float]:
    """Values of a metric by their names.

    Raises:
        ValueError: It has none, as FID of images that are all equal.
    """
    return _COMPUTE[metric.kind](metric, rows)


def how(metric: Metric, name: str, *, reals: int, attributes: Sequence[str] = ()) -> dict[str, Any]:
    """How `compute` computes a value, for the fingerprint."""
    said = _HOW[metric.kind](metric, reals)
    if metric.kind == "ls":
        said |= {"space": name[-1], "attributes": " ".join(attributes)}
    if name.startswith(HIGHER) and not name.endswith("_std"):
        said |= {"better": "higher"}
    return said


def _fid(metric: Metric, rows: Rows) -> Mapping[str, float]:
    assert rows.sums is not None
    reals, fakes = (sums.moments() for sums in rows.sums)
    return _named(metric, fid(reals, fakes, ddof=DDOF))


def _kid(metric: Metric, rows: Rows) -> Mapping[str, float]:
    """KID from all pairs of small sets, and from the usual subsets of large ones."""
    reals, fakes = _sets(rows)
    if min(len(reals), len(fakes)) <= KID_SUBSET_SIZE:
        return _named(metric, kid(reals, fakes))
    reals_index, fakes_index = subsets(
        len(reals), len(fakes), count=KID_SUBSETS, size=KID_SUBSET_SIZE, seed=KID_SEED
    )
    value = kid_of_subsets(reals, fakes, reals_index=reals_index, fakes_index=fakes_index)
    return _named(metric, value)


def _how_kid(metric: Metric, reals: int) -> dict[str, Any]:
    if min(reals, metric.count) <= KID_SUBSET_SIZE:
        return {"estimator": "unbiased, all pairs"}
    subset = f"{KID_SUBSETS} subsets of {KID_SUBSET_SIZE}, seed {KID_SEED}"
    return {"estimator": f"unbiased, {subset}"}


def _precision_recall(metric: Metric, rows: Rows) -> Mapping[str, float]:
    return _named(metric, *precision_recall(*_sets(rows), k=NEIGHBOUR))


def _density_coverage(metric: Metric, rows: Rows) -> Mapping[str, float]:
    return _named(metric, *density_coverage(*_sets(rows), k=DENSITY_NEIGHBOUR))


def _inception_score(metric: Metric, rows: Rows) -> Mapping[str, float]:
    assert rows.logits is not None
    (fakes,) = rows.fakes
    check_finite(fakes)
    return _named(
        metric, *inception_score(probabilities(fakes, rows.logits), splits=_splits(metric))
    )


def _splits(metric: Metric) -> int:
    return min(SPLITS, metric.count)


def _path_length(metric: Metric, rows: Rows) -> Mapping[str, float]:
    (lengths,) = rows.fakes
    return _named(metric, perceptual_path_length(lengths[:, 0]))


def _separability(metric: Metric, rows: Rows) -> Mapping[str, float]:
    z, w, logits = rows.fakes
    keep = max(metric.count // 2, 1)
    scores = [
        separability(latents, logits, keep=keep, attributes=rows.attributes) for latents in (z, w)
    ]
    return _named(metric, *scores)


def _wasserstein(metric: Metric, rows: Rows) -> Mapping[str, float]:
    reals, fakes = _sets(rows)
    if len(reals) != len(fakes):
        raise ValueError(
            f"SWD compares as many real images as generated ones, but there are {len(reals)} and "
            f"{len(fakes)}; choose so many images, and num_reals 0"
        )
    width = reals.shape[1] // len(rows.levels)
    shape = -1, width // patches.PATCHES // patches.SIDE**2, patches.SIDE, patches.SIDE
    real_levels, fake_levels = (
        [level.reshape(shape) for level in one.split(width, dim=1)] for one in (reals, fakes)
    )
    distances = patches.swd(real_levels, fake_levels, np.random.RandomState(SWD_SEED))
    (name,) = metric.names
    values = [SWD_FACTOR * distance for distance in distances]
    by_level = {f"{name}_{px}px": value for px, value in zip(rows.levels, values, strict=True)}
    return {name: sum(values) / len(values), **by_level}


def _similarity(metric: Metric, rows: Rows) -> Mapping[str, float]:
    (similarities,) = rows.fakes
    return _named(metric, float(similarities.double().mean()))


def _named(metric: Metric, *values: float) -> Mapping[str, float]:
    return dict(zip(metric.names, values, strict=True))


def _sets(rows: Rows) -> tuple[Tensor, Tensor]:
    (fakes,) = rows.fakes
    assert rows.reals is not None
    return rows.reals, fakes


_COMPUTE: Mapping[str, Callable[[Metric, Rows], Mapping[str, float]]] = {
    "fid": _fid,
    "kid": _kid,
    "pr": _precision_recall,
    "dc": _density_coverage,
    "is": _inception_score,
    "ppl": _path_length,
    "ls": _separability,
    "swd": _wasserstein,
    "msssim": _similarity,
}
_HOW: Mapping[str, Callable[[Metric, int], dict[str, Any]]] = {
    "fid": lambda metric, reals: {"ddof": DDOF},
    "kid": _how_kid,
    "pr": lambda metric, reals: {"estimator": f"nearest neighbour {NEIGHBOUR}, float64"},
    "dc": lambda metric, reals: {"estimator": f"nearest neighbour {DENSITY_NEIGHBOUR}, float64"},
    "is": lambda metric, reals: {"estimator": f"{_splits(metric)} splits, logits without bias"},
    "ppl": lambda metric, reals: {
        "space": metric.space,
        "sampling": metric.sampling,
        "epsilon": EPSILON,
        "estimator": "mean from the 1st to the 99th percentile",
    },
    "ls": lambda metric, reals: {
        "estimator": f"squared hinge, C = 1, the surest {max(metric.count // 2, 1)}"
    },
    "swd": lambda metric, reals: {
        "estimator": f"{patches.PATCHES} patches of {patches.SIDE} px an image and level, "
        f"{patches.REPEATS} x {patches.DIRECTIONS} directions, seed {SWD_SEED}, in thousandths"
    },
    "msssim": lambda metric, reals: {"estimator": "mean over pairs"},
}
