"""FID and KID of a generator against a data set, from tasks that any machine may compute.

    results = evaluate(checkpoint_url, data_url, EvaluationConfig(num_images=300))

A value is the same on any number of workers: features are those of fixed batches, and they are
summed up in float64 in the order of the images. Values whose fingerprints differ are not compared.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_prep.manifest import Manifest
from pipeline import features, weights
from pipeline.feature_cache import FeatureCache
from pipeline.features import Device, Extractor, FakesTask, Features, Precision, RealsTask
from pipeline.loader import LoaderConfig
from pipeline.metric import NETWORKS, Metric, MetricResult, compute, estimator, metric_name
from stylegan.draws import MAX_SEED

logger = logging.getLogger(__name__)

Task = TypeVar("Task")

CHANNELS = (1, 3)
"""Of images the feature networks see; 1 is repeated."""
_LEFT_OUT = (weights.MissingWeightsError, weights.WeightsDigestError, features.NotFiniteError)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, on how many images and how."""

    metrics: tuple[Metric, ...] = ("fid", "kid")
    """fid, kid; none for no evaluation."""
    num_images: int = 50_000
    """Generated images; FID of fewer than 50,000 is biased upwards and named so, as in fid300."""
    num_reals: int = 0
    """Real images, spread evenly over the data set; 0 for as many as num_images, at most all."""
    every_kimg: float = 0
    """Thousands of images between evaluated checkpoints; 0 for the last one alone."""
    batch: int = 32
    """Images that go through the networks together; another value gives other last bits."""
    workers: int = 1
    """Tasks the batches are divided among; changes speed alone."""
    threads: int = 1
    """Threads of torch in each task; another value gives other last bits on a CPU."""
    device: Device = "auto"
    """auto: CUDA where there is one."""
    precision: Precision = "float32"
    """Of the feature network; bfloat16 is fast on GPUs and CPUs that have it, else very slow."""
    seed: int = 0
    """Of latents, noise inputs, drawn labels and mirror flips."""
    psi: float = 1.0
    """Truncation of the generated images; 1 for none."""
    cutoff: int | None = None
    """Layers that are truncated, counted from the coarsest; null for all."""
    mirror: bool = False
    """Flip a keyed half of the real images left to right."""
    weights: str = ""
    """Folder or URL with the feature networks; empty for STYLEGAN_WEIGHTS and `make weights`."""

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in NETWORKS:
                raise ValueError(
                    f"evaluation.metrics has {metric!r}; choose from {', '.join(NETWORKS)}"
                )
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"evaluation.metrics is {list(self.metrics)}; name each of them once")
        least = {"num_images": 2, "batch": 1, "workers": 1, "threads": 1, "every_kimg": 0}
        for key, value in least.items():
            if not getattr(self, key) >= value:
                raise ValueError(
                    f"evaluation.{key} is {getattr(self, key)}; choose at least {value}"
                )
        if self.num_reals < 0 or self.num_reals == 1:
            raise ValueError(
                f"evaluation.num_reals is {self.num_reals}; choose 0 (as many as num_images) or "
                f"at least 2"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"evaluation.seed is {self.seed}; choose from 0 to {MAX_SEED}")
        if not math.isfinite(self.psi):
            raise ValueError(f"evaluation.psi is {self.psi}; choose a number, 1 for no truncation")
        if self.cutoff is not None and self.cutoff < 0:
            raise ValueError(
                f"evaluation.cutoff is {self.cutoff}; choose a number of layers or null for all"
            )


