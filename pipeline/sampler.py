"""What metrics are computed of: rows of an evaluation, gathered from tasks of any machine.

    sampler = Sampler(checkpoint_url, data_url, config, loader=LoaderConfig(), cache_url="")
    rows = sampler.rows([metric], fan_out=map)[metric]

With a cache, features of the reals stay for later evaluations under a key of content, and rows of
finished tasks until `forget`, so an evaluation that was stopped goes on where it was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_prep.manifest import Manifest
from pipeline import classifiers, features, probes, weights
from pipeline.estimators import Rows
from pipeline.evaluation_config import EvaluationConfig
from pipeline.feature_cache import FeatureCache
from pipeline.known_weights import CLASSIFIERS
from pipeline.loader import LoaderConfig
from pipeline.metric import INCEPTION, LOGITS, PATCHES, Metric
from pipeline.probes import PathsTask
from pipeline.tasks import (
    Extractor,
    FakesTask,
    Features,
    Outputs,
    RealsTask,
    choose_device,
    open_subject,
    parts,
    plan_batches,
)
from stylegan.metrics.swd import num_levels

Task = TypeVar("Task")

CHANNELS = (1, 3)
"""Of images the feature networks see; 1 is repeated."""
_RESIZE: Mapping[str, str] = {
    INCEPTION: "tf1-bilinear",
    "vgg16": "tf1-bilinear",
    "lpips-vgg16": "box, cropped size // 256",
    "lpips-alexnet": "box, cropped size // 256",
    CLASSIFIERS: "box",
    PATCHES: "none",
}


class FanOut(Protocol):
    """Calls a function with each task, anywhere; results are in the order of the tasks."""

    def __call__(
        self, function: Callable[[Task], Outputs], tasks: Sequence[Task], /
    ) -> Iterable[Outputs]: ...


class Sampler:
    """One generator and one data set: which tasks they have, and what is made of their results."""

    def __init__(
        self,
        url: str,
        data_url: str,
        config: EvaluationConfig,
        *,
        loader: LoaderConfig,
        cache_url: str,
    ):
        self.url, self.data_url, self.config, self.loader = url, data_url, config, loader
        self.cache = FeatureCache(cache_url) if cache_url else None
        self.subject = open_subject(url)
        self.manifest = Manifest.load(data_url)
        self.network = self.subject.bundle.generator().config
        self.sha256: dict[str, str] = {}
        self._parts: list[Mapping[str, Any]] = []
        self._check()

    def _check(self) -> None:
        choose_device(self.config.device)
        self.manifest.level(self.network.resolution)
        ours, theirs = self.network.channels, self.manifest.channels
        if ours != theirs or ours not in CHANNELS:
            raise ValueError(
                f"the generator has {ours} channels and {self.data_url} has {theirs}; metrics "
                f"need images of 1 or 3, the same for both"
            )
        labels = 0 if self.manifest.labels is None else self.manifest.labels.size
        if self.network.label_size not in (0, labels):
            raise ValueError(
                f"the generator takes labels of {self.network.label_size} numbers, but those of "
                f"{self.data_url} have {labels}; evaluate it with the data it was trained on"
            )

    def find_weights(self, name: str) -> str:
        """SHA-256 of a network's weights."""
        if name == CLASSIFIERS:
            return classifiers.find(self.config.weights).sha256
        folders = [*filter(None, [self.config.weights]), *weights.search_folders()]
        return weights.find(weights.named(name), folders=folders, cache=weights.CACHE).sha256

    def rows(self, group: Sequence[Metric], fan_out: FanOut) -> Mapping[Metric, Rows]:
        """What the metrics of one sampling are computed of."""
        count = max(metric.count for metric in group)
        if group[0].sampled != "images":
            outputs = self._probe(group[0], count, fan_out)
            return {m: Rows(fakes=_first(outputs, m), **self._facts(m)) for m in group}
        networks = list(dict.fromkeys(metric.network for metric in group))
        reals: dict[tuple[int, str], Tensor] = {}
        for number in dict.fromkeys(self.num_reals(m) for m in group if m.compares):
            wanted = list(
                dict.fromkeys(
                    m.network for m in group if m.compares and self.num_reals(m) == number
                )
            )
            found = self._reals(wanted, number, fan_out)
            reals |= {(number, network): rows for network, rows in zip(wanted, found, strict=True)}
        rows = self._fakes(group[0].mixed, networks, count, fan_out)
        fakes = dict(zip(networks, rows, strict=True))
        return {
            m: Rows(
                fakes=_first([fakes[m.network]], m),
                reals=reals.get((self.num_reals(m), m.network)),
                **self._facts(m),
            )
            for m in group
        }

    def num_reals(self, metric: Metric) -> int:
        return min(self.config.num_reals or metric.count, self.manifest.samples)

    def _facts(self, metric: Metric) -> dict[str, Any]:
        """What else a metric is computed of."""
        if metric.kind == "is":
            extractor = self._extractor(LOGITS)
            return {"logits": features.tensors(extractor)["logits"]}
        if metric.kind == "ls":
            return {"attributes": classifiers.find(self.config.weights).attributes}
        if metric.kind == "swd":
            side = self.network.resolution
            return {"levels": [side >> level for level in range(num_levels(side))]}
        return {}

    def _reals(self, networks: Sequence[str], count: int, fan_out: FanOut) -> list[Tensor]:
        """Features of the real images by each network, kept from earlier or computed."""
        config, cache = self.config, self.cache
        keys = {network: self.reals_key(network, count) for network in networks}
        kept = {}
        for network in networks:
            array = cache.get(keys[network]) if cache and network != PATCHES else None
            if array is not None and len(array) == count:
                kept[network] = array
        missing = [network for network in networks if network not in kept]
        if missing:
            arrays = self._gather(
                features.real_features,
                lambda piece: RealsTask(
                    **self._common(piece, missing),
                    count=count,
                    mirror_seed=config.seed if config.mirror else None,
                ),
                count,
                [keys[network] for network in missing],
                fan_out,
            )
            kept |= dict(zip(missing, arrays, strict=True))
            for network in missing:
                if cache and network != PATCHES:
                    cache.put(keys[network], kept[network])
                    self.forget(network)
        return [torch.from_numpy(kept[network]) for network in networks]

    def _fakes(
        self, mixed: int, networks: Sequence[str], count: int, fan_out: FanOut
    ) -> list[Tensor]:
        """Features of the generated images by each network."""
        key = {"fakes of": self.subject.digest, "mixed": mixed, **self.sampled()}
        arrays = self._gather(
            features.fake_features,
            lambda piece: FakesTask(**self._fake_options(piece, networks), mixed=mixed),
            count,
            [{**key, **self.network_key(network)} for network in networks],
            fan_out,
        )
        return [torch.from_numpy(array) for array in arrays]

    def _probe(self, metric: Metric, count: int, fan_out: FanOut) -> list[Tensor]:
        """What is asked of the generator beside images."""
        key = {"probe": metric.sampled, "of": self.subject.digest, **self.sampled()}
        key |= self.network_key(metric.network)
        networks, outputs = [metric.network], 1
        function: Callable[[Any], Outputs]
        make: Callable[[Sequence[range]], FakesTask]
        if metric.sampled == "paths":
            key |= {"space": metric.space, "full": metric.sampling, "crop": self.config.crop}
            function = probes.path_steps

            def make(piece: Sequence[range]) -> FakesTask:
                return PathsTask(
                    **self._fake_options(piece, networks),
                    space=metric.space,
                    full=metric.sampling == "full",
                    crop=self.config.crop,
                )
        else:

            def make(piece: Sequence[range]) -> FakesTask:
                return FakesTask(**self._fake_options(piece, networks))

            function = (
                probes.attributes if metric.sampled == "latents" else probes.pair_similarities
            )
            outputs = 3 if metric.sampled == "latents" else 1
        keys = [{**key, "output": number} for number in range(outputs)]
        return [torch.from_numpy(a) for a in self._gather(function, make, count, keys, fan_out)]

    def _gather(
        self,
        function: Callable[[Any], Outputs],
        make: Callable[[Sequence[range]], Any],
        count: int,
        keys: Sequence[Mapping[str, Any]],
        fan_out: FanOut,
    ) -> list[Features]:
        """Outputs of a function of all images; with a cache each task's are kept as they come.

        Args:
            function: Of one task.
            make: The task of some batches.
            count: Images.
            keys: Of each output, what it is.
            fan_out: Computes tasks.
        """
        pieces = parts(plan_batches(count, self.config.batch))
        part_keys = [[self._part_key(key, piece) for key in keys] for piece in pieces]
        done = [self._kept(own, piece) for own, piece in zip(part_keys, pieces, strict=True)]
        missing = [number for number, rows in enumerate(done) if rows is None]
        tasks = [make(pieces[number]) for number in missing]
        results = fan_out(function, tasks) if tasks else ()
        for number, rows in zip(missing, results, strict=True):
            done[number] = rows
            if self.cache and len(pieces) > 1:
                for key, array in zip(part_keys[number], rows, strict=True):
                    self.cache.put(key, array)
                    self._parts.append(key)
        return [np.concatenate(arrays) for arrays in zip(*_all(done), strict=True)]

    def _kept(self, keys: Sequence[Mapping[str, Any]], piece: Sequence[range]) -> Outputs | None:
        """Rows of a task that an evaluation which was stopped has left."""
        if not self.cache:
            return None
        rows = []
        for key in keys:
            array = self.cache.get(key)
            if array is None or len(array) != sum(map(len, piece)):
                return None
            rows.append(array)
        self._parts += keys
        return tuple(rows)

    def _part_key(self, key: Mapping[str, Any], piece: Sequence[range]) -> dict[str, Any]:
        """What rows of a task depend on; with what decides their last bits."""
        config = self.config
        return {
            **key,
            "images": [piece[0].start, piece[-1].stop],
            "batch": config.batch,
            "threads": config.threads,
            "device": choose_device(config.device).type,
        }

    def _common(self, piece: Sequence[range], networks: Sequence[str]) -> dict[str, Any]:
        """What tasks of all kinds hold."""
        return {
            "batches": tuple(piece),
            "batch": self.config.batch,
            "extractors": tuple(self._extractor(network) for network in networks),
            "data_url": self.data_url,
            "data_digest": self.manifest.digest,
            "resolution": self.network.resolution,
            "loader": self.loader,
        }

    def _fake_options(self, piece: Sequence[range], networks: Sequence[str]) -> dict[str, Any]:
        config = self.config
        return {
            **self._common(piece, networks),
            "url": self.url,
            "digest": self.subject.digest,
            "seed": config.seed,
            "psi": config.psi,
            "cutoff": config.cutoff,
        }

    def _extractor(self, network: str) -> Extractor:
        config = self.config
        return Extractor(
            network=network,
            sha256=self.sha256.get(network, ""),
            precision=config.precision,
            weights=config.weights,
            device=config.device,
            threads=config.threads,
        )

    def forget(self, network: str = "") -> None:
        """Rows of tasks, by one network or all, are not needed any more."""
        gone = [key for key in self._parts if not network or key["network"] == network]
        self._parts = [key for key in self._parts if key not in gone]
        for key in gone:
            assert self.cache is not None, "else nothing is kept"
            self.cache.delete(key)

    def reals_key(self, network: str, count: int) -> dict[str, Any]:
        """What the features of the reals depend on."""
        config, manifest = self.config, self.manifest
        return {
            "data_digest": manifest.digest,
            "level": self.network.resolution,
            "downsampling": manifest.resample,
            "mirror": f"keyed half, seed {config.seed}" if config.mirror else "none",
            "reals": count,
            "reals_choice": "all" if count == manifest.samples else "evenly spaced",
            **self.network_key(network),
        }

    def network_key(self, network: str) -> dict[str, Any]:
        """What features depend on beside the images."""
        if not network:
            return {}
        bare = network in (INCEPTION, "vgg16")
        return {
            "network": network,
            "network_sha256": self.sha256.get(network, ""),
            "resize": _RESIZE[network],
            "precision": self.config.precision if bare else "float32",
        }

    def sampled(self, *, truncated: bool = True) -> dict[str, Any]:
        """What the generated images depend on beside the generator."""
        config = self.config
        psi = float(config.psi) if truncated else 1.0
        labels = "of drawn reals" if self.network.label_size else "none"
        return {
            "seed": config.seed,
            "psi": psi,
            "cutoff": None if psi == 1 else config.cutoff,
            "noise": "keyed",
            "labels": labels,
            "growing": "nearest to full resolution",
            **({"data_digest": self.manifest.digest} if self.network.label_size else {}),
        }


def _first(outputs: Sequence[Tensor], metric: Metric) -> list[Tensor]:
    return [rows[: metric.count] for rows in outputs]


def _all(done: Sequence[Outputs | None]) -> Iterator[Outputs]:
    for rows in done:
        assert rows is not None
        yield rows
