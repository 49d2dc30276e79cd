"""Evaluation beside the training: the driver's queue of checkpoints to be measured.

Each result is kept in RUN_URL/evaluation, so a restart measures nothing twice. Where the cluster
has no room beside the training, checkpoints wait until it has ended, and are not deleted before.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from data_prep import storage
from pipeline import cluster
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.marker import CommittedCheckpoint
from pipeline.measure import evaluate
from pipeline.measurements import Measurements
from pipeline.metric import MetricResult
from pipeline.progress import Display
from pipeline.record import read_record, update_record
from pipeline.tasks import Outputs
from pipeline.tracking import Tracker
from pipeline.values import on_curves

logger = logging.getLogger(__name__)

Task = TypeVar("Task")


class Evaluations:
    """What has been measured of a run, and what still will be."""

    def __init__(self, config: TrainConfig, tracker: Tracker, shown: Display) -> None:
        self.config = config
        self.measurements = Measurements(config)
        self._tracker = tracker
        self._shown = shown
        self._queue: queue.Queue[CommittedCheckpoint | None] = queue.Queue()
        self._results: dict[str, list[MetricResult]] = {}
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Measure beside the training from now on, if the cluster has room."""
        config = self.config
        cpus, gpus = cluster.resource("CPU"), cluster.resource("GPU")
        # What Ray Train takes for each worker.
        if cluster.use_gpus(config, gpus=gpus, cpus=cpus):
            gpus -= config.worker_range[1]
        else:
            cpus -= config.worker_range[1]
        ours = config.evaluation
        if cpus >= ours.workers * ours.worker_cpus and gpus >= ours.workers * self._worker_gpus():
            self._start()

    def offer(self, checkpoint: CommittedCheckpoint) -> None:
        """A checkpoint was committed; it is measured if it is due."""
        if self.measurements.is_due(checkpoint.nimg):
            self._queue.put(checkpoint)

    def finish(self) -> None:
        """The training has ended: measure what is still missing, and let go of it."""
        self._start()
        config = self.config
        checkpoints = Checkpoints(
            config.run_url, config=config.checkpoint, keep=self.measurements.keep
        )
        for checkpoint in checkpoints.list():
            self.offer(checkpoint)
        self._queue.put(None)
        assert self._thread is not None
        self._thread.join()
        checkpoints.retain()

    def results(self, checkpoint: CommittedCheckpoint) -> Sequence[MetricResult]:
        """Values with their fingerprints; none if nothing was measured there."""
        return self._results.get(checkpoint.url, [])

    def _worker_gpus(self) -> float:
        """Of each worker of an evaluation."""
        config = self.config.evaluation
        if config.device == "cpu":
            return 0.0
        if config.worker_gpus is None:
            return 1.0 if cluster.resource("GPU") else 0.0
        return config.worker_gpus

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="evaluations", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (checkpoint := self._queue.get()) is not None:
            if checkpoint.url in self._results:
                continue
            try:
                self._measure(checkpoint)
            except Exception as err:
                logger.debug("evaluation failed", exc_info=True)
                self._shown.say(f"evaluation of {checkpoint.url} failed: {err}")

    def _measure(self, checkpoint: CommittedCheckpoint) -> None:
        config = self.config.evaluation
        results = self.measurements.read(checkpoint)
        if not results:
            self._shown.say(
                f"evaluating {checkpoint.nimg / 1000:.1f} kimg: {', '.join(config.metrics)}"
            )
            results = evaluate(
                checkpoint.url,
                self.config.data.url,
                config,
                cache_url=storage.join(self.config.run_url, "statistics"),
                loader=self.config.loader,
                map=self._in_tasks,
            )
            self.measurements.write(checkpoint, results)
        self._results[checkpoint.url] = results
        self._report(checkpoint, results)

    def _report(self, checkpoint: CommittedCheckpoint, results: Sequence[MetricResult]) -> None:
        run_url = self.config.run_url
        curves = read_record(run_url).get("curves", {})
        named = on_curves(results, curves)
        update_record(run_url, curves=curves)
        self._tracker.log_checkpoint(
            checkpoint.url,
            digest=checkpoint.digest,
            nimg=checkpoint.nimg,
            metrics={name: result.value for name, result in named.items()},
            fingerprints={name: result.fingerprint_digest for name, result in named.items()},
        )
        shown = "  ".join(f"{name} {result.value:.5g}" for name, result in named.items())
        self._shown.say(f"{checkpoint.nimg / 1000:.1f} kimg: {shown or 'nothing measured'}")

    def _in_tasks(
        self, function: Callable[[Task], Outputs], tasks: Sequence[Task], /
    ) -> Iterable[Outputs]:
        """Tasks of Ray, so many at once, each with what is set aside for it."""
        config = self.config.evaluation
        return cluster.fan_out(
            function,
            tasks,
            num_cpus=config.worker_cpus,
            num_gpus=self._worker_gpus(),
            at_once=config.workers,
        )
