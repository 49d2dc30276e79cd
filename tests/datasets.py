"""Small data sets of drawn images, made by the real sharding job."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import Manifest


def draw_images(folder: Path, count: int, side: int) -> Path:
    """PNGs of coloured discs on coloured ground, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:side, 0:side] / side
    for number in range(count):
        ground, disc = rng.integers(0, 256, (2, 3))
        centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.35)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        pixels = np.where(inside[:, :, None], disc, ground).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
    return folder


def make_data_set(source: Path, dest: str, resolution: int, **options: object) -> Manifest:
    """Shard `source` to `dest`."""
    config = JobConfig(
        source=source, dest=dest, image=ImageConfig(resolution=resolution), **options
    )
    return run_job(config, lambda done, total, what: None).manifest


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """50 images of 16 px in four shards."""
    folder = tmp_path_factory.mktemp("tiny")
    source = draw_images(folder / "images", 50, 16)
    make_data_set(source, str(folder / "data"), 16, samples_per_shard=16)
    return str(folder / "data")
