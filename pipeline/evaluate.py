r"""How good a generator is: metrics of a committed checkpoint, with their fingerprints.

    python -m pipeline.evaluate --run runs/demo --num-images 300    # its newest checkpoint
    python -m pipeline.evaluate --checkpoint runs/demo/checkpoints/000-000000064000
    python -m pipeline.evaluate --model models/faces --data data/faces --json
    python -m pipeline.evaluate --model models:/faces@champion --data s3://bucket/faces \
        --metrics fid50k,kid50k,pr50k,ppl_wend --ray auto --workers 8
    python -m pipeline.evaluate compare runs/a runs/b               # like for like, or refused

Metrics: fid kid pr (precision, recall) dc (density, coverage) is swd msssim ppl_zfull ppl_zend
ppl_wfull ppl_wend ls (linear separability). A number behind the name is that of images, else it is
--num-images: fid50k. fid_mix2 to fid_mix4 mix latents; pr_vgg16 and dc_vgg16 take VGG16's features.
What a metric lacks it says in one line; `python -m pipeline.weights list` says it beforehand.

An evaluation that was stopped goes on when the same command is run again. Values of a checkpoint go
into its run: RUN_URL/values, and its curves in MLflow. --pictures FOLDER draws them and the real
images nearest to generated ones. Exit codes: 0 done, 1 failed on the way, a
metric was left out, or values that cannot be compared, 2 wrong request.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import dataclasses
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_prep import ray_start
from data_prep.manifest import DigestError
from data_prep.storage import StorageError
from pipeline import registry, values
from pipeline.checkpoint import Checkpoints
from pipeline.evaluation_config import EvaluationConfig
from pipeline.exits import fail
from pipeline.measure import evaluate
from pipeline.metric import NETWORKS, MetricResult
from pipeline.mlflow_client import TrackingError
from pipeline.registry import RegistryError, add_uri, choose_uri
from pipeline.sampler import FanOut, Task
from pipeline.tasks import Device, Outputs, Precision

__all__ = ["EvaluationConfig", "MetricResult", "evaluate", "main"]

CACHE = "~/.cache/stylegan-pipeline/features"
"""Where features of reals are kept unless another place is named."""
_LINE_EVERY_S = 30.0
"""Between lines of progress where there is no terminal."""
_DEFAULT = EvaluationConfig()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        return compare(arguments[1:])
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(stderr=True)
    try:
        config = config_of(options)
        with _subject(options) as url, _tasks(options, console) as fan_out:
            data_url = options.data or _data_of(url, is_model=bool(options.model))
            results = evaluate(url, data_url, config, cache_url=options.cache, map=fan_out)
            if not options.model:
                _keep(url, results)
            if options.pictures:
                _draw(url, data_url, config, options, fan_out)
    except (OSError, DigestError, TrackingError, RegistryError) as err:
        return fail(1, err)
    except ValueError as err:
        return fail(2, err)
    if options.json:
        rows = [
            {**dataclasses.asdict(r), "fingerprint_digest": r.fingerprint_digest} for r in results
        ]
        print(json.dumps(rows, indent=1))
    elif results:
        _show(results, Console(soft_wrap=not sys.stdout.isatty(), highlight=False))
    missing = {metric.names[0] for metric in config.wanted} - {result.name for result in results}
    return 1 if missing else 0


def compare(arguments: Sequence[str]) -> int:
    """Run `compare`; the exit code is 1 where fingerprints do not allow it."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate compare",
        description="Values of two generators side by side, where they were measured alike.",
    )
    what = "a run (its newest values), a checkpoint, a pulled model, or a file of --json"
    for name in ("A", "B"):
        parser.add_argument(name, help=what)
    options = parser.parse_args(arguments)
    try:
        found = values.pairs(values.read(options.A), values.read(options.B))
    except (StorageError, DigestError) as err:
        return fail(1, err)
    except ValueError as err:
        return fail(2, err)
    if not found:
        return fail(1, f"{options.A} and {options.B} have no metric in common")
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    rows = [
        (
            pair.a.name,
            f"{pair.a.value:.6g}",
            f"{pair.b.value:.6g}",
            "not comparable" if pair.differences else f"{pair.b.value - pair.a.value:+.6g}",
        )
        for pair in found
    ]
    _print_rows(("metric", options.A, options.B, "difference"), rows, console)
    refused = [pair for pair in found if pair.differences]
    for pair in refused:
        print(f"error: {pair.a.name} was measured in two ways:", file=sys.stderr)
        for line in pair.differences:
            print(f"  {line}", file=sys.stderr)
    return 1 if refused else 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--checkpoint", metavar="URL", help="a committed checkpoint")
    subject.add_argument("--run", metavar="URL", help="a run: its newest checkpoint, or --nimg")
    subject.add_argument(
        "--model", metavar="DIR", help="folder of a pulled model, or models:/NAME@ALIAS"
    )
    add_uri(parser)
    parser.add_argument("--nimg", type=int, help="images shown at the checkpoint of --run")
    parser.add_argument("--data", metavar="URL", help="real images; default: those of the run")
    parser.add_argument(
        "--metrics", default=",".join(_DEFAULT.metrics), help="names, see above; default fid,kid"
    )
    for name, of in {
        "num_images": "generated images of metrics without a number",
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
    parser.add_argument(
        "--no-crop",
        dest="crop",
        action="store_false",
        help="path lengths look at whole images, not at the middle, where faces are",
    )
    parser.add_argument(
        "--device",
        choices=get_args(Device),
        default=_DEFAULT.device,
        help="what the networks run on (default auto: a GPU where there is one)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default=_DEFAULT.precision,
        help="of Inception and VGG16 (default float32); bfloat16 moves features by 1-2 %%",
    )
    parser.add_argument("--weights", metavar="URL", default="", help="of the feature networks")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        default="",
        help="workers are tasks of this cluster, each with a CPU, and a GPU where there are some; "
        "auto: that of the job, else a local one (default: processes of this machine)",
    )
    parser.add_argument(
        "--cache",
        metavar="URL",
        default=CACHE,
        help=f"where features of the real images are kept; '' for nowhere (default {CACHE})",
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="draw the run's metrics and what each fake is nearest to, and put it into the run",
    )
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    return parser


