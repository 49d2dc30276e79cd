"""What all levels take beside the full one: `python -m tests.benchmarks.stored_total FOLDER …`.

Four random crops of each photograph in the folders that is large enough are sharded three times: to
PNGs that the job writes, as optimized PNGs that it keeps as they are, and to WebP.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.images import SUFFIXES, ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import Manifest

CROPS = 4
WAYS = {"png": ("bmp", "png"), "png, optimized and kept": ("png", "png"), "webp": ("bmp", "webp")}
"""Suffix of the sources and encoding of the full level."""


def crops(folders: list[Path], target: Path, resolution: int, suffix: str) -> Path:
    """Squares at random places and scales of every photograph, Lanczos-resized to `resolution`."""
    target.mkdir()
    paths = sorted(path for folder in folders for path in folder.iterdir())
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES]
    for path in paths:
        rng = np.random.default_rng(0)
        photograph = Image.open(path).convert("RGB")
        shortest = min(photograph.size)
        if shortest < max(resolution, 400):
            continue
        for number in range(CROPS):
            side = int(rng.integers(max(resolution, shortest // 2), shortest + 1))
            left = int(rng.integers(0, photograph.width - side + 1))
            top = int(rng.integers(0, photograph.height - side + 1))
            part = photograph.crop((left, top, left + side, top + side))
            part = part.resize((resolution, resolution), Image.Resampling.LANCZOS)
            part.save(target / f"{path.stem}-{number:02d}.{suffix}", optimize=True)
    return target


def total(manifest: Manifest) -> float:
    """Bytes of all tars and indices over those of the full level's tars."""
    indices = sum(shard.index_bytes for level in manifest.levels for shard in level.shards)
    everything = sum(level.bytes for level in manifest.levels) + indices
    return everything / manifest.levels[-1].bytes


def main() -> None:
    """Print the table."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    print("| full level | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for resolution in (64, 128, 256, 512):
        row = [f"{resolution} px"]
        for suffix, encoding in WAYS.values():
            with tempfile.TemporaryDirectory() as scratch:
                source = crops(folders, Path(scratch, "images"), resolution, suffix)
                config = JobConfig(
                    source=source,
                    dest=str(Path(scratch, "data")),
                    image=ImageConfig(resolution=resolution, encoding=encoding),
                    workers=None,
                )
                manifest = run_job(config, lambda done, total, what: None).manifest
                row.append(f"{total(manifest):.3f}")
        print(f"| {' | '.join(row)} | {manifest.samples} images", flush=True)


if __name__ == "__main__":
    main()
