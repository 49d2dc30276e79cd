"""How good a generator is: FID and KID of a committed checkpoint, with their fingerprints.

    python -m pipeline.evaluate --run runs/demo --num-images 300    # its newest checkpoint
    python -m pipeline.evaluate --checkpoint runs/demo/checkpoints/000-000000064000
    python -m pipeline.evaluate --model models/faces --data data/faces --json

Exit codes: 0 done, 1 failed on the way or a metric was left out, 2 wrong request.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import dataclasses
import json
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_prep.manifest import DigestError
from data_prep.storage import StorageError
from pipeline.checkpoint import Checkpoints
from pipeline.features import Device, Features, Precision
from pipeline.measure import EvaluationConfig, FanOut, Task, evaluate
from pipeline.metric import NETWORKS, MetricResult

__all__ = ["EvaluationConfig", "MetricResult", "evaluate", "main"]

CACHE = "~/.cache/stylegan-pipeline/features"
"""Where features of reals are kept unless another place is named."""
_TASK_BATCHES = 4
"""Batches of one task: what progress is counted in."""
_DEFAULT = EvaluationConfig()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(stderr=True)
    try:
        config = _config(options)
        url = options.checkpoint or options.model or _checkpoint_of(options.run, options.nimg)
        data_url = options.data or _data_of(url, is_model=bool(options.model))
        with _processes(options.workers, console) as fan_out:
            results = evaluate(url, data_url, config, cache_url=options.cache, map=fan_out)
    except (StorageError, DigestError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except ValueError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    if options.json:
        rows = [
            {**dataclasses.asdict(r), "fingerprint_digest": r.fingerprint_digest} for r in results
        ]
        print(json.dumps(rows, indent=1))
    elif results:
        _show(results, Console(soft_wrap=not sys.stdout.isatty(), highlight=False))
    return 0 if len(results) == len(config.metrics) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--checkpoint", metavar="URL", help="a committed checkpoint")
    subject.add_argument("--run", metavar="URL", help="a run: its newest checkpoint, or --nimg")
    subject.add_argument("--model", metavar="DIR", help="folder of a pulled model")
    parser.add_argument("--nimg", type=int, help="images shown at the checkpoint of --run")
    parser.add_argument("--data", metavar="URL", help="real images; default: those of the run")
    parser.add_argument("--metrics", default=",".join(_DEFAULT.metrics), help="default fid,kid")
    for name, of in {
        "num_images": "generated images",
        "num_reals": "real images; 0 for as many, at most all",
        "batch": "images that go through the networks together",
        "seed": "of latents and noise",
        "threads": "of torch in each process",
    }.items():
        default = getattr(_DEFAULT, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, help=f"{of} (default {default})")
    parser.add_argument("--psi", type=float, default=_DEFAULT.psi, help="truncation (default none)")
    parser.add_argument("--mirror", action="store_true", help="flip half of the real images")
    parser.add_argument("--device", choices=get_args(Device), default=_DEFAULT.device)
    parser.add_argument("--precision", choices=get_args(Precision), default=_DEFAULT.precision)
    parser.add_argument("--weights", metavar="URL", default="", help="of the feature networks")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--cache",
        metavar="URL",
        default=CACHE,
        help=f"where features of the real images are kept; '' for nowhere (default {CACHE})",
    )
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    return parser


def _config(options: argparse.Namespace) -> EvaluationConfig:
    if options.nimg is not None and not options.run:
        raise ValueError("--nimg chooses a checkpoint of a run; give it together with --run")
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; choose at least 1")
    metrics = tuple(filter(None, options.metrics.split(",")))
    if not metrics:
        raise ValueError(f"--metrics is empty; choose from {', '.join(NETWORKS)}")
    names = {field.name for field in dataclasses.fields(EvaluationConfig)} - {"metrics", "workers"}
    given = {name: value for name, value in vars(options).items() if name in names}
    config = EvaluationConfig(metrics=metrics, **given)
    batches = -(-config.num_images // config.batch)
    return dataclasses.replace(config, workers=max(options.workers, batches // _TASK_BATCHES))


def _checkpoint_of(run_url: str, nimg: int | None) -> str:
    committed = Checkpoints(run_url).list()
    if not committed:
        raise ValueError(f"nothing was committed under {run_url}; give the run_url of a training")
    found = [checkpoint for checkpoint in committed if nimg in (None, checkpoint.nimg)]
    if not found:
        there = ", ".join(str(checkpoint.nimg) for checkpoint in committed)
        raise ValueError(f"{run_url} has no checkpoint of nimg {nimg}; choose from {there}")
    return found[-1].url


def _data_of(url: str, *, is_model: bool) -> str:
    """Where the images lie that a checkpoint was trained on."""
    _, scalars = ({}, {}) if is_model else Checkpoints.load(url, ())
    data_url: str = scalars.get("config", {}).get("data", {}).get("url", "")
    if not data_url:
        raise ValueError(f"{url} does not say where its data are; name them with --data")
    return data_url


@contextmanager
def _processes(count: int, console: Console) -> Iterator[FanOut]:
    """Tasks go to so many processes; on a terminal with a bar."""
    pool = None
    if count > 1:
        pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))

    def fan_out(
        function: Callable[[Task], Features], tasks: Sequence[Task], /
    ) -> Iterable[Features]:
        return track(
            pool.map(function, tasks) if pool else map(function, tasks),
            description=function.__name__.replace("_", " "),
            total=len(tasks),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    try:
        yield fan_out
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _show(results: Sequence[MetricResult], console: Console) -> None:
    """The values with their fingerprints, and what they were measured on."""
    rows = [
        (result.name, f"{result.value:.6g}", result.fingerprint_digest[:12], result.note)
        for result in results
    ]
    if console.is_terminal:
        table = Table("metric", "value", "fingerprint", "note")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for row in rows:
            console.print("  ".join(filter(None, row)), markup=False)

    # What is the same for all metrics is said once.
    for key, value in results[0].subject.items():
        console.print(f"  {key}: {value}", markup=False)
    keys = dict.fromkeys(key for result in results for key in result.fingerprint)
    for key in keys:
        values = {r.name: r.fingerprint[key] for r in results if key in r.fingerprint}
        if len(values) == len(results) and len(set(values.values())) == 1:
            values = {"": values[results[0].name]}
        for name, value in values.items():
            console.print(f"  {key}: {value}{f' ({name})' if name else ''}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