class FanOut(Protocol):
    """Calls a function with each task, anywhere; results are in the order of the tasks."""

    def __call__(
        self, function: Callable[[Task], Features], tasks: Sequence[Task], /
    ) -> Iterable[Features]: ...


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
        cache_url: Folder or URL where features of the reals are kept; empty for nowhere.
        loader: How the reals are fetched.
        map: Calls a function with each of `config.workers` tasks; the builtin does it here.

    Raises:
        DigestError: The generator or the data are damaged.
        StorageError: They cannot be read.
        ValueError: Generator, data and configuration do not fit together.
    """
    if not config.metrics:
        return []
    job = _Job(url, data_url, config, loader or LoaderConfig())
    cache = FeatureCache(cache_url) if cache_url else None
    results = []
    for network in dict.fromkeys(NETWORKS[metric] for metric in config.metrics):
        metrics = [metric for metric in config.metrics if NETWORKS[metric] == network]
        try:
            reals = job.reals(network, cache, map)
            fakes = job.fakes(network, map)
        except _LEFT_OUT as err:
            for metric in metrics:
                _leave_out(metric_name(metric, config.num_images), err)
            continue
        results += [r for metric in metrics if (r := job.result(metric, reals, fakes))]
    return results


def _leave_out(name: str, err: Exception) -> None:
    """One line; the last, where another process has put its traceback before it."""
    logger.warning("%s left out: %s", name, str(err).strip().splitlines()[-1])


class _Job:
    """One evaluation: which tasks it has, and what is made of their results."""

    def __init__(self, url: str, data_url: str, config: EvaluationConfig, loader: LoaderConfig):
        self.url, self.data_url, self.config, self.loader = url, data_url, config, loader
        self.subject = features.open_subject(url)
        self.manifest = Manifest.load(data_url)
        self.network = self.subject.bundle.generator().config
        self.num_reals = min(config.num_reals or config.num_images, self.manifest.samples)
        self._check()

    def _check(self) -> None:
        features.choose_device(self.config.device)
        self.manifest.level(self.network.resolution)
        ours, theirs = self.network.channels, self.manifest.channels
        if ours != theirs or ours not in CHANNELS:
            raise ValueError(
                f"the generator has {ours} channels and {self.data_url} has {theirs}; FID and KID "
                f"need images of 1 or 3, the same for both"
            )
        labels = 0 if self.manifest.labels is None else self.manifest.labels.size
        if self.network.label_size not in (0, labels):
            raise ValueError(
                f"the generator takes labels of {self.network.label_size} numbers, but those of "
                f"{self.data_url} have {labels}; evaluate it with the data it was trained on"
            )

    def reals(self, network: str, cache: FeatureCache | None, fan_out: FanOut) -> Tensor:
        """Features of the real images, kept from an earlier evaluation or computed."""
        config, key = self.config, self._reals_key(network)
        array = cache.get(key) if cache else None
        if array is None or len(array) != self.num_reals:
            seed = config.seed if config.mirror else None
            tasks = [
                RealsTask(**common, count=self.num_reals, mirror_seed=seed)
                for common in self._shares(self.num_reals, network)
            ]
            array = np.concatenate(list(fan_out(features.real_features, tasks)))
            if cache:
                cache.put(key, array)
        return torch.from_numpy(array)

    def fakes(self, network: str, fan_out: FanOut) -> Tensor:
        """Features of the generated images."""
        config = self.config
        tasks = [
            FakesTask(
                **common,
                url=self.url,
                digest=self.subject.digest,
                seed=config.seed,
                psi=config.psi,
                cutoff=config.cutoff,
            )
            for common in self._shares(config.num_images, network)
        ]
        return torch.from_numpy(np.concatenate(list(fan_out(features.fake_features, tasks))))

    def _shares(self, count: int, network: str) -> Iterator[dict[str, Any]]:
        """What tasks of both kinds hold, for the share of each."""
        config = self.config
        extractor = Extractor(
            network=network,
            precision=config.precision,
            weights=config.weights,
            device=config.device,
            threads=config.threads,
        )
        batches = features.plan_batches(count, config.batch)
        for share in features.shares(batches, config.workers):
            yield {
                "batches": share,
                "batch": config.batch,
                "extractor": extractor,
                "data_url": self.data_url,
                "data_digest": self.manifest.digest,
                "resolution": self.network.resolution,
                "loader": self.loader,
            }

    def result(self, metric: str, reals: Tensor, fakes: Tensor) -> MetricResult | None:
        """The value of one metric; None, and a line in the log, if it has none."""
        name = metric_name(metric, len(fakes))
        try:
            with features.reproducible(self.config.threads):
                value = compute(metric, reals, fakes)
        except ValueError as err:
            _leave_out(name, err)
            return None
        lineage = self.subject.bundle.lineage
        return MetricResult(
            name=name,
            value=value,
            fingerprint=self._fingerprint(metric),
            subject={
                "url": self.url,
                "digest": self.subject.digest,
                "nimg": lineage.get("nimg"),
                "attempt": lineage.get("attempt", 0),
                "lod": self.subject.bundle.lod,
            },
            note="; ".join(self._notes(metric, reals.shape[1])),
        )

    def _notes(self, metric: str, width: int) -> Iterator[str]:
        if metric == "fid" and min(self.num_reals, self.config.num_images) <= width:
            yield f"biased upwards, because covariances of {width} features need more images"
        if self.subject.bundle.lineage.get("data_digest") not in ("", None, self.manifest.digest):
            yield "measured with other data than the generator was trained on"

    def _reals_key(self, network: str) -> dict[str, Any]:
        """What the features of the reals depend on."""
        config, manifest = self.config, self.manifest
        return {
            "data_digest": manifest.digest,
            "level": self.network.resolution,
            "mirror": f"keyed half, seed {config.seed}" if config.mirror else "none",
            "reals": self.num_reals,
            "reals_choice": "all" if self.num_reals == manifest.samples else "evenly spaced",
            "network": network,
            "network_sha256": weights.named(network).sha256,
            "resize": "tf1-bilinear",
            "precision": config.precision,
        }

    def _fingerprint(self, metric: str) -> dict[str, Any]:
        config = self.config
        return {
            "metric": metric,
            **estimator(metric, reals=self.num_reals, fakes=config.num_images),
            **self._reals_key(NETWORKS[metric]),
            "fakes": config.num_images,
            "seed": config.seed,
            "psi": float(config.psi),
            "cutoff": None if config.psi == 1 else config.cutoff,
            "noise": "keyed",
            "labels": "of drawn reals" if self.network.label_size else "none",
            "growing": "nearest to full resolution",
            "rounding": "trunc(127.5 x + 128)",
        }
