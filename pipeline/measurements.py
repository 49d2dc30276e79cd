"""What has been measured of a run and what still has to be: RUN_URL/evaluation.

    RUN_URL/evaluation/000-000000064000.json    results of one checkpoint, and how they were made

The driver writes them, the worker that saves reads them: a checkpoint is kept until it has been
measured, and as long as it is the best one.
"""

import dataclasses
import json
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import storage
from pipeline.config import TrainConfig
from pipeline.marker import CommittedCheckpoint
from pipeline.metric import MetricResult
from pipeline.minibatches import total_nimg_of

logger = logging.getLogger(__name__)

_SPEED = ("every_kimg", "best_by", "workers", "worker_cpus", "worker_gpus", "weights")
"""Options of the evaluation that change no value."""


class Measurements:
    """The results of a run that were made as its configuration asks for."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.url = storage.join(config.run_url, "evaluation")
        options = dataclasses.asdict(config.evaluation)
        for name in _SPEED:
            del options[name]
        # As JSON gives it back.
        self._options: Mapping[str, Any] = json.loads(json.dumps(options))

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

    def read(self, checkpoint: CommittedCheckpoint) -> list[MetricResult] | None:
        """What was measured of this very checkpoint; None if nothing was."""
        content = self._read(_name(checkpoint))
        if content is None or content[0] != checkpoint.digest:
            return None
        return content[1]

    def write(self, checkpoint: CommittedCheckpoint, results: Sequence[MetricResult]) -> None:
        """Keep what was measured of a checkpoint; it may be deleted from now on."""
        content = {
            "key": {"checkpoint": checkpoint.digest, "evaluation": self._options},
            "results": [dataclasses.asdict(result) for result in results],
        }
        url = storage.join(self.url, _name(checkpoint))
        storage.write_atomic(url, (json.dumps(content, indent=1) + "\n").encode())

    def first(self) -> list[MetricResult]:
        """Results of the first checkpoint that has any, which may be deleted by now."""
        for name in storage.listdir(self.url):
            content = self._read(name)
            if content is not None and content[1]:
                return content[1]
        return []

    def keep(self, checkpoints: Sequence[CommittedCheckpoint]) -> list[CommittedCheckpoint]:
        """Those that still have to be measured, and the best one."""
        if not self.config.evaluation.metrics:
            return []
        kept = [c for c in checkpoints if self.is_due(c.nimg) and self.read(c) is None]
        best = self.best(checkpoints)
        return [*kept, best] if best else kept

    def best(self, checkpoints: Sequence[CommittedCheckpoint]) -> CommittedCheckpoint | None:
        """The best by the decisive value (`EvaluationConfig.best_by`); None where none has it."""
        decisive = self.config.evaluation.decisive
        scores = [
            (result.value * result.sign, checkpoint)
            for checkpoint in checkpoints
            for result in self.read(checkpoint) or ()
            if result.name == decisive
        ]
        return min(scores, key=operator.itemgetter(0))[1] if scores else None

    def _read(self, name: str) -> tuple[str, list[MetricResult]] | None:
        """Digest of a checkpoint and its results; None if they were not made in this way."""
        url = storage.join(self.url, name)
        try:
            content = json.loads(storage.read_bytes(url))
            key = content["key"]
            if key["evaluation"] != self._options:
                return None
            return key["checkpoint"], [MetricResult(**result) for result in content["results"]]
        except storage.MissingError:
            return None
        except (ValueError, TypeError, KeyError) as err:
            logger.warning("%s is damaged (%s): measured again", url, err)
            return None


def _name(checkpoint: CommittedCheckpoint) -> str:
    return f"{checkpoint.attempt:03d}-{checkpoint.nimg:012d}.json"
