"""The training loop of one worker: images in, checkpoints out. Knows neither Ray nor MLflow.

    train(config, observer=observer)  # alone, or on every rank of an initialised process group

A run that has checkpoints goes on from the newest one. What is computed is a function of the
configuration, the data and the seed; workers, restarts and micro-batches change its speed.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep import storage
from data_prep.manifest import Manifest
from pipeline import config as configs
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.loader import Batch, Loader, Request
from pipeline.marker import CommittedCheckpoint
from pipeline.measurements import Measurements
from pipeline.memory import keep_freed_memory
from pipeline.minibatches import Minibatch, RunDraws, minibatches, total_nimg_of
from pipeline.options import ConfigError
from pipeline.order import SampleOrder
from pipeline.samples import sample_grid
from pipeline.tracking import flatten
from stylegan.networks import family
from stylegan.reals import prepare_reals
from stylegan.sample import describe
from stylegan.schedule import Phase, phase_at
from stylegan.speed import check_compiler
from stylegan.state import TrainState
from stylegan.step import Part, TrainingStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What is reported now and then."""

    nimg: int
    total_nimg: int
    lod: float
    resolution: int
    batch: int
    images_per_s: float
    """Over all workers, since the last tick."""
    metrics: dict[str, float]
    """By the names that tracking shows, such as loss/D."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A checkpoint that has become visible."""

    checkpoint: CommittedCheckpoint
    lod: float
    samples_url: str
    """A grid of Gs' images as PNG."""


class Observer(Protocol):
    """Is told by rank 0 what happens; must return at once."""

    def began(self, nimg: int, url: str) -> None:
        """Training begins at `nimg`; `url` is the checkpoint it goes on from, or empty."""
        ...

    def tick(self, tick: Tick) -> None:
        """Progress."""
        ...

    def committed(self, commit: Commit) -> None:
        """A checkpoint is visible."""
        ...


def train(config: TrainConfig, *, observer: Observer, tracking_run_id: str = "") -> int:
    """Train to the end, from the newest checkpoint if there is one; images shown in the end.

    Raises:
        ConfigError: The data or the run's earlier checkpoints do not fit.
        StorageError: The store failed for longer than its patience.
        DigestError: Data or checkpoints are damaged.
    """
    torch.set_num_threads(config.threads_per_worker)
    keep_freed_memory()
    manifest = Manifest.load(config.data.url)
    config.check_data(manifest)
    worker = _Worker(config, manifest, observer, tracking_run_id)
    worker.begin()
    worker.run()
    return worker.state.nimg


