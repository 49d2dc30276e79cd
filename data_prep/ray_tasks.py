"""Tasks of the sharding job on a Ray cluster: the other executor beside `workers.process_pool`.

Ray repeats a task whose process or node was lost. Never more tasks are with it than about keep all
CPUs busy, so the job's memory does not grow with the data set, and nodes that join get their share.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from data_prep.ray_start import start_ray
from data_prep.workers import Executor, LostWorkersError, Result, Task

_ADDRESS = re.compile(r"auto|local|(ray://)?[^/\s]+:\d+")
_ATTEMPTS = 10
"""Times that the process or the node of one task may be lost, less one."""


@contextlib.contextmanager
def ray_cluster(address: str, workers: int | None) -> Iterator[Executor]:
    """The cluster of this job, of RAY_ADDRESS or at `address`, or else a local Ray.

    Args:
        address: auto, local, HOST:PORT or ray://HOST:PORT.
        workers: Tasks at a time, of one CPU each; None: all CPUs there are.

    Raises:
        ValueError: No address, or no cluster there.
    """
    if not _ADDRESS.fullmatch(address):
        raise ValueError(
            f"--ray {address} is no address of a cluster; write auto, local or HOST:PORT, or "
            f"--ray alone at the end of the command"
        )
    try:
        start_ray(address, workers=workers or 1)
    except Exception as err:
        # Ray raises whatever there is, Exception itself included.
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ValueError(
            f"--ray {address}: no cluster answers ({reason}); name one by HOST:PORT or "
            f"RAY_ADDRESS, or submit this command by `ray job submit`"
        ) from err
    try:
        yield _Tasks(workers)
    finally:
        ray.shutdown()


class _Tasks:
    def __init__(self, most: int | None) -> None:
        self._most = most
        self._call: Any = ray.remote(
            num_cpus=1, max_retries=_ATTEMPTS - 1, scheduling_strategy="SPREAD"
        )(_call)

    @property
    def at_once(self) -> int:
        # Twice the CPUs: a node has its next task at once, and an autoscaler sees the demand.
        cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        return self._most or 2 * max(1, int(cpus))

    def submit(self, function: Callable[[Task], Result], task: Task) -> Any:
        return self._call.remote(function, task)

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        done, left = ray.wait(running, num_returns=1)
        return [_result(handle) for handle in done], left


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    return function(task)


def _result(handle: Any) -> Any:
    try:
        return ray.get(handle)
    except RayTaskError as err:
        raise err.cause from None  # as if it had been raised here
    except RayError as err:
        raise LostWorkersError(
            f"the processes or nodes of one task were lost {_ATTEMPTS} times, probably for want of "
            f"memory ({type(err).__name__}); run the same command again to go on, with fewer "
            f"--workers or larger nodes"
        ) from err
