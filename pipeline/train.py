r"""Train, evaluate and register a generator: the driver of a run.

    python pipeline/train.py --config demo
    ray job submit --working-dir . -- python pipeline/train.py --config ffhq-256 \
        data.url=s3://bucket/ffhq run_url=s3://bucket/runs/ffhq-256

The same command again goes on from the newest checkpoint. `--dry-run` shows the configuration, the
schedule and the networks, and stops. Exit codes: 0 done, 1 failed on the way, 2 wrong request.
"""

# ruff: noqa: E402 (imports work only once the path is right)

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a file from anywhere: siblings are imported as a package, never as top-level modules.
    sys.path[0] = str(ROOT)

import argparse
import logging
import signal
from collections.abc import Sequence

from rich.console import Console

from data_prep import ray_start
from data_prep.manifest import DigestError
from pipeline import config as configs
from pipeline.exits import fail
from pipeline.mlflow_client import TrackingError
from pipeline.registry import RegistryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(highlight=False, soft_wrap=True)
    try:
        config = configs.load(options.config, options.overrides)
        if options.dry_run:
            from pipeline.summary import show

            show(config, Console(width=None if console.is_terminal else 100))
            return 0
        ray_start.prepare()
        from pipeline.driver import Driver

        Driver(config, console).run()
    except (OSError, TrackingError, DigestError, RegistryError, RuntimeError) as err:
        return fail(1, err)
    except ValueError as err:
        return fail(2, err)
    except KeyboardInterrupt:
        return fail(130, "stopped; run the same command again to go on")
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = argparse.ArgumentParser(
        prog="python pipeline/train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--config",
        required=True,
        action="append",
        help="preset or YAML file; given again, the next is laid over it",
    )
    found.add_argument("--dry-run", action="store_true", help="show what would be run, and stop")
    found.add_argument("overrides", nargs="*", metavar="key=value", help="options that differ")
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