class _Worker:
    """One process of the group, with its share of every minibatch."""

    def __init__(
        self, config: TrainConfig, manifest: Manifest, observer: Observer, tracking_run_id: str
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.observer = observer
        self.tracking_run_id = tracking_run_id
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = choose_device(config)
        if config.step.speed != "eager":
            check_compiler()
        self.state = new_state(config, self.device)
        self.split = config.split(self.rank)
        self.step = TrainingStep(
            self.state,
            loss=config.loss,
            config=config.step,
            split=self.split,
        )
        self.checkpoints = Checkpoints(
            config.run_url, config=config.checkpoint, keep=Measurements(config).keep
        )
        self._pending: list[tuple[Future[CommittedCheckpoint], float, str]] = []

    def begin(self) -> None:
        """Load the newest checkpoint, or the weights to start from, or commit the start."""
        url, tensors, scalars = self._latest()
        if url:
            refuse_changes(self.config, scalars, self.manifest, url)
            self.state.load(tensors, scalars)
        elif self.config.init_from:
            tensors, _ = self.checkpoints.load(self.config.init_from, {"G", "D", "Gs"})
            fresh = self.state.scalars()
            self.state.load(tensors, fresh)
        if self.rank == 0:
            self.observer.began(self.state.nimg, url)
        if not url:
            self._commit()

    def run(self) -> None:
        """Minibatch by minibatch to the end."""
        total_nimg = total_nimg_of(self.config)
        clock = _Clock(self.state.nimg)
        batches = self._loader().stream(self._requests())
        try:
            for minibatch in minibatches(self.config, self.state.nimg):
                phase = minibatch.phase
                self.step.enter(phase)
                parts, wait_s = self._parts(batches, phase, minibatch.nimg)
                self.step(parts, self._draws(minibatch), phase)
                clock.data_wait_s += wait_s
                if not minibatch.ends_iteration:
                    continue

                # Once per tick: progress. At its own interval, and at the end: a commit.
                done = self.state.nimg >= total_nimg
                if done or self.state.nimg >= clock.start_nimg + phase.tick_kimg * 1000:
                    self._report(phase, clock)
                    clock = _Clock(self.state.nimg)
                if done or self._commit_is_due(minibatch):
                    self._commit()
        finally:
            batches.close()
        self.checkpoints.wait()
        self._tell_committed()

    def _commit_is_due(self, minibatch: Minibatch) -> bool:
        """Whether a multiple of `commit_kimg` lies in this outer iteration: of nimg alone."""
        every_nimg = self.config.commit_kimg * 1000
        first = self.state.nimg - minibatch.phase.batch * self.config.schedule.minibatch_repeats
        return first // every_nimg < self.state.nimg // every_nimg

    def _commit(self) -> None:
        phase = phase_at(
            self.state.nimg, self.config.schedule, resolution=self.config.network.resolution
        )
        if self.rank == 0:
            self._tell_committed()
            name = f"{self.state.attempt:03d}-{self.state.nimg:012d}"
            samples_url = storage.join(self.config.run_url, "samples", f"{name}.png")
            grid = sample_grid(self.state.Gs, lod=phase.lod)
            storage.write_atomic(samples_url, grid)
            future = self.checkpoints.save(
                self.state.tensors(),
                self._scalars(phase),
                nimg=self.state.nimg,
                attempt=self.state.attempt,
            )
            self._pending.append((future, phase.lod, samples_url))
        # Also without an interruption, so that a resumed run sums in the same order.
        if self.state.phase_key is not None:
            self.step.wrap()

    def _tell_committed(self) -> None:
        while self._pending and self._pending[0][0].done():
            future, lod, samples_url = self._pending.pop(0)
            commit = Commit(checkpoint=future.result(), lod=lod, samples_url=samples_url)
            self.observer.committed(commit)

    def _scalars(self, phase: Phase) -> dict[str, Any]:
        return self.state.scalars() | {
            "lod": phase.lod,
            "config": configs.to_dict(self.config),
            "config_digest": self.config.digest,
            "data_digest": self.manifest.digest,
            "network": describe(self.config.network.G),
            "tracking_run_id": self.tracking_run_id,
        }

    def _latest(self) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """The newest whole checkpoint, the same for all ranks; an empty URL if there is none."""
        found = self.checkpoints.load_latest() if self.rank == 0 else None
        url = [found[0].url if found else ""]
        if dist.is_initialized():
            dist.broadcast_object_list(url)
        if found:
            return url[0], found[1], found[2]
        return (url[0], *self.checkpoints.load(url[0])) if url[0] else ("", {}, {})

    def _loader(self) -> Loader:
        order = SampleOrder(self.manifest.samples, self.config.seed)
        return Loader(self.config.data.url, self.manifest, order, config=self.config.loader)

    def _requests(self) -> Iterator[Request]:
        draws = self.config.draws(self.state.attempt)
        labelled = self.config.network.label_size > 0
        for minibatch in minibatches(self.config, self.state.nimg):
            for offsets in self.split.parts(minibatch.phase.batch):
                indices = minibatch.nimg + offsets
                samples = None
                if labelled:
                    drawn = draws.samples(torch.from_numpy(indices), samples=self.manifest.samples)
                    samples = drawn.numpy()
                yield Request(
                    level_resolution=minibatch.phase.resolution,
                    positions=indices,
                    label_samples=samples,
                )

    def _parts(self, batches: Iterator[Batch], phase: Phase, nimg: int) -> tuple[list[Part], float]:
        draws = self.config.draws(self.state.attempt)
        parts, wait_s = [], 0.0
        for offsets in self.split.parts(phase.batch):
            batch = next(batches)
            wait_s += batch.wait_s
            indices = torch.from_numpy(nimg + offsets).to(self.device)
            mirror = draws.mirror(indices) if self.config.data.mirror else None
            images = batch.images.to(self.device, non_blocking=True)
            labelled = self.config.network.label_size > 0
            parts.append(
                Part(
                    reals=prepare_reals(images, mirror, phase.lod),
                    D_labels=self._to_device(batch.labels) if labelled else None,
                    G_labels=self._to_device(batch.extra_labels) if labelled else None,
                )
            )
        return parts, wait_s

    def _to_device(self, labels: Tensor | None) -> Tensor:
        assert labels is not None, "check_data lets no unlabelled data through"
        return labels.to(self.device, non_blocking=True)

    def _draws(self, minibatch: Minibatch) -> RunDraws:
        return RunDraws(
            self.config,
            self.config.draws(self.state.attempt),
            self.state.G,
            minibatch,
            self.split.parts(minibatch.phase.batch),
        )

    def _report(self, phase: Phase, clock: "_Clock") -> None:
        means = self.step.summary()
        if self.rank != 0:
            return
        self._tell_committed()
        seconds = time.monotonic() - clock.start_s
        kimg = (self.state.nimg - clock.start_nimg) / 1000
        metrics = means | {
            "progress/kimg": self.state.nimg / 1000,
            "progress/lod": phase.lod,
            "progress/resolution": phase.resolution,
            "progress/batch": phase.batch,
            "progress/D_lr": phase.D_lr,
            "progress/G_lr": phase.G_lr,
            "time/sec_per_kimg": seconds / kimg,
            "time/data_wait_s": clock.data_wait_s,
        }
        self.observer.tick(
            Tick(
                nimg=self.state.nimg,
                total_nimg=total_nimg_of(self.config),
                lod=phase.lod,
                resolution=phase.resolution,
                batch=phase.batch,
                images_per_s=1000 * kimg / seconds,
                metrics=metrics,
            )
        )


class _Clock:
    """When and where a tick began."""

    def __init__(self, nimg: int) -> None:
        self.start_nimg = nimg
        self.start_s = time.monotonic()
        self.data_wait_s = 0.0


def choose_device(config: TrainConfig) -> torch.device:
    """The device of this process."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU here; set device=cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def new_state(config: TrainConfig, device: torch.device) -> TrainState:
    """Networks with initial weights, a function of the configuration and the seed."""
    G = family.generator(config.network.G, seed=2 * config.seed)
    D = family.discriminator(config.network.D, seed=2 * config.seed + 1)
    for network in (G, D):
        # A quarter faster on CPUs at 32 px, and what tensor cores want.
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(
        G,
        D,
        config.optimizer,
        G_interval=config.loss.G_adam_interval,
        D_interval=config.loss.D_interval,
        scaled=config.step.precision == "float16",
    )


_ONLY_ROUNDING = (
    "workers",
    "threads_per_worker",
    "commit_kimg",
    "device",
    "step.micro_batch",
    "step.speed",
)
"""Options that change the order of summation alone."""


def refuse_changes(
    config: TrainConfig, scalars: dict[str, Any], manifest: Manifest, url: str
) -> None:
    """Refuse to go on from a checkpoint that another configuration or data set has made.

    Raises:
        ConfigError: Shows the differences and what can be done.
    """
    if scalars["data_digest"] != manifest.digest:
        raise ConfigError(
            f"data.url {config.data.url} has digest {manifest.digest[:12]}…, but the run at "
            f"{config.run_url} was begun with data of digest {scalars['data_digest'][:12]}…; "
            f"give it back its data or choose another run_url"
        )
    before = configs.parse(scalars["config"])
    changed = configs.differences(config.identity(), before.identity())
    refused = {key: pair for key, pair in changed.items() if key not in config.accept_changes}
    before_free, free = (
        {key: flatten(configs.to_dict(each)).get(key) for key in _ONLY_ROUNDING}
        for each in (before, config)
    )
    for key, (ours, was) in configs.differences(free, before_free).items():
        logger.warning(
            "%s is %s, it was %s: the weights will not be equal bit for bit to those of an "
            "undisturbed run",
            key,
            ours,
            was,
        )
    if refused:
        shown = "; ".join(f"{key} is {a}, it was {b}" for key, (a, b) in refused.items())
        raise ConfigError(
            f"the run at {config.run_url} was begun with other options ({url}): {shown}; undo "
            f"that, choose another run_url, or accept it with accept_changes="
            f"[{','.join(refused)}]"
        )
