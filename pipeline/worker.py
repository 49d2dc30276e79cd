"""Train on one process with torch alone: no Ray, no MLflow.

    python -m pipeline.worker --config demo workers=1 schedule.total_kimg=1

On a bare GPU machine, several processes (one per GPU) are started by torchrun:

    torchrun --nproc-per-node 8 -m pipeline.worker --config ffhq-1024 data.url=… run_url=…
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from rich.console import Console

from data_prep.manifest import DigestError
from data_prep.storage import StorageError
from pipeline import config as configs
from pipeline.config import ConfigError
from pipeline.loop import train
from pipeline.progress import display


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.worker",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="preset or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that differ")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        config = configs.load(options.config, [*options.overrides, f"workers={world}"])
        _join(world, cuda=config.device != "cpu" and torch.cuda.is_available())
        console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)
        with display(console) as shown:
            nimg = train(config, observer=shown)
    except ConfigError as err:
        return _fail(2, err)
    except (StorageError, DigestError) as err:
        return _fail(1, err)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    console.print(f"trained to {nimg / 1000:.1f} kimg; checkpoints under {config.run_url}")
    return 0


def _join(world: int, *, cuda: bool) -> None:
    """Join the process group of torchrun, if there is one."""
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")


def _fail(code: int, err: Exception) -> int:
    print(f"error: {err}", file=sys.stderr)  # noqa: T201 (a command line prints)
    return code


if __name__ == "__main__":
    sys.exit(main())
