"""Run a function on the ranks of a real process group of this machine (gloo)."""

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from pipeline.exits import leave


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_ranks(function: Callable[..., None], world: int, *args: Any) -> None:
    """Call `function(rank, *args)` in `world` new processes and wait for their end."""
    torch.multiprocessing.spawn(_run, args=(function, args), nprocs=world)


def _run(rank: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(rank, *args)
    leave(0)


class ProcessGroup:
    """A gloo group of the first `world` ranks, for the time of a `with`."""

    def __init__(self, rank: int, world: int, port: int) -> None:
        self.arguments = {
            "backend": "gloo",
            "init_method": f"tcp://127.0.0.1:{port}",
            "rank": rank,
            "world_size": world,
        }

    def __enter__(self) -> None:
        dist.init_process_group(**self.arguments)

    def __exit__(self, *_: object) -> None:
        dist.destroy_process_group()
