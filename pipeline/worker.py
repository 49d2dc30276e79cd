"""Train on one process with torch alone: no Ray, no MLflow.

    python -m pipeline.worker --config demo schedule.total_kimg=1

On a bare GPU machine, several processes (one per GPU) are started by torchrun:

    torchrun --nproc-per-node 8 -m pipeline.worker --config ffhq-1024 data.url=… run_url=…

`workers` is the number of processes. Exit codes: 0 done, 1 failed on the way, 2 wrong request.
"""

import argparse
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from rich.console import Console

from data_prep.manifest import DigestError
from data_prep.storage import StorageError
from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.exits import fail, leave
from pipeline.loader import SampleError
from pipeline.loop import train
from pipeline.minibatches import total_nimg_of
from pipeline.options import ConfigError
from pipeline.preflight import absolute, claimed, preflight
from pipeline.progress import display
from pipeline.pulse import Pulse
from pipeline.signals import stopping_by


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.worker",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        help="preset or YAML file; given again, the next is laid over it",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that differ")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        _run(options.config, options.overrides)
    except (StorageError, DigestError, SampleError) as err:
        return fail(1, err)
    except ValueError as err:
        return fail(2, err)
    except KeyboardInterrupt:
        return fail(130, "stopped; run the same command again to go on")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _run(presets: Sequence[str], overrides: Sequence[str]) -> None:
    """Check everything, then train as one of the processes of torchrun, or alone."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for override in overrides:
        if override.startswith("workers=") and override != f"workers={world}":
            raise ConfigError(
                f"{override}, but {world} process{'es are' if world > 1 else ' is'} here; start as "
                f"many by `torchrun --nproc-per-node N -m pipeline.worker`, or leave it out"
            )
    config = absolute(configs.load(presets, [*overrides, f"workers={world}"]))
    preflight(config)
    with claimed(config) if rank == 0 else nullcontext():
        _join(config, world)
        console = Console(quiet=rank > 0)
        pulse = Pulse(config.watchdog)
        with display(console) as shown, stopping_by(pulse.stop.set):
            shown.say(f"{config.name}: workers={world}")
            nimg = train(config, observer=shown, pulse=pulse)
    console.print(f"trained to {nimg / 1000:.1f} kimg; checkpoints under {config.run_url}")
    if nimg < total_nimg_of(config):
        raise KeyboardInterrupt


def _join(config: TrainConfig, world: int) -> None:
    """Join the process group of torchrun, if there is one."""
    cuda = config.device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world > 1:
        timeout = timedelta(seconds=config.watchdog.collective_s)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    leave(main())
