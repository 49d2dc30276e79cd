"""Evaluation beside the training: the driver's queue of checkpoints to be measured.

Each result is kept in RUN_URL/evaluation, so a restart measures nothing twice. Where the cluster
has no room beside the training, checkpoints wait until it has ended.
"""

import dataclasses
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from data_prep import storage
from pipeline import cluster
from pipeline.checkpoint import Checkpoints, CommittedCheckpoint
from pipeline.config import TrainConfig
from pipeline.features import Features
from pipeline.measure import evaluate
from pipeline.metric import MetricResult
from pipeline.minibatches import total_nimg_of
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

    def _key(self, checkpoint: CommittedCheckpoint) -> dict[str, Any]:
        """What a result depends on, as JSON gives it back."""
        options = dataclasses.asdict(self.config.evaluation)
        for name in ("every_kimg", "workers", "weights"):
            del options[name]
        key = {"checkpoint": checkpoint.digest, "evaluation": options}
        plain: dict[str, Any] = json.loads(json.dumps(key))
        return plain

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
        key = self._key(checkpoint)
        results = _read(url, key)
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
            _write(url, key, results)
        self._results[checkpoint.nimg] = list(results)
        values = self.values(checkpoint.nimg)
        self._tracker.log_checkpoint(
            checkpoint.url, digest=checkpoint.digest, nimg=checkpoint.nimg, metrics=values
        )
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        self._shown.say(f"{checkpoint.nimg / 1000:.1f} kimg: {shown}")


def _in_tasks(function: Callable[[Task], Features], tasks: Sequence[Task], /) -> Sequence[Features]:
    return cluster.fan_out(function, tasks, num_cpus=1)


def _read(url: str, key: Mapping[str, Any]) -> list[MetricResult]:
    """What was measured before in the same way; nothing otherwise."""
    try:
        kept = json.loads(storage.read_bytes(url))
        if kept["key"] != key:
            return []
        return [MetricResult(**result) for result in kept["results"]]
    except storage.MissingError:
        return []
    except (ValueError, TypeError, KeyError) as err:
        logger.warning("%s is damaged (%s): measured again", url, err)
        return []


def _write(url: str, key: Mapping[str, Any], results: Sequence[MetricResult]) -> None:
    content = {"key": key, "results": [dataclasses.asdict(result) for result in results]}
    storage.write_atomic(url, (json.dumps(content, indent=1) + "\n").encode())
