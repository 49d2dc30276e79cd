"""What runs in Ray's processes: the workers of the group, a mailbox, tasks on other machines.

Ray Train places and restarts the group; checkpoints and their retention are ours, so `report` is
never called: a failed upload in Ray's path would end the group.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import torch

from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.loop import Commit, Tick, train
from pipeline.options import ConfigError

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

LASTING = (ValueError,)
"""What a restart does not mend: requests that cannot be met, damaged data, images, JSON."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """Something a worker tells the driver."""

    kind: str
    """began, tick, committed, log or failed."""
    content: Any


class Mailbox:
    """An actor that keeps messages until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def put(self, message: Message) -> None:
        """Add one."""
        self._messages.append(message)

    def take(self) -> list[Message]:
        """All since the last call."""
        messages, self._messages = self._messages, []
        return messages


class MailboxObserver:
    """A `pipeline.loop.Observer` that tells a mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def began(self, nimg: int, url: str) -> None:
        """See `pipeline.loop.Observer`."""
        self._put("began", (nimg, url))

    def tick(self, tick: Tick) -> None:
        """See `pipeline.loop.Observer`."""
        self._put("tick", tick)

    def committed(self, commit: Commit) -> None:
        """See `pipeline.loop.Observer`."""
        self._put("committed", commit)

    def _put(self, kind: str, content: Any) -> None:
        self._mailbox.put.remote(Message(kind=kind, content=content))


class _MailboxHandler(logging.Handler):
    """Warnings of a worker, which nobody would read in its log file."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox
        self._rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("ray"):
            return
        message = f"worker {self._rank}: {record.getMessage()}"
        self._mailbox.put.remote(Message(kind="log", content=message))


def resource(name: str) -> float:
    """How many CPUs or GPUs the cluster has."""
    amounts: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return amounts.get(name, 0.0)


def use_gpus(config: TrainConfig, *, gpus: float, cpus: float) -> bool:
    """Whether each worker gets a GPU, or else a CPU, of a cluster that has so many.

    Raises:
        ConfigError: There are too few for all; Ray would wait for more for ever, and say nothing.
    """
    use = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    have, kind = (gpus, "GPUs") if use else (cpus, "CPUs")
    if have < config.workers:
        besides = ", or train on CPUs with device=cpu" if use else ""
        raise ConfigError(
            f"workers is {config.workers}, but the cluster has {have:.0f} {kind}; set "
            f"workers={max(int(have), 1)}, add nodes{besides}"
        )
    return use


def mailbox() -> Any:
    """A new mailbox on this machine's node or any other."""
    return ray.remote(num_cpus=0, max_restarts=0)(Mailbox).remote()


def train_worker(payload: Mapping[str, Any]) -> None:
    """Body of each worker of the group: torch's process group is up, the rank is known."""
    import ray.train.torch

    rank = ray.train.get_context().get_world_rank()
    box = payload["mailbox"]
    handler = _MailboxHandler(box, rank)
    logging.getLogger().addHandler(handler)
    try:
        config = configs.parse(payload["config"])
        device = ray.train.torch.get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        train(config, observer=MailboxObserver(box), tracking_run_id=payload["tracking_run_id"])
    except LASTING as err:
        ray.get(box.put.remote(Message(kind="failed", content=str(err))))
        raise
    finally:
        logging.getLogger().removeHandler(handler)


def fan_out(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    num_cpus: float,
    num_gpus: float = 0,
    at_once: int = 0,
) -> Iterator[Result]:
    """Results of a function of many tasks, each a task of Ray, in order, as they come.

    Args:
        function: Called with each task, on any node.
        tasks: What it is called with.
        num_cpus: Of each task.
        num_gpus: Of each task.
        at_once: Tasks that are with Ray at a time; 0 for all.
    """
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3)(function)
    running: deque[Any] = deque()
    for task in tasks:
        if at_once and len(running) >= at_once:
            yield ray.get(running.popleft())
        running.append(remote.remote(task))
    while running:
        yield ray.get(running.popleft())
