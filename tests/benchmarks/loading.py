"""Images a second as uint8 batches, from disk and from S3, beside other libraries.

    python -m tests.benchmarks.loading                          # all of it: about 20 minutes
    python -m tests.benchmarks.loading --sides 256 --repeats 1 --stores disk

Each way (`tests.benchmarks.loading_ways`) runs in a process of its own, one after another, in turn
for each repeat; medians are printed, with the lowest and the highest. What it needs it makes: the
images, their forms, and environments with the peers (`tests.benchmarks.peers`), in a cache folder
outside the repository. The store is the S3 server of the tests.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from data_prep import storage
from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from tests.benchmarks.loading_ways import SHARDS, WAYS
from tests.benchmarks.machine import Figures, describe, spread
from tests.benchmarks.peers import FOLDER, run
from tests.benchmarks.photographs import make_photographs
from tests.services import BUCKET, start_s3_server

COUNTS = {32: 8192, 64: 8192, 256: 1024, 1024: 128}
"""Images by their width."""
FORMS = ("ours", "mosaicml", "litdata", "images")


def main() -> None:
    """Print a table for each store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sides", type=int, nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--stores", nargs="+", choices=("disk", "s3"), default=("disk", "s3"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    folders = {side: _prepare(side) for side in args.sides}
    print(describe("torch", "pillow", "webdataset", "s3fs"))
    with tempfile.TemporaryDirectory() as scratch:
        for store in args.stores:
            server = start_s3_server(Path(scratch, "s3")) if store == "s3" else None
            try:
                if server is not None:
                    os.environ.update(server.environment)
                    folders = {side: _upload(folder, side) for side, folder in folders.items()}
                _print_store(store, folders, args.ways, args.repeats)
            finally:
                if server is not None:
                    server.stop()


def _prepare(side: int) -> str:
    """Folder with the images of this width in all forms."""
    count = COUNTS[side]
    folder = FOLDER / f"loading-{side}-{count}"
    images = make_photographs(folder / "images", count, (side, side), "png")
    image = ImageConfig(resolution=side)
    config = JobConfig(
        source=images, dest=str(folder / "ours"), image=image, samples_per_shard=count // SHARDS
    )
    run_job(config, lambda done, total, what: None)
    for form in ("mosaicml", "litdata"):
        dest = folder / form
        if not (dest / "index.json").exists():
            shutil.rmtree(dest, ignore_errors=True)
            run(form, "loading_forms", form, images, dest)
    return str(folder)


def _upload(folder: str, side: int) -> str:
    url = f"s3://{BUCKET}/{side}"
    for form in FORMS:
        for path in Path(folder, form).rglob("*"):
            wanted = form != "ours" or path.parent.name in (form, str(side))
            if path.is_file() and wanted:
                storage.upload(path, f"{url}/{path.relative_to(folder)}")
    return url


def _print_store(store: str, folders: dict[int, str], ways: list[str], repeats: int) -> None:
    print(f"\n**From {store}**\n")
    print("| px | way | first batch, s | resumed, s | first epoch | second | per CPU second |")
    print("|---|---|---|---|---|---|---|")
    for side, url in folders.items():
        figures: dict[str, Figures] = {way: defaultdict(list) for way in ways}
        for _ in range(repeats):
            for way in ways:
                starts = (0,) if way in ("webdataset", "bare") else (0, COUNTS[side] // 2)
                # The limit has no store; its figures are repeated, as the machine may have changed.
                place = url if way != "bare" else str(FOLDER / f"loading-{side}-{COUNTS[side]}")
                for start in starts:
                    for name, value in _measure(way, place, side, start).items():
                        figures[way][name].append(value)
        for way in ways:
            _print_way(side, way, figures[way])


def _print_way(side: int, way: str, figures: Figures) -> None:
    seconds = [spread(figures[name], "{:.2f}") for name in ("first_s", "resumed_s")]
    rates = [spread(figures[name], "{:,.0f}") for name in ("epoch_1", "epoch_2", "per_cpu_s")]
    print(f"| {side} | {way} | {' | '.join(seconds + rates)} |", flush=True)


def _measure(way: str, url: str, side: int, start: int) -> dict[str, float]:
    """What one run in a new process gives."""
    with tempfile.TemporaryDirectory() as scratch:
        return dict(
            json.loads(run(way, "loading_ways", way, url, scratch, COUNTS[side], side, start))
        )


if __name__ == "__main__":
    main()