def config_of(options: argparse.Namespace) -> EvaluationConfig:
    """What its options ask for.

    Raises:
        ValueError: They do not fit together.
    """
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
    return dataclasses.replace(config, workers=options.workers)


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
def _subject(options: argparse.Namespace) -> Iterator[str]:
    """URL of what is measured; a registered model is pulled for the time."""
    if not (options.model or "").startswith("models:/"):
        yield options.checkpoint or options.model or _checkpoint_of(options.run, options.nimg)
        return
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        uri = choose_uri(options.tracking_uri)
        yield str(registry.pull(options.model, Path(folder, "model"), uri=uri))


def _keep(url: str, results: Sequence[MetricResult]) -> None:
    """Put values into their run; what does not work costs a line, not the values."""
    try:
        values.keep(url, results)
    except (StorageError, TrackingError, ValueError) as err:
        print(f"warning: the values are not in their run: {err}", file=sys.stderr)


def _draw(
    url: str,
    data_url: str,
    config: EvaluationConfig,
    options: argparse.Namespace,
    fan_out: FanOut,
) -> None:
    """Write pictures and say where; a run that does not take them costs a line."""
    # Late, because drawing is seldom asked for and costs a second.
    from pipeline import pictures

    drawn = pictures.draw(url, data_url, config, cache_url=options.cache, map=fan_out)
    try:
        pictures.keep(drawn, url, options.pictures)
    except (StorageError, TrackingError) as err:
        print(f"warning: the pictures are not in their run: {err}", file=sys.stderr)
    for name in drawn:
        print(Path(options.pictures, f"{name}.png"), file=sys.stderr)


@contextmanager
def _tasks(options: argparse.Namespace, console: Console) -> Iterator[FanOut]:
    """Tasks go to processes or to a cluster, with progress and the time that is left."""
    if options.ray:
        ray_start.prepare()
        # Late, because it costs seconds.
        from pipeline import cluster

        ray_start.start_ray(options.ray, workers=options.workers)
        gpus = 1 if options.device != "cpu" and cluster.resource("GPU") else 0

        def compute(
            function: Callable[[Task], Outputs], tasks: Sequence[Task]
        ) -> Iterable[Outputs]:
            return cluster.fan_out(
                function, tasks, num_cpus=1, num_gpus=gpus, at_once=options.workers
            )

        yield _with_progress(compute, console)
        return
    if options.workers == 1:
        yield _with_progress(map, console)
        return
    pool = ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield _with_progress(pool.map, console)
    finally:
        pool.shutdown(cancel_futures=True)


def _with_progress(compute: Callable[..., Iterable[Outputs]], console: Console) -> FanOut:
    """A bar on a terminal, and a line now and then elsewhere."""

    def fan_out(function: Callable[[Task], Outputs], tasks: Sequence[Task], /) -> Iterable[Outputs]:
        what = function.__name__.replace("_", " ")
        results = compute(function, tasks)
        if console.is_terminal:
            return track(
                results, description=what, total=len(tasks), console=console, transient=True
            )
        return _with_lines(results, what, len(tasks), console)

    return fan_out


def _with_lines(
    results: Iterable[Outputs], what: str, total: int, console: Console
) -> Iterator[Outputs]:
    begun = shown = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - shown >= _LINE_EVERY_S and done < total:
            shown = now
            left_s = (now - begun) / done * (total - done)
            console.print(f"{what}: {done} of {total} parts, {left_s / 60:.1f} minutes left")


def _print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """A table on a terminal, else a line each."""
    if console.is_terminal:
        table = Table(*heads)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for row in rows:
            console.print("  ".join(filter(None, row)), markup=False)


def _show(results: Sequence[MetricResult], console: Console) -> None:
    """The values with their fingerprints, and what they were measured on."""
    rows = [
        (result.name, f"{result.value:.6g}", result.fingerprint_digest[:12], result.note)
        for result in results
    ]
    _print_rows(("metric", "value", "fingerprint", "note"), rows, console)

    # What is the same for all metrics is said once.
    for key, value in results[0].subject.items():
        console.print(f"  {key}: {value}", markup=False)
    keys = dict.fromkeys(key for result in results for key in result.fingerprint)
    for key in keys:
        names: dict[str, list[str]] = {}
        for result in results:
            if key in result.fingerprint:
                names.setdefault(str(result.fingerprint[key]), []).append(result.name)
        for value, of in names.items():
            whose = f" ({', '.join(of)})" if len(of) < len(results) else ""
            console.print(f"  {key}: {value}{whose}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
