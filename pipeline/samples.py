"""The grid of generated images that goes with every checkpoint."""

import io

import torch

from pipeline.grids import sheet
from stylegan.networks.stylegan import Generator
from stylegan.sample import sample

COLUMNS, ROWS = 8, 4
LARGEST_PX = 2048
"""Widest grid; larger images are shown in fewer columns and rows."""


def sample_grid(Gs: Generator, *, lod: float) -> bytes:
    """PNG of images of the same seeds each time, untruncated, at the generator's full size."""
    side = Gs.config.resolution
    columns = max(min(COLUMNS, LARGEST_PX // side), 1)
    rows = max(columns * ROWS // COLUMNS, 1)
    with torch.no_grad():
        images = sample(Gs, seeds=range(rows * columns), psi=1.0, lod=lod)
    buffer = io.BytesIO()
    sheet(images, columns=columns).save(buffer, "PNG")
    return buffer.getvalue()
