"""Evaluation beside the training: the driver's queue of checkpoints to be measured.

Each result is kept in RUN_URL/evaluation, so a restart measures nothing twice. Where the cluster
has no room beside the training, checkpoints wait until it has ended.
"""

import dataclasses
import json
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from data_prep import storage
from pipeline import cluster
from pipeline.checkpoint import Checkpoints, CommittedCheckpoint
from pipeline.config import TrainConfig
from pipeline.features import Features
from pipeline.loop import total_nimg_of
from pipeline.measure import evaluate
from pipeline.metric import MetricResult
from pipeline.progress import Display
from pipeline.tracking import Tracker

logger = logging.getLogger(__name__)

Task = TypeVar("Task")


class Evaluations:
    """What has been measured of a run, and what still will be."""

    def __init__(self, config: TrainConfig, tracker: Tracker, shown: Display) -> None:
        self.config = config
        self._tracker = tracker
        self._shown = shown
        self._queue: queue.Queue[CommittedCheckpoint | None] = queue.Queue()
        self._results: dict[int, list[MetricResult]] = {}
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Measure beside the training from now on, if the cluster has room."""
        if cluster.resource("CPU") >= self.config.workers + self.config.evaluation.workers:
            self._start()

    def offer(self, checkpoint: CommittedCheckpoint) -> None:
        """A checkpoint was committed; it is measured if it is due."""
        if self.is_due(checkpoint.nimg):
            self._queue.put(checkpoint)

    def finish(self) -> None:
        """The training has ended: measure what is still missing."""
        self._start()
        for checkpoint in Checkpoints(self.config.run_url).list():
            self.offer(checkpoint)
        self._queue.put(None)
        assert self._thread is not None
        self._thread.join()

    def is_due(self, nimg: int) -> bool:
        """The last checkpoint, and the first one from each multiple of `every_kimg` on."""
        config = self.config.evaluation
        if not config.metrics:
            return False
        if nimg >= total_nimg_of(self.config):
            return True
        every_nimg = config.every_kimg * 1000
        before = nimg - self.config.commit_kimg * 1000
        return every_nimg > 0 and before // every_nimg < nimg // every_nimg

    def done(self) -> set[int]:
        """Nimg of what has been measured."""
        return set(self._results)

    def results(self, nimg: int) -> Sequence[MetricResult]:
        """Values with their fingerprints; none if nothing was measured there."""
        return self._results.get(nimg, [])

    def values(self, nimg: int) -> dict[str, float]:
        """Values by the names that tracking shows."""
        return {f"metric/{result.name}": result.value for result in self.results(nimg)}

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="evaluations", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (checkpoint := self._queue.get()) is not None:
            if checkpoint.nimg in self._results:
                continue
            try:
                self._measure(checkpoint)
            except Exception as err:
                logger.debug("evaluation failed", exc_info=True)
                self._shown.say(f"evaluation of {checkpoint.url} failed: {err}")

    def _measure(self, checkpoint: CommittedCheckpoint) -> None:
        config = self.config.evaluation
        url = storage.join(
            self.config.run_url,
            "evaluation",
            f"{checkpoint.attempt:03d}-{checkpoint.nimg:012d}.json",
        )
        results = _read(url, checkpoint, config.names)
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
                map=_in_tasks,
            )
            rows = [dataclasses.asdict(result) for result in results]
            storage.write_atomic(url, json.dumps(rows, indent=1).encode())
        self._results[checkpoint.nimg] = list(results)
        values = self.values(checkpoint.nimg)
        self._tracker.log_checkpoint(
            checkpoint.url, digest=checkpoint.digest, nimg=checkpoint.nimg, metrics=values
        )
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        self._shown.say(f"{checkpoint.nimg / 1000:.1f} kimg: {shown}")


def _in_tasks(function: Callable[[Task], Features], tasks: Sequence[Task], /) -> Sequence[Features]:
    return cluster.fan_out(function, tasks, num_cpus=1)


def _read(url: str, checkpoint: CommittedCheckpoint, names: Sequence[str]) -> list[MetricResult]:
    """What was measured of this checkpoint before; nothing if it was not the same metrics."""
    try:
        kept = json.loads(storage.read_bytes(url))
        results = [MetricResult(**result) for result in kept]
    except storage.MissingError:
        return []
    except (ValueError, TypeError) as err:
        logger.warning("%s is damaged (%s): measured again", url, err)
        return []
    same = all(result.subject["digest"] == checkpoint.digest for result in results)
    return results if same and [result.name for result in results] == list(names) else []
