"""Shorthand for tests that read a data set with the loader."""

from collections.abc import Iterable

import numpy as np

from data_prep.manifest import Manifest
from pipeline.loader import Batch, Loader, LoaderConfig, Order, Request


class Straight:
    """The order of the data set itself, so that a position tells the sample."""

    def __init__(self, samples: int):
        self.samples = samples

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """Sample numbers at these positions."""
        return positions % self.samples


def open_loader(url: str, order: Order | None = None, **options: object) -> Loader:
    """A loader of this data set."""
    manifest = Manifest.load(url)
    config = LoaderConfig(**{"threads": 2, **options})
    return Loader(url, manifest, order or Straight(manifest.samples), config=config)


def ask(positions: Iterable[int], side: int = 16, labels: Iterable[int] | None = None) -> Request:
    """A request for these positions."""
    return Request(
        level_resolution=side,
        positions=np.array(positions, np.int64),
        label_samples=None if labels is None else np.array(labels, np.int64),
    )


def read(
    url: str, requests: Iterable[Request], order: Order | None = None, **options: object
) -> list[Batch]:
    """All batches of these requests."""
    return list(open_loader(url, order, **options).stream(requests))
