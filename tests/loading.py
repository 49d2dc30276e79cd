"""Fixtures of the loader tests: a labelled data set, copies of it, and loaders."""

import numpy as np
import pytest

from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.order import SampleOrder
from tests.services import BUCKET
from tests.small_sets import copy_to, expected_images, make_dataset

SAMPLES = 23
CLASSES = 3


@pytest.fixture(scope="session")
def original_set(tmp_path_factory):
    """URL of a data set of 23 samples in 5 shards, 4 to 16 px, of 3 classes."""
    return make_dataset(tmp_path_factory.mktemp("set"), SAMPLES, classes=CLASSES)


@pytest.fixture(scope="session")
def level_images(original_set):
    """Images [n, c, h, w] by resolution, as webdataset reads them."""
    return {resolution: expected_images(original_set, resolution) for resolution in (4, 8, 16)}


@pytest.fixture(params=["local", "file", "s3"])
def set_copy(request, original_set, tmp_path):
    """The data set anew: it may be damaged."""
    if request.param == "s3":
        return copy_to(original_set, f"{request.getfixturevalue('s3').url}/set")
    scheme = "file://" if request.param == "file" else ""
    return copy_to(original_set, f"{scheme}{tmp_path}/set")


@pytest.fixture
def make_loader(tmp_path):
    """A loader with a cache of its own; `held` False reads image by image at every level."""

    def make(url, *, held=True, seed=0, **options):
        config = LoaderConfig(
            **{
                "cache_dir": tmp_path / "cache",
                "threads": 2,
                "held_resolution": 64 if held else 0,
                "retries": 1,
                **options,
            }
        )
        manifest = Manifest.load(url)
        return Loader(url, manifest, SampleOrder(manifest.samples, seed), config=config)

    return make


def copy_to_server(url, server, folder):
    """URL of a copy of the data set on an S3 server, for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        return copy_to(url, f"s3://{BUCKET}/{folder}")


def wanted(positions, resolution=16, labels=None):
    """A request."""
    return Request(
        level_resolution=resolution,
        positions=np.asarray(positions, np.int64),
        label_samples=None if labels is None else np.asarray(labels, np.int64),
    )


def read(loader, *requests):
    """The batches that answer these requests."""
    return list(loader.stream(requests))


@pytest.fixture(params=[True, False], ids=["held", "by image"])
def held(request):
    """Whether whole shards are fetched."""
    return request.param
