"""The grid of generated images that goes with every checkpoint."""

import io

import torch

from pipeline.grids import sheet
from stylegan.networks.interface import Generator
from stylegan.sample import one_hot, sample

COLUMNS, ROWS = 8, 4
LARGEST_PX = 2048
"""Widest grid; larger images are shown in fewer columns and rows."""


def layout(resolution: int) -> tuple[int, int]:
    """Columns and rows of the grid of a generator whose full size is `resolution` pixels."""
    columns = max(min(COLUMNS, LARGEST_PX // resolution), 1)
    return columns, max(columns * ROWS // COLUMNS, 1)


def sample_grid(Gs: Generator, *, lod: float) -> bytes:
    """PNG of images of the same seeds each time, untruncated, at the generator's full size."""
    columns, rows = layout(Gs.config.resolution)
    seeds = range(rows * columns)
    labels = None
    if Gs.config.label_size:
        # One class after the other.
        classes = torch.arange(len(seeds)) % Gs.config.label_size
        labels = one_hot(classes, Gs.config.label_size)
    images = sample(Gs, seeds=seeds, psi=1.0, lod=lod, labels=labels)
    buffer = io.BytesIO()
    sheet(images, columns=columns).save(buffer, "PNG")
    return buffer.getvalue()
