"""What metrics are computed of: rows of an evaluation, gathered from tasks of any machine.

    sampler = Sampler(checkpoint_url, data_url, config, loader=LoaderConfig(), cache_url="")
    rows = sampler.rows([metric], fan_out=map)[metric]

With a cache, features of the reals stay for later evaluations under a key of content, and what has
come from tasks until `forget`, so an evaluation that was stopped goes on where it was. Of what FID
alone looks at only sums are held and kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from data_prep.manifest import Manifest
from pipeline import classifiers, features, probes, weights
from pipeline.estimators import Rows
from pipeline.evaluation_config import EvaluationConfig
from pipeline.feature_cache import FeatureCache
from pipeline.gathering import Gathered, Progress
from pipeline.known_weights import CLASSIFIERS
from pipeline.loader import LoaderConfig
from pipeline.metric import INCEPTION, LOGITS, PATCHES, Look, Metric
from pipeline.probes import PathsTask
from pipeline.tasks import (
    Extractor,
    FakesTask,
    Outputs,
    RealsTask,
    choose_device,
    open_subject,
    parts,
    plan_batches,
)
from stylegan.metrics.inception_input import Convention
from stylegan.metrics.swd import num_levels

Task = TypeVar("Task")

CHANNELS = (1, 3)
"""Of images the feature networks see; 1 is repeated."""
_RESIZE: Mapping[str, str] = {
    "vgg16": "tf1-bilinear",
    "lpips-vgg16": "box, cropped size // 256",
    "lpips-alexnet": "box, cropped size // 256",
    CLASSIFIERS: "box",
    PATCHES: "none",
}
_CONVENTIONS: Mapping[Convention, str] = {
    "official": "tf1-bilinear",
    "pytorchfid": "bilinear, white 1, as pytorch-fid",
    "cleanfid": "bicubic, antialiased, as clean-fid",
    "torchmetrics": "bilinear, antialiased, as torchmetrics",
}
"""Of Inception."""


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
        self._progress: list[Progress] = []
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
        if group[0].sampled != "images":
            outputs = self._probe(group[0], max(metric.count for metric in group), fan_out)
            return {
                m: Rows(fakes=[rows[: m.count] for rows in outputs], **self._facts(m))
                for m in group
            }
        reals: dict[int, dict[Look, Gathered]] = {}
        for number in dict.fromkeys(self.num_reals(m) for m in group if m.compares):
            wanted = [m for m in group if m.compares and self.num_reals(m) == number]
            reals[number] = self._reals(wanted, number, fan_out)
        fakes = self._fakes(group, fan_out)
        found = {}
        for metric in group:
            ours = fakes[metric.look]
            theirs = reals[self.num_reals(metric)][metric.look] if metric.compares else None
            if metric.kind == "fid":
                assert theirs is not None
                sums = theirs.sums[self.num_reals(metric)], ours.sums[metric.count]
                found[metric] = Rows(sums=sums)
            else:
                found[metric] = Rows(
                    fakes=[ours.rows()[: metric.count]],
                    reals=theirs.rows() if theirs else None,
                    **self._facts(metric),
                )
        return found

    def fake_images(self, count: int) -> Tensor:
        """The first generated images, uint8 [n, c, h, w]."""
        batches = plan_batches(count, self.config.batch)
        task = FakesTask(**self._fake_options(batches, [Look(INCEPTION)]))
        return torch.cat(list(features.fake_images(task)))[:count]

    def real_images(self, indices: Sequence[int], *, count: int) -> Tensor:
        """Real images by their number among `count`, uint8 [n, c, h, w]."""
        options = self._common([range(index, index + 1) for index in indices], [Look(INCEPTION)])
        seed = self.config.seed if self.config.mirror else None
        task = RealsTask(**{**options, "batch": 1}, count=count, mirror_seed=seed)
        return torch.cat(list(features.real_images(task)))

    def num_reals(self, metric: Metric) -> int:
        return min(self.config.num_reals or metric.count, self.manifest.samples)

    def _facts(self, metric: Metric) -> dict[str, Any]:
        """What else a metric is computed of."""
        if metric.kind == "is":
            extractor = self._extractor(Look(LOGITS))
            return {"logits": features.tensors(extractor)["logits"]}
        if metric.kind == "ls":
            return {"attributes": classifiers.find(self.config.weights).attributes}
        if metric.kind == "swd":
            side = self.network.resolution
            return {"levels": [side >> level for level in range(num_levels(side))]}
        return {}

    def _reals(
        self, metrics: Sequence[Metric], count: int, fan_out: FanOut
    ) -> dict[Look, Gathered]:
        """Of the real images by each network; what was kept from earlier is not computed."""
        config, cache = self.config, self.cache
        gathered = {
            look: Gathered(
                self.reals_key(look, count),
                count=count,
                table=any(m.kind != "fid" for m in own),
                sums=[count for m in own if m.kind == "fid"],
            )
            for look, own in _by_look(metrics).items()
        }
        missing = {
            look: one
            for look, one in gathered.items()
            if not (cache and look.network != PATCHES and one.recall(cache))
        }
        if missing:
            self._gather(
                features.real_features,
                lambda piece: RealsTask(
                    **self._common(piece, list(missing)),
                    count=count,
                    mirror_seed=config.seed if config.mirror else None,
                ),
                list(missing.values()),
                fan_out,
            )
            kept = [one for look, one in missing.items() if cache and look.network != PATCHES]
            for one in kept:
                assert cache is not None
                one.store(cache)
            if len(kept) == len(missing):
                self._progress.pop().forget()
        return gathered

    def _fakes(self, metrics: Sequence[Metric], fan_out: FanOut) -> dict[Look, Gathered]:
        """Of the generated images by each network."""
        mixed, count = metrics[0].mixed, max(metric.count for metric in metrics)
        key = {"fakes of": self.subject.digest, "mixed": mixed, **self.sampled()}
        gathered = {
            look: Gathered(
                {**key, **self.network_key(look)},
                count=count,
                table=any(m.kind != "fid" for m in own),
                sums=[m.count for m in own if m.kind == "fid"],
            )
            for look, own in _by_look(metrics).items()
        }
        self._gather(
            features.fake_features,
            lambda piece: FakesTask(**self._fake_options(piece, list(gathered)), mixed=mixed),
            list(gathered.values()),
            fan_out,
        )
        return gathered

    def _probe(self, metric: Metric, count: int, fan_out: FanOut) -> list[Tensor]:
        """What is asked of the generator beside images."""
        key = {"probe": metric.sampled, "of": self.subject.digest, **self.sampled()}
        key |= self.network_key(metric.look)
        looks, outputs = [metric.look], 1
        function: Callable[[Any], Outputs]
        make: Callable[[Sequence[range]], FakesTask]
        if metric.sampled == "paths":
            key |= {"space": metric.space, "full": metric.sampling, "crop": self.config.crop}
            function = probes.path_steps

            def make(piece: Sequence[range]) -> FakesTask:
                return PathsTask(
                    **self._fake_options(piece, looks),
                    space=metric.space,
                    full=metric.sampling == "full",
                    crop=self.config.crop,
                )
        else:

            def make(piece: Sequence[range]) -> FakesTask:
                return FakesTask(**self._fake_options(piece, looks))

            function = (
                probes.attributes if metric.sampled == "latents" else probes.pair_similarities
            )
            outputs = 3 if metric.sampled == "latents" else 1
        gathered = [
            Gathered({**key, "output": number}, count=count, table=True)
            for number in range(outputs)
        ]
        self._gather(function, make, gathered, fan_out)
        return [one.rows() for one in gathered]

    def _gather(
        self,
        function: Callable[[Any], Outputs],
        make: Callable[[Sequence[range]], Any],
        outputs: Sequence[Gathered],
        fan_out: FanOut,
    ) -> None:
        """Outputs of a function of all images; with a cache what has come is kept for a restart.

        Args:
            function: Of one task.
            make: The task of some batches.
            outputs: Of each output, what is wanted of it.
            fan_out: Computes tasks.
        """
        pieces = parts(plan_batches(outputs[0].count, self.config.batch))
        progress = Progress(self.cache if len(pieces) > 1 else None, outputs, self._last_bits())
        self._progress.append(progress)
        ahead = [(piece, progress.recall(piece)) for piece in pieces if not progress.has(piece)]
        missing = [piece for piece, rows in ahead if rows is None]
        results = iter(fan_out(function, [make(piece) for piece in missing]) if missing else ())
        try:
            for piece, kept in ahead:
                rows = next(results) if kept is None else kept
                for one, array in zip(outputs, rows, strict=True):
                    one.add(array, start=piece[0].start)
                if kept is None:
                    progress.keep(piece, rows)
            assert next(results, None) is None, "a result for each task"
        finally:
            progress.flush()

    def _last_bits(self) -> dict[str, Any]:
        """What decides the last bits of what tasks give."""
        config = self.config
        return {
            "batch": config.batch,
            "threads": config.threads,
            "device": choose_device(config.device).type,
        }

    def _common(self, piece: Sequence[range], looks: Sequence[Look]) -> dict[str, Any]:
        """What tasks of all kinds hold."""
        return {
            "batches": tuple(piece),
            "batch": self.config.batch,
            "extractors": tuple(self._extractor(look) for look in looks),
            "data_url": self.data_url,
            "data_digest": self.manifest.digest,
            "resolution": self.network.resolution,
            "loader": self.loader,
        }

    def _fake_options(self, piece: Sequence[range], looks: Sequence[Look]) -> dict[str, Any]:
        config = self.config
        return {
            **self._common(piece, looks),
            "url": self.url,
            "digest": self.subject.digest,
            "seed": config.seed,
            "psi": config.psi,
            "cutoff": config.cutoff,
        }

    def _extractor(self, look: Look) -> Extractor:
        config = self.config
        return Extractor(
            network=look.network,
            convention=look.convention,
            sha256=self.sha256.get(look.network, ""),
            precision=config.precision,
            weights=config.weights,
            device=config.device,
            threads=config.threads,
        )

    def forget(self) -> None:
        """What was kept for a restart is not needed any more."""
        for progress in self._progress:
            progress.forget()
        self._progress = []

    def reals_key(self, look: Look, count: int) -> dict[str, Any]:
        """What the features of the reals depend on."""
        config, manifest = self.config, self.manifest
        return {
            "data_digest": manifest.digest,
            "level": self.network.resolution,
            "downsampling": manifest.resample,
            "mirror": f"keyed half, seed {config.seed}" if config.mirror else "none",
            "reals": count,
            "reals_choice": "all" if count == manifest.samples else "evenly spaced",
            **self.network_key(look),
        }

    def network_key(self, look: Look) -> dict[str, Any]:
        """What features depend on beside the images."""
        network = look.network
        if not network:
            return {}
        bare = network in (INCEPTION, "vgg16")
        return {
            "network": network,
            "network_sha256": self.sha256.get(network, ""),
            "resize": _CONVENTIONS[look.convention] if network == INCEPTION else _RESIZE[network],
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


def _by_look(metrics: Sequence[Metric]) -> dict[Look, list[Metric]]:
    found: dict[Look, list[Metric]] = {}
    for metric in metrics:
        found.setdefault(metric.look, []).append(metric)
    return found
