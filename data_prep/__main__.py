"""Make a data set: `python -m data_prep shard SOURCE DEST --resolution 64`.

Try it on any folder of pictures:

    python -m data_prep shard ~/Pictures data/pictures --resolution 64 --max-bad 10
    tar tf data/pictures/64/000000.tar

DEST is a folder or a URL such as s3://bucket/pictures (credentials from AWS_* variables).
Killed? Run the same command again. Before and after, look at the images and verify what was made:

    python -m data_prep doctor ~/Pictures --resolution 64 --sheet suspicious.png
    python -m data_prep check data/pictures --json report.json

Exit codes: 0 done and nothing wrong, 1 failed on the way, 2 wrong request, 3 more unusable images
than --max-bad, or errors were found.
"""

# ruff: noqa: T201 (a command line prints)

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_prep.check import check
from data_prep.doctor import DoctorConfig, examine
from data_prep.image_options import add_image_options, image_config
from data_prep.job import JobReport, TooManyBadError, run_job
from data_prep.job_config import JobConfig
from data_prep.report import Report
from data_prep.sources import printable
from data_prep.storage import StorageError
from data_prep.workers import LostWorkersError, Progress

SHOWN_NAMES = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    run = {"shard": _shard, "check": _check, "doctor": _doctor}[options.command]
    try:
        return run(options)
    except TooManyBadError as err:
        _print_bad(err.bad)
        return _fail(3, str(err))
    except ValueError as err:
        return _fail(2, str(err))
    except LostWorkersError as err:
        return _fail(1, str(err))
    except (StorageError, OSError) as err:
        return _fail(1, f"{err}; run the same command again to go on")
    except KeyboardInterrupt:
        _fail(130, "stopped; run the same command again to go on")
        os._exit(130)  # not waiting for shards in the making; workers end with this process


def _shard(options: argparse.Namespace) -> int:
    config = _config(options)
    with _progress() as progress:
        report = run_job(config, progress)
    _print_report(config, report)
    return 0


def _check(options: argparse.Namespace) -> int:
    with _progress() as progress:
        report = check(options.url, progress, workers=options.workers)
    return _show(report, options)


def _doctor(options: argparse.Namespace) -> int:
    sized = options.resolution is not None or options.size is not None
    config = DoctorConfig(
        sources=_sources(options),
        image=image_config(options) if sized else None,
        include=options.include,
        labels=options.labels,
        landmarks=options.landmarks,
        workers=options.workers,
    )
    with _progress() as progress:
        report = examine(config, progress)
    return _show(report, options)


def _show(report: Report, options: argparse.Namespace) -> int:
    """Print or write a report; 3 if there are errors in it."""
    from rich.console import Console

    if options.json == "-":
        print(report.to_json(), end="")
    else:
        report.show(Console(width=80))
        if options.json:
            Path(options.json).write_text(report.to_json())
    sheet = report.sheet() if options.sheet else None
    if sheet is not None:
        sheet.save(options.sheet, "PNG")
    return 3 if report.count("error") else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shard = commands.add_parser("shard", help="images -> an indexed WebDataset with all levels")
    _add_source_options(shard)
    shard.add_argument("dest", help="folder or URL of the data set")
    add_image_options(shard)
    _add_workers(shard, ", or all CPUs of the cluster")
    shard.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        default="",
        metavar="ADDRESS",
        help="let tasks of a Ray cluster make the shards; without ADDRESS that of the job or of "
        "RAY_ADDRESS, else a local Ray",
    )
    shard.add_argument(
        "--samples-per-shard", type=int, default=0, help="default 1024 up to 256 px, 256 above"
    )
    shard.add_argument(
        "--max-bad", type=int, default=0, help="unusable images that may be left out (default 0)"
    )
    shard.add_argument("--name", default="", help="default: last component of DEST")
    check_set = commands.add_parser("check", help="verify a data set down to every pixel")
    check_set.add_argument("url", help="folder or URL of the data set")
    doctor = commands.add_parser(
        "doctor", help="look at images before they are sharded, with the options of shard"
    )
    _add_source_options(doctor)
    add_image_options(doctor, size_required=False)
    for examining in (check_set, doctor):
        _add_workers(examining)
        examining.add_argument(
            "--json", metavar="FILE", help="machine-readable report; - prints it and nothing else"
        )
        examining.add_argument(
            "--sheet", metavar="FILE", help="PNG with thumbnails of what is suspicious"
        )
    return parser


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help="folder, zip, tar, WebDataset ({000..122}.tar), LMDB, official TFRecords, FFHQ or "
        "data set; paths or URLs; several become one",
    )
    parser.add_argument(
        "--include", default="", metavar="PATTERN", help="only images whose path matches 'a/*.png'"
    )
    parser.add_argument(
        "--labels",
        default="none",
        metavar="none|folder|source|FILE",
        help="folder: the first folder of each path is its class; source: what comes with the "
        "images (dataset.json, .cls, .json, TFRecords); FILE: .csv, .tsv, .txt, .parquet, .json, "
        "or FILE#column,column",
    )


