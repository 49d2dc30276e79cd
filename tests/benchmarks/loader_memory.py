"""Resident memory of a process that does nothing but load, after each of ten epochs.

    python -m tests.benchmarks.loader_memory                         # 60,000 images of 32 px
    python -m tests.benchmarks.loader_memory --images 6000 --epochs 3

Four ways to read: small levels held and decoded (as usual), held as files only, image by image from
a web server into the node's cache, and image by image without any cache. Prints a Markdown table;
exits with 1 if memory grows by more than 3 % from the second epoch to the last.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.order import SampleOrder
from tests.file_server import serve_files

BATCH = 64
MOST_GROWTH = 1.03
WAYS = {
    "held and decoded": ("http", {}),
    "held": ("http", {"decoded_bytes": 0}),
    "by image, local": ("local", {"held_resolution": 0}),
    "by image, cached": ("http", {"held_resolution": 0, "threads": 8}),
    "by image, no cache": ("http", {"held_resolution": 0, "threads": 8, "cache_bytes": 0}),
}
"""Where from, and what of `LoaderConfig` differs."""


def main() -> None:
    """Make the data set, measure every way in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--side", type=int, default=32, help="in pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="keep the data set here, and use it again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = _data_set(args.folder or Path(scratch), args.images, args.side)
        heads = ("way", "images/s", "start", *(f"{n + 1}" for n in range(args.epochs)), "growth")
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        with serve_files(data) as files:
            places = {"local": str(data), "http": files.url}
            flat = [
                _print_way(way, places[WAYS[way][0]], Path(scratch, way), args.side, args.epochs)
                for way in args.ways
            ]
    sys.exit(0 if all(flat) else 1)


def _data_set(folder: Path, images: int, side: int) -> Path:
    """Smooth coloured pictures, by the sharding job."""
    data, source = folder / "data", folder / "images"
    if (data / "manifest.json").exists():
        return data
    source.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(source / f"{number:06d}.png")
    config = JobConfig(source=source, dest=str(data), image=ImageConfig(resolution=side))
    run_job(config, lambda done, total, what: None)
    return data


def _print_way(way: str, url: str, cache: Path, side: int, epochs: int) -> bool:
    """Measure in a new process; whether its memory stayed."""
    command = [sys.executable, "-m", __spec__.name, "measure", way, url, cache, side, epochs]
    result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    rate, *mib = json.loads(result.stdout)
    growth = mib[-1] / mib[min(2, epochs)]
    print(f"| {way} | {rate:,.0f} | {' | '.join(f'{size:.0f}' for size in mib)} | {growth:.3f} |")
    return bool(growth < MOST_GROWTH)


def _measure(way: str, url: str, cache: str, side: str, epochs: str) -> None:
    """Print images a second after the first epoch, then MiB at the start and after each epoch."""
    manifest = Manifest.load(url)
    config = LoaderConfig(cache_dir=Path(cache), **WAYS[way][1])
    order = SampleOrder(manifest.samples, 0)
    per_epoch = -(-manifest.samples // BATCH)
    batches = range(per_epoch * int(epochs))
    requests = (
        Request(level_resolution=int(side), positions=np.arange(at * BATCH, (at + 1) * BATCH))
        for at in batches
    )
    mib = [_resident_mib()]
    start_s = time.perf_counter()
    stream = Loader(url, manifest, order, config=config).stream(requests)
    for at, _ in enumerate(stream, 1):
        if at % per_epoch == 0:
            mib.append(_resident_mib())
        if at == per_epoch:
            start_s = time.perf_counter()
    later = (len(batches) - per_epoch) * BATCH
    rate = later / (time.perf_counter() - start_s) if later else 0.0
    print(json.dumps([rate, *mib]))


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        _measure(*sys.argv[2:])
    else:
        main()
