"""A tiny data set and tiny generators to be measured, and tasks on them."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import Manifest
from pipeline import tasks
from pipeline.checkpoint import Checkpoints
from pipeline.evaluate import EvaluationConfig, evaluate
from pipeline.tasks import Extractor, FakesTask, RealsTask
from stylegan import sample
from stylegan.networks.stylegan import Generator, GeneratorConfig
from tests.test_inception import image, real_tensors

RESOLUTION, SAMPLES, CLASSES = 16, 26, 2
SMALL = EvaluationConfig(num_images=10, batch=4, device="cpu")
"""Batches of 4, 4 and 2 images."""
EXTRACTOR = Extractor(
    network="inception-2015-12-05", precision="float32", weights="", device="cpu", threads=1
)


def make_data(folder):
    """URL of a data set of 26 coloured mosaics in two folders."""
    for number in range(SAMPLES):
        path = folder / "images" / "ab"[number % CLASSES] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image(number, RESOLUTION, RESOLUTION).transpose(1, 2, 0)
        Image.fromarray(pixels).save(path)
    config = JobConfig(
        source=folder / "images",
        dest=str(folder / "data"),
        image=ImageConfig(resolution=RESOLUTION),
        labels="folder",
        samples_per_shard=10,
    )
    run_job(config, lambda done, total, what: None)
    return config.dest


def generator(*, seed=1, label_size=0, channels=3, resolution=RESOLUTION, noise=0.3):
    config = GeneratorConfig(
        resolution=resolution,
        channels=channels,
        label_size=label_size,
        fmap_base=64,
        fmap_max=8,
        z_size=8,
        w_size=8,
        mapping_width=8,
    )
    Gs = Generator(config, seed=seed).eval()
    for block in Gs.synthesis.blocks.values():
        for epilogue in (block.epilogue0, block.epilogue1):
            epilogue.noise_strength.data.fill_(noise)
    return Gs


def commit(run_url, Gs, *, data_url="", lod=0.0, nimg=8000):
    """URL of a committed checkpoint of this generator."""
    checkpoints = Checkpoints(str(run_url))
    scalars = {
        "network": sample.describe(Gs.config),
        "lod": lod,
        "data_digest": Manifest.load(data_url).digest if data_url else "",
        "config": {"data": {"url": data_url}},
    }
    tensors = {f"Gs.{name}": tensor for name, tensor in Gs.state_dict().items()}
    future = checkpoints.save(tensors, scalars, nimg=nimg, attempt=0)
    checkpoints.wait()
    return future.result().url


def values(found):
    return {result.name: result.value for result in found}


def random_features(function, tasks):
    """A `map` that answers at once: features of a feature network that sees nothing."""
    rng = np.random.RandomState(len(function.__name__))
    for task in tasks:
        rows = sum(map(len, task.batches))
        yield tuple(rng.rand(rows, 32).astype(np.float32) for _ in task.extractors)


def evaluate_quickly(url, data_url, config=SMALL, **options):
    return evaluate(url, data_url, config, map=random_features, **options)


def reals_task(data, **changes):
    options = {
        "batches": tuple(tasks.plan_batches(10, 4)),
        "batch": 4,
        "extractors": (EXTRACTOR,),
        "data_url": data,
        "data_digest": Manifest.load(data).digest,
        "resolution": RESOLUTION,
        "count": 10,
        "mirror_seed": None,
    }
    return RealsTask(**{**options, **changes})


def fakes_task(url, data, **changes):
    options = vars(reals_task(data)) | {
        "url": url,
        "digest": tasks.open_subject(url).digest,
        "seed": 0,
        "psi": 1.0,
        "cutoff": None,
    }
    del options["count"], options["mirror_seed"]
    return FakesTask(**{**options, **changes})


def source_images(data):
    """All images of the data set by sample number: those of folder a first."""
    numbers = sorted(range(SAMPLES), key=lambda number: (number % CLASSES, number))
    return torch.stack([torch.from_numpy(image(n, RESOLUTION, RESOLUTION)) for n in numbers])


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """URL of the data set."""
    return make_data(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="session")
def run(tmp_path_factory, data):
    """URL of a run with two checkpoints."""
    url = tmp_path_factory.mktemp("run")
    commit(url, generator(seed=2), data_url=data, nimg=4000)
    commit(url, generator(), data_url=data, nimg=8000)
    return str(url)


@pytest.fixture(scope="session")
def checkpoint(run):
    """URL of the newest one."""
    return Checkpoints(run).latest().url


@pytest.fixture(scope="session")
def inception():
    """Its weights."""
    return real_tensors()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """URL of kept features."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def results(checkpoint, data, cache, inception):
    """FID and KID by one worker, in this process; features of the reals are in `cache` now."""
    return evaluate(checkpoint, data, SMALL, cache_url=cache)
