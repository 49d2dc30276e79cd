"""What runs in Ray's processes: the workers of the group, a mailbox, tasks on other machines.

Ray Train places and restarts the group; checkpoints and their retention are ours, so `report` is
never called: a failed upload in Ray's path would end the group.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import torch
import torch.distributed as dist

from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.loop import train
from pipeline.observer import Commit, Tick
from pipeline.options import ConfigError
from pipeline.pulse import Beat, Pulse

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

LASTING = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    NotImplementedError,
    torch.OutOfMemoryError,
)
"""What a restart does not mend: requests that cannot be met, damaged data or images, bugs."""


_BEATS = 8
"""Reports in the time after which a rank counts as silent."""
_LOOK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Message:
    """Something a worker tells the driver."""

    kind: str
    """began, tick, committed, log, beat or failed."""
    content: Any


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the driver wants of a rank, the answer to its report."""

    stop: bool = False
    """Commit and end, at the next opportunity of all ranks."""
    restart: bool = False
    """End now: the group has to be started again."""


class Mailbox:
    """An actor that keeps messages until the driver takes them, and hands out its orders."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stop = False
        self._restart = ""

    def put(self, message: Message) -> None:
        """Add one."""
        self._messages.append(message)

    def take(self) -> list[Message]:
        """All since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def beat(self, beat: Beat) -> Orders:
        """A rank reports what it does."""
        self.put(Message(kind="beat", content=beat))
        return Orders(stop=self._stop, restart=self._restart == beat.group)

    def order_stop(self) -> None:
        """All groups shall commit and end."""
        self._stop = True

    def order_restart(self, group: str) -> None:
        """The processes of this group shall end at once."""
        self._restart = group


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
    least, _ = config.worker_range
    if have < least:
        besides = ", or train on CPUs with device=cpu" if use else ""
        raise ConfigError(
            f"workers is {config.workers}, but the cluster has {have:.0f} {kind}; set "
            f"workers={max(int(have), 1)}, add nodes{besides}"
        )
    return use


def mailbox() -> Any:
    """A new mailbox on the driver's node, with which it may die, and with no other."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return ray.remote(num_cpus=0, label_selector=here)(Mailbox).remote()


def train_worker(payload: Mapping[str, Any]) -> int:
    """Body of each worker of the group: torch's process group is up, the rank is known.

    Returns:
        Images shown.
    """
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
        pulse = Pulse(config.watchdog)
        _watched(pulse, box)
        return train(
            config,
            observer=MailboxObserver(box),
            tracking_run_id=payload["tracking_run_id"],
            pulse=pulse,
        )
    except LASTING as err:
        content = str(err) if isinstance(err, ValueError) else f"{type(err).__name__}: {err}"
        ray.get(box.put.remote(Message(kind="failed", content=content)))
        raise
    finally:
        logging.getLogger().removeHandler(handler)


def _watched(pulse: Pulse, box: Any) -> None:
    """Report to the mailbox from now on, and obey; in threads that end with the process."""
    group = [uuid.uuid4().hex]
    dist.broadcast_object_list(group)
    rank, world, host = dist.get_rank(), dist.get_world_size(), socket.gethostname()

    def beat() -> None:
        while True:
            phase, phase_s, limit_s, nimg = pulse.place()
            collectives, collective = pulse.collective()
            report = Beat(
                group=group[0],
                rank=rank,
                world=world,
                host=host,
                pid=os.getpid(),
                phase=phase,
                phase_s=phase_s,
                limit_s=limit_s,
                nimg=nimg,
                collectives=collectives,
                collective=collective,
            )
            with suppress(ray.exceptions.RayError):  # without a driver there are no orders
                orders = ray.get(box.beat.remote(report), timeout=pulse.config.silent_s)
                if orders.restart:
                    os.kill(os.getpid(), signal.SIGKILL)
                if orders.stop:
                    pulse.stop.set()
            time.sleep(pulse.config.silent_s / _BEATS)

    def heed_preemption() -> None:
        with suppress(ray.exceptions.RayError):
            while ray.train.get_preemption_info() is None:  # a barrier of these threads
                time.sleep(_LOOK_S)
            pulse.stop.set()

    for target in (beat, heed_preemption):
        threading.Thread(target=target, name=target.__name__, daemon=True).start()


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