def _add_workers(parser: argparse.ArgumentParser, other_default: str = "") -> None:
    parser.add_argument(
        "--workers",
        type=int,
        help=f"the result does not depend on it (default: all cores{other_default})",
    )


def _sources(options: argparse.Namespace) -> tuple[str, ...]:
    if not all(source.strip() for source in options.source):
        raise ValueError("SOURCE is empty; name a folder, an archive or a URL")
    return tuple(options.source)


def _config(options: argparse.Namespace) -> JobConfig:
    return JobConfig(
        source=_sources(options),
        include=options.include,
        dest=options.dest,
        image=image_config(options),
        landmarks=options.landmarks,
        name=options.name,
        samples_per_shard=options.samples_per_shard,
        workers=options.workers,
        ray=options.ray,
        labels=options.labels,
        max_bad=options.max_bad,
    )


def _fail(code: int, message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return code


@contextmanager
def _progress() -> Iterator[Progress]:
    """A moving bar on a terminal, a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images, left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task("listing", total=None)
        yield lambda done, total, what: bar.update(
            row, completed=done, total=total, description=what
        )


def _lines(every_s: float = 5.0) -> Progress:
    last_s = start_s = time.monotonic()

    def show(done: int, total: int, what: str) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= every_s or done == total:
            last_s = now_s
            rate = done / max(now_s - start_s, 1e-9)
            print(f"{what}: {done} of {total} images, {rate:.0f}/s", file=sys.stderr, flush=True)

    return show


def _print_bad(bad: dict[str, str]) -> None:
    for name in sorted(bad)[:SHOWN_NAMES]:
        print(f"unusable: {printable(name)}: {printable(bad[name])}", file=sys.stderr)
    if len(bad) > SHOWN_NAMES:
        print(f"… and {len(bad) - SHOWN_NAMES} more in quarantine.json", file=sys.stderr)


def _print_report(config: JobConfig, report: JobReport) -> None:
    manifest = report.manifest
    if report.already_complete:
        print(
            f"{config.dest} is complete: {manifest.samples} samples, digest {manifest.digest}; "
            f"nothing to do"
        )
        return
    if report.bad:
        _print_bad(report.bad)
        print(f"{len(report.bad)} unusable images left out, see {config.dest}/quarantine.json")
    if report.enlarged:
        print(f"{report.enlarged} images were smaller than {manifest.resolution} px: enlarged")
    if report.ignored:
        print(f"{report.ignored} files are no images by their suffix: ignored")
    if report.reused_shards:
        print(f"{report.reused_shards} shards were complete from an earlier run")
    for level in manifest.levels:
        mib = level.bytes / 2**20
        print(f"{level.resolution:5d} px  {level.encoding:4}  {mib:10.1f} MiB")
    print(
        f"{config.dest}: {manifest.samples} samples in {manifest.num_shards} shards per level, "
        f"{report.seconds:.1f} s ({manifest.samples / max(report.seconds, 1e-9):.0f} images/s)"
    )
    print(f"digest {manifest.digest}")


if __name__ == "__main__":
    sys.exit(main())
