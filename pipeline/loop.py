"""The training loop of one worker: images in, checkpoints out. Knows neither Ray nor MLflow.

    train(config, observer=observer)  # alone, or on every rank of an initialised process group

A run that has checkpoints goes on from the newest one. What is computed is a function of the
configuration, the data and the seed; workers, restarts and micro-batches change its speed.
"""

import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep import storage
from data_prep.manifest import Manifest
from pipeline import config as configs
from pipeline.agreement import Agreement
from pipeline.beginning import choose_device, new_state, refuse_changes
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.divergence import Diverged, Divergence, DivergenceError, Rollback, target
from pipeline.feed import Feed
from pipeline.marker import CommittedCheckpoint
from pipeline.measurements import Measurements
from pipeline.memory import keep_freed_memory
from pipeline.minibatches import Minibatch, minibatches, total_nimg_of
from pipeline.observer import Commit, Observer, Tick
from pipeline.pulse import COMMIT, DATA, END, START, STEP, Pulse
from pipeline.samples import sample_grid
from stylegan.sample import describe
from stylegan.schedule import Phase, phase_at
from stylegan.speed import check_compiler
from stylegan.step import TrainingStep

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    observer: Observer,
    tracking_run_id: str = "",
    pulse: Pulse | None = None,
) -> int:
    """Train to the end, from the newest checkpoint if there is one; images shown in the end.

    Args:
        config: Of the run.
        observer: Is told what happens, by rank 0.
        tracking_run_id: Is put into the checkpoints.
        pulse: Says where the loop is; its `stop` ends it early, with a checkpoint.

    Raises:
        ConfigError: The data or the run's earlier checkpoints do not fit.
        StorageError: The store failed for longer than its patience.
        DigestError: Data or checkpoints are damaged.
        DivergenceError: The training diverges again and again.
    """
    torch.set_num_threads(config.threads_per_worker)
    keep_freed_memory()
    manifest = Manifest.load(config.data.url)
    config.check_data(manifest)
    pulse = pulse or Pulse(config.watchdog)
    reason, nimg = "", 0
    while True:
        worker = _Worker(config, manifest, observer, tracking_run_id, pulse)
        worker.begin(reason, nimg)
        try:
            return worker.run()
        except Diverged as err:
            reason, nimg = str(err), worker.state.nimg
        del worker  # and its memory


