"""Metrics of a generator against a data set, from tasks that any machine may compute.

    results = evaluate(checkpoint_url, data_url, EvaluationConfig(num_images=300))

A value is the same on any number of workers: features are those of fixed batches, and they are
summed up in float64 in the order of the images. Metrics that look at the same images share one
sampling of them. Values whose fingerprints differ are not compared.
"""

import logging
from collections.abc import Iterator
from typing import Any

from pipeline import estimators, weights
from pipeline.estimators import Rows
from pipeline.evaluation_config import EvaluationConfig
from pipeline.loader import LoaderConfig
from pipeline.metric import LOGITS, Metric, MetricResult
from pipeline.revision import code_revision
from pipeline.sampler import FanOut, Sampler
from pipeline.tasks import NotFiniteError, UnfitError, reproducible
from stylegan.metrics.inception import FEATURES

logger = logging.getLogger(__name__)

_LEFT_OUT = (
    weights.MissingWeightsError,
    weights.WeightsDigestError,
    NotFiniteError,
    UnfitError,
)


def evaluate(
    url: str,
    data_url: str,
    config: EvaluationConfig,
    *,
    cache_url: str = "",
    loader: LoaderConfig | None = None,
    map: FanOut = map,  # noqa: A002 (it is used like the builtin)
) -> list[MetricResult]:
    """Measure a generator; a metric that cannot be computed is left out and says so in one line.

    Args:
        url: A committed checkpoint, or the folder of a pulled model.
        data_url: The real images.
        config: What to measure.
        cache_url: Folder or URL where features of the reals are kept, and those of the fakes until
            the evaluation is done; empty for nowhere.
        loader: How the reals are fetched.
        map: Calls a function with each of many tasks; the builtin does it here.

    Returns:
        Values in the order of `config.metrics`; some metrics have more than one.

    Raises:
        DigestError: The generator or the data are damaged.
        StorageError: They cannot be read.
        ValueError: Generator, data and configuration do not fit together.
    """
    if not config.metrics:
        return []
    loader = loader or LoaderConfig()
    return _Job(Sampler(url, data_url, config, loader=loader, cache_url=cache_url)).run(map)


class _Job:
    """One evaluation: which metrics it has, and what is made of their rows."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.config = sampler, sampler.config

    def run(self, fan_out: FanOut) -> list[MetricResult]:
        """All values; see `evaluate`."""
        ready = [metric for metric in self.config.wanted if self._has_networks(metric)]
        found: dict[Metric, list[MetricResult]] = {}
        groups: dict[Any, list[Metric]] = {}
        for metric in ready:
            groups.setdefault(_sampling(metric), []).append(metric)
        for group in groups.values():
            try:
                rows = self.sampler.rows(group, fan_out)
            except _LEFT_OUT as err:
                for metric in group:
                    _leave_out(metric.names[0], err)
                continue
            for metric in group:
                found[metric] = self._results(metric, rows[metric])
        self.sampler.forget()
        return [result for metric in ready for result in found.get(metric, ())]

    def _has_networks(self, metric: Metric) -> bool:
        """Whether all weights of a metric are there; if not, a line in the log says what lacks."""
        try:
            for name in metric.needs:
                if name not in self.sampler.sha256:
                    self.sampler.sha256[name] = self.sampler.find_weights(name)
        except _LEFT_OUT as err:
            _leave_out(metric.names[0], err)
            return False
        return True

    def _results(self, metric: Metric, rows: Rows) -> list[MetricResult]:
        """Values of one metric; none, and a line in the log, if it has none."""
        try:
            with reproducible(self.config.threads):
                values = estimators.compute(metric, rows)
        except ValueError as err:
            _leave_out(metric.names[0], err)
            return []
        lineage = self.sampler.subject.bundle.lineage
        subject = {
            "url": self.sampler.url,
            "digest": self.sampler.subject.digest,
            "nimg": lineage.get("nimg"),
            "attempt": lineage.get("attempt", 0),
            "lod": self.sampler.subject.bundle.lod,
            "code_revision": code_revision(),
        }
        return [
            MetricResult(
                name=name,
                value=value,
                fingerprint=self._fingerprint(metric, name, rows),
                subject=subject,
                note="; ".join(self._notes(metric)),
            )
            for name, value in values.items()
        ]

    def _notes(self, metric: Metric) -> Iterator[str]:
        fewest = min(self.sampler.num_reals(metric), metric.count)
        if metric.kind == "fid" and fewest <= FEATURES:
            yield f"biased upwards, because covariances of {FEATURES} features need more images"
        digest = self.sampler.subject.bundle.lineage.get("data_digest")
        if metric.compares and digest not in ("", None, self.sampler.manifest.digest):
            yield "measured with other data than the generator was trained on"

    def _fingerprint(self, metric: Metric, name: str, rows: Rows) -> dict[str, Any]:
        said = {
            "metric": metric.kind,
            **estimators.how(
                metric, name, reals=self.sampler.num_reals(metric), attributes=rows.attributes
            ),
            **(
                self.sampler.reals_key(metric.look, self.sampler.num_reals(metric))
                if metric.compares
                else {
                    "level": self.sampler.network.resolution,
                    **self.sampler.network_key(metric.look),
                }
            ),
            "fakes": metric.count,
            **self.sampler.sampled(truncated=metric.sampled not in ("paths", "latents")),
        }
        if len(metric.names) > 1 or name not in metric.names:
            said["value"] = name
        if metric.mixed > 1:
            said["mixed"] = f"{metric.mixed} latents, distinct layers keyed by image"
        if metric.kind == "ppl":
            said["crop"] = self.config.crop
        if metric.kind == "is":
            said["logits_sha256"] = self.sampler.sha256[LOGITS]
        if metric.sampled not in ("paths", "latents"):
            said["rounding"] = "trunc(127.5 x + 128)"
        return said


def _sampling(metric: Metric) -> tuple[Any, ...]:
    """Equal for metrics that look at the same."""
    if metric.sampled == "images":
        return "images", metric.mixed
    return metric.sampled, metric.space, metric.sampling, metric.network


def _leave_out(name: str, err: Exception) -> None:
    """One line; the last, where another process has put its traceback before it."""
    logger.warning("%s left out: %s", name, str(err).strip().splitlines()[-1])
