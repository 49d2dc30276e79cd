"""The group of workers under Ray Train: placed, watched and restarted by its controller.

    fit(config, {"config": …, "mailbox": …})  # returns when the workers have

`fit` may be called again for the same run: the state of a run is its checkpoints, and what Ray
remembers of an earlier group is deleted.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray._raylet import PlacementGroupID
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from data_prep import storage
from pipeline import cluster
from pipeline.config import TrainConfig

_START_S = 60.0
_ELASTIC_START_S = 15.0
"""For a while Ray tries to place workers on a node that is gone."""


class NotForRay(UserCallback):
    """Ends a `fit` at once where it is not Ray's to start the group again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise in the controller what a worker raised: it will be raised again, or needs time."""
        for err in worker_exceptions.values():
            cause = getattr(err, "cause", None) or err
            if isinstance(cause, (*cluster.LASTING, storage.StorageError)):
                raise cause


def fit(config: TrainConfig, payload: Mapping[str, Any], *, use_gpu: bool) -> int:
    """Run the workers to the end of the training, or until they are told to stop; images shown.

    Raises:
        ray.train.TrainingFailedError: The workers or their controller failed.
        ray.exceptions.RayError: The controller is gone.
        OSError: The store of the run failed.
    """
    _give_back_places()
    least, most = config.worker_range
    _set_patience(
        health_s=config.watchdog.silent_s, start_s=_ELASTIC_START_S if least < most else _START_S
    )
    # Any: what mypy sees of Ray is its older version.
    scaling: Any = ScalingConfig
    body: Any = cluster.train_worker
    callbacks: list[Any] = [NotForRay()]
    forgotten = storage.join(config.run_url, "ray")
    storage.delete(forgotten, recursive=True)
    trainer = ray.train.torch.TorchTrainer(
        body,
        train_loop_config=dict(payload),
        torch_config=TorchConfig(timeout_s=math.ceil(config.watchdog.collective_s)),
        scaling_config=scaling(
            num_workers=config.workers,
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=config.ray.resize_s,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=config.run_url.removeprefix("file://"),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
            callbacks=callbacks,
        ),
    )
    result: Any = trainer.fit()
    storage.delete(forgotten, recursive=True)
    return int(result.return_value)


def _set_patience(*, health_s: float, start_s: float) -> None:
    """How long Ray waits for a worker to answer, and for a group to be placed.

    Its controller takes this from the environment of the process that calls `fit`.
    """
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(health_s)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_s)


def _give_back_places() -> None:
    """Free what a controller that was killed has reserved for its workers.

    Ray's own cleaner asks the dashboard who has died, and a local cluster has none.
    """
    job = ray.get_runtime_context().get_job_id()
    for place in placement_group_table().values():
        if place["placement_group_id"].endswith(job) and place["state"] != "REMOVED":
            remove_placement_group(
                PlacementGroup(PlacementGroupID(bytes.fromhex(place["placement_group_id"])))
            )