class _Worker:
    """One process of the group, with its share of every minibatch."""

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        observer: Observer,
        tracking_run_id: str,
        pulse: Pulse,
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.observer = observer
        self.tracking_run_id = tracking_run_id
        self.pulse = pulse
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = choose_device(config)
        if config.step.speed != "eager":
            check_compiler()
        self.state = new_state(config, self.device)
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.split = config.split(self.rank, self.world)
        self.step = TrainingStep(
            self.state,
            loss=config.loss,
            config=config.step,
            split=self.split,
        )
        self.checkpoints = Checkpoints(
            config.run_url, config=config.checkpoint, keep=Measurements(config).keep
        )
        self.rollbacks: list[Rollback] = []
        self._warm = False
        self._pending: list[tuple[Future[CommittedCheckpoint], float, str]] = []
        pulse.collective = lambda: self.step.collective

    def begin(self, diverged: str = "", nimg: int = 0) -> None:
        """Load the newest checkpoint, or the weights to start from, or commit the start.

        After a divergence (why and at which nimg) this is a rollback, with draws of its own.
        """
        self.pulse.enter(START, nimg=nimg, first=True)
        url, tensors, scalars = self._latest(rolling_back=bool(diverged))
        if url:
            refuse_changes(self.config, scalars, self.manifest, url, workers=self.world)
            self.state.load(tensors, scalars)
            self.rollbacks = scalars["rollbacks"]
        elif self.config.init_from:
            tensors, _ = self.checkpoints.load(self.config.init_from, {"G", "D", "Gs"})
            fresh = self.state.scalars()
            self.state.load(tensors, fresh)
        if diverged:
            self._roll_back(diverged, nimg)
        elif url and scalars["rebuilt"]:
            self._rehearse(scalars["rebuilt"])
            self.state.load(tensors, scalars)
        if self.rank == 0:
            self.observer.began(self.state.nimg, url)
        if not url or diverged:
            self._commit()

    def run(self) -> int:
        """Minibatch by minibatch to the end, or until somebody stops it; images shown."""
        total_nimg = total_nimg_of(self.config)
        feed = Feed(self.config, self.manifest, self.state, self.split)
        clock = _Clock(self.state.nimg)
        agreement = Agreement(self.device)
        divergence = Divergence(self.config.divergence, self.state)
        try:
            for minibatch in minibatches(self.config, self.state.nimg):
                self._take(minibatch, feed)
                if not minibatch.ends_iteration:
                    continue

                # Once per tick: progress. At its own interval, and at the end: a commit.
                done = self.state.nimg >= total_nimg
                if done or self.state.nimg >= clock.start_nimg + minibatch.phase.tick_kimg * 1000:
                    divergence.check_signs(self._report(minibatch.phase, clock, feed))
                    divergence.check_updates()
                    clock = _Clock(self.state.nimg, feed.data_wait_s)
                stopped = not done and agreement.wanted(self.pulse.stop.is_set())
                if done or stopped or self._commit_is_due(minibatch):
                    divergence.check_updates()
                    divergence.check_weights()
                    self._commit(last=done or stopped)
                if stopped:
                    break
        except Diverged:
            self._settle()
            raise
        except BaseException:
            self.checkpoints.abandon()
            raise
        finally:
            feed.close()
        self.pulse.enter(END, nimg=self.state.nimg)
        agreement.close()
        self.checkpoints.wait()
        self._tell_committed()
        return self.state.nimg

    def _take(self, minibatch: Minibatch, feed: Feed) -> None:
        """One minibatch; what a watchdog sees of it."""
        first = self.step.enter(minibatch.phase) or not self._warm
        self.pulse.enter(DATA, nimg=self.state.nimg, first=first)
        parts = feed.parts(minibatch)
        self.pulse.enter(STEP, nimg=self.state.nimg, first=first)
        self.step(parts, feed.draws(minibatch), minibatch.phase)
        self._warm = True

    def _commit_is_due(self, minibatch: Minibatch) -> bool:
        """Whether a multiple of `commit_kimg` lies in this outer iteration: of nimg alone."""
        every_nimg = self.config.commit_kimg * 1000
        first = self.state.nimg - minibatch.phase.batch * self.config.schedule.minibatch_repeats
        return first // every_nimg < self.state.nimg // every_nimg

    def _commit(self, *, last: bool = False) -> None:
        self.pulse.enter(COMMIT, nimg=self.state.nimg)
        phase = phase_at(
            self.state.nimg, self.config.schedule, resolution=self.config.network.resolution
        )
        if self.rank == 0:
            self._tell_committed()
            name = f"{self.state.attempt:03d}-{self.state.nimg:012d}"
            samples_url = storage.join(self.config.run_url, "samples", f"{name}.png")
            future = self.checkpoints.save(
                self.state.tensors(),
                self._scalars(phase, rebuilt=self.step.rebuilt if last else set()),
                nimg=self.state.nimg,
                attempt=self.state.attempt,
                beside={samples_url: sample_grid(self.state.Gs, lod=phase.lod)},
                must=last,
            )
            if future is not None:
                self._pending.append((future, phase.lod, samples_url))
        # Also without an interruption, so that a resumed run sums in the same order.
        if self.state.phase_key is not None and not last:
            self.step.wrap()

    def _settle(self) -> None:
        """Let what is on its way to the store arrive or be given up."""
        with suppress(storage.StorageError):
            self.checkpoints.wait()
        self._tell_committed()

    def _tell_committed(self) -> None:
        """Report what has become visible; one that has not is no reason to stop."""
        while self._pending and self._pending[0][0].done():
            future, lod, samples_url = self._pending.pop(0)
            if (err := future.exception()) is not None:
                logger.warning("a checkpoint was given up: %s", err)
                continue
            commit = Commit(checkpoint=future.result(), lod=lod, samples_url=samples_url)
            self.observer.committed(commit)

    def _scalars(self, phase: Phase, *, rebuilt: set[str]) -> dict[str, Any]:
        return self.state.scalars() | {
            "lod": phase.lod,
            "config": configs.to_dict(self.config),
            "config_digest": self.config.digest,
            "data_digest": self.manifest.digest,
            "network": describe(self.config.network.G),
            "tracking_run_id": self.tracking_run_id,
            "workers": self.world,
            "rollbacks": self.rollbacks,
            "rebuilt": sorted(rebuilt),
        }

    def _latest(self, *, rolling_back: bool) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """The checkpoint to go on from, the same for all ranks; an empty URL if there is none."""
        url, found = "", None
        if self.rank == 0:
            found = self.checkpoints.load_latest()
            if found and rolling_back:
                chosen = target(self.checkpoints.list(), found[2]["rollbacks"])
                if chosen != found[0]:
                    found = (chosen, *self.checkpoints.load(chosen))
            url = found[0].url if found else ""
        urls = [url]
        if dist.is_initialized():
            dist.broadcast_object_list(urls)
        if found:
            return urls[0], found[1], found[2]
        return (urls[0], *self.checkpoints.load(urls[0])) if urls[0] else ("", {}, {})

    def _roll_back(self, reason: str, nimg: int) -> None:
        """Count a return to the state that was loaded, and say so."""
        config = self.config.divergence
        if len(self.rollbacks) >= config.max_rollbacks:
            raise DivergenceError(
                f"the training diverged at {nimg / 1000:g} kimg ({reason}); as many returns to an "
                f"earlier checkpoint as divergence.max_rollbacks allows ({config.max_rollbacks}) "
                f"have not helped: lower the learning rates or the weights of the loss, or look at "
                f"the data"
            )
        self.state.attempt += 1
        self.rollbacks.append(Rollback(reason=reason, from_nimg=nimg, to_nimg=self.state.nimg))
        if self.rank == 0:
            logger.warning(
                "the training diverged at %g kimg (%s): it goes back to %g kimg with other random "
                "numbers, for the %d. time of at most %d",
                nimg / 1000,
                reason,
                self.state.nimg / 1000,
                len(self.rollbacks),
                config.max_rollbacks,
            )

    def _rehearse(self, names: list[str]) -> None:
        """Bring DDP where it was in the middle of its work, at a commit out of turn."""
        minibatch = next(iter(minibatches(self.config, self.state.nimg)), None)
        if minibatch is None or self.world == 1:
            return
        feed = Feed(self.config, self.manifest, self.state, self.split)
        self.step.enter(minibatch.phase)
        self.step.rehearse(names, feed.parts(minibatch), feed.draws(minibatch), minibatch.phase)
        feed.close()

    def _report(self, phase: Phase, clock: "_Clock", feed: Feed) -> dict[str, float]:
        """Tell the observer; means over the tick, the same for all ranks."""
        means = self.step.summary()
        if self.rank != 0:
            return means
        self._tell_committed()
        seconds = time.monotonic() - clock.start_s
        kimg = (self.state.nimg - clock.start_nimg) / 1000
        metrics = means | {
            "progress/kimg": self.state.nimg / 1000,
            "progress/attempt": self.state.attempt,
            "progress/lod": phase.lod,
            "progress/resolution": phase.resolution,
            "progress/batch": phase.batch,
            "progress/D_lr": phase.D_lr,
            "progress/G_lr": phase.G_lr,
            "time/sec_per_kimg": seconds / kimg,
            "time/data_wait_s": feed.data_wait_s - clock.data_wait_s,
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
        return means


class _Clock:
    """When and where a tick began."""

    def __init__(self, nimg: int, data_wait_s: float = 0.0) -> None:
        self.start_nimg = nimg
        self.start_s = time.monotonic()
        self.data_wait_s = data_wait_s
