"""What the loader reads of a store, counted there; and who else can read the same tars."""

import io
import json
import subprocess
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest
import webdataset
import wids
from PIL import Image

from data_prep.manifest import Manifest, shard_url
from pipeline import config as configs
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.minibatches import minibatches
from pipeline.order import SampleOrder
from stylegan.schedule import ScheduleConfig
from stylegan.split import Split
from tests.fault_proxy import fault_proxy
from tests.file_server import serve_files
from tests.loading import copy_to_server, wanted
from tests.small_sets import expected_images, image_array, make_dataset

SAMPLES = 50
FULL = 128
MOST = 1.05


@pytest.fixture(scope="module")
def wide_set(tmp_path_factory):
    """URL of 50 images of 128 px, of 2 classes, in 8 shards of which the last is short."""
    folder = tmp_path_factory.mktemp("bytes")
    return make_dataset(folder, SAMPLES, side=FULL, classes=2, samples_per_shard=7)


@pytest.fixture(scope="module")
def s3_set(wide_set, s3_server):
    """The same on S3."""
    return copy_to_server(wide_set, s3_server, "bytes")


@pytest.fixture(params=["http", "s3"])
def store(request, wide_set, monkeypatch):
    """URL of the set on a store, and a function that gives what was sent since: bytes by file."""
    if request.param == "http":
        with serve_files(Path(wide_set)) as files:

            def sent():
                found = Counter()
                for path, size in files.reads:
                    found[path] += size
                files.reads.clear()
                return found

            yield files.url, sent
        return
    s3, url = request.getfixturevalue("s3"), request.getfixturevalue("s3_set")
    address = urlsplit(s3.server.endpoint)
    clear = fsspec.get_filesystem_class("s3").clear_instance_cache
    with fault_proxy(address.hostname, address.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        clear()  # clients stay with the endpoint they began with

        def sent():
            found = Counter()
            for path, size in proxy.sent:
                found[path.partition("/bytes/")[2]] += size
            proxy.sent.clear()
            return found

        yield url, sent
    clear()


def _bytes(sent, resolution, suffix):
    return sum(
        size
        for path, size in sent.items()
        if path.startswith(f"{resolution}/") and path.endswith(suffix)
    )


def _epoch(url, resolution, *, node, workers, epoch=0, ranks=None):
    """Sample numbers that these ranks show in one epoch, all on one node."""
    manifest = Manifest.load(url)
    shown = []
    for rank in range(workers) if ranks is None else ranks:
        config = LoaderConfig(cache_dir=node, threads=2)
        loader = Loader(url, manifest, SampleOrder(SAMPLES, 0), config=config)
        batches = np.array_split(np.arange(SAMPLES) + epoch * SAMPLES, 6)
        requests = (wanted(batch[rank::workers], resolution) for batch in batches)
        shown += [batch.sample_ids for batch in loader.stream(requests)]
    return np.concatenate(shown)


def test_a_large_level_is_read_once_an_epoch_by_all_workers_on_their_nodes_together(
    store, tmp_path
):
    """Three nodes, two epochs: images, indices, and the labels of the smallest level."""
    url, sent = store
    level = Manifest.load(url).level(FULL)
    sent()
    for epoch in range(2):
        shown = [
            _epoch(url, FULL, node=tmp_path / str(rank), workers=3, epoch=epoch, ranks=[rank])
            for rank in range(3)
        ]
        read_bytes = sent()

        assert sorted(np.concatenate(shown).tolist()) == list(range(SAMPLES))
        assert 0 < _bytes(read_bytes, FULL, ".tar") <= level.bytes
        del read_bytes["manifest.json"]
        assert sum(read_bytes.values()) <= MOST * level.bytes
        assert {path.partition("/")[0] for path in read_bytes if path.endswith(".tar")} == {"128"}


@pytest.mark.parametrize("resolution", [8, 64])
def test_a_small_level_is_read_once_by_each_node_whatever_the_workers_and_epochs(
    store, tmp_path, resolution
):
    url, sent = store
    level = Manifest.load(url).level(resolution)
    indices = sum(shard.index_bytes for shard in level.shards)
    sent()
    for node in ("a", "b"):
        for epoch in range(3):
            shown = _epoch(url, resolution, node=tmp_path / node, workers=2, epoch=epoch)
            assert sorted(shown.tolist()) == list(range(SAMPLES))

    read_bytes = sent()

    assert _bytes(read_bytes, resolution, ".tar") == 2 * level.bytes
    assert _bytes(read_bytes, resolution, ".json") == 2 * indices
    # With indices and labels, two epochs are enough for the bound to hold on average.
    del read_bytes["manifest.json"]
    assert sum(read_bytes.values()) <= MOST * 2 * 2 * level.bytes
    assert {path.partition("/")[0] for path in read_bytes if path.endswith(".tar")} == {
        str(resolution)
    }


def test_a_growing_run_reads_the_level_of_floor_lod_alone_also_in_a_fade(wide_set, tmp_path):
    """32 to 128 px through two fades; the position carries on over both."""
    schedule = ScheduleConfig(
        first_resolution=32,
        stable_kimg=0.05,
        fade_kimg=0.05,
        total_kimg=0.3,
        table="none",
        batch={32: 10, 64: 6, 128: 4},
        minibatch_repeats=1,
    )
    network = {"resolution": FULL, "D": {"mbstd_group": 1}}
    config = configs.parse(
        {"name": "x", "run_url": "x", "data": {"url": "x"}, "network": network, "schedule": {}}
    )
    run = list(minibatches(replace(config, schedule=schedule), 0))
    fades = {minibatch.phase.resolution for minibatch in run if minibatch.phase.lod % 1}
    assert fades == {64, 128}

    with serve_files(Path(wide_set)) as files:
        manifest = Manifest.load(files.url)
        shown = []
        for rank in range(2):
            requests = [
                Request(
                    level_resolution=minibatch.phase.resolution, positions=minibatch.nimg + part
                )
                for minibatch in run
                for part in Split(world=2, rank=rank, group=1).parts(minibatch.phase.batch)
            ]
            settings = LoaderConfig(cache_dir=tmp_path / str(rank), prefetch=0, threads=1)
            loader = Loader(files.url, manifest, SampleOrder(SAMPLES, 0), config=settings)
            files.reads.clear()
            for request, batch in zip(requests, loader.stream(requests), strict=True):
                read_levels = {path.partition("/")[0] for path in files.read_paths(".tar")}
                assert read_levels <= {str(request.level_resolution)}
                files.reads.clear()
                shown.append(np.stack([request.positions, batch.sample_ids]))

    positions, samples = np.concatenate(shown, axis=1)
    sequence = samples[np.argsort(positions)]
    epochs = sequence[: len(sequence) // SAMPLES * SAMPLES].reshape(-1, SAMPLES)
    assert len(epochs) >= 6
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(SAMPLES), (len(epochs), 1)))


# Who else can read them.


def _urls(url, resolution):
    return [shard_url(url, resolution, number) for number in range(Manifest.load(url).num_shards)]


def test_webdataset_decodes_the_tars_as_they_are(wide_set):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves closing files to Python
        dataset = webdataset.WebDataset(_urls(wide_set, FULL), shardshuffle=False)
        samples = list(dataset.decode("pil"))

    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(SAMPLES)]
    encoding = Manifest.load(wide_set).level(FULL).encoding
    sources = [image_array(2 * i + label, FULL) for label in (0, 1) for i in range(25)]
    for sample, source, label in zip(samples, sources, np.repeat([0, 1], 25), strict=True):
        image = sample[encoding]
        assert isinstance(image, Image.Image)
        np.testing.assert_array_equal(np.asarray(image), source)
        assert sample["cls"] == label


def test_tar_lists_them(wide_set):
    result = subprocess.run(
        ["tar", "tf", shard_url(wide_set, FULL, 7)], capture_output=True, text=True, check=True
    )

    encoding = Manifest.load(wide_set).level(FULL).encoding
    assert result.stdout.split() == [f"000000049.{encoding}", "000000049.cls"]
    assert result.stderr == ""


def test_wids_opens_them_by_a_list_made_of_the_manifest(wide_set, tmp_path):
    """Its format has URL and length of each shard, not the offsets, digests and labels we need."""
    level = Manifest.load(wide_set).level(FULL)
    shards = [
        {"url": url, "nsamples": shard.samples}
        for url, shard in zip(_urls(wide_set, FULL), level.shards, strict=True)
    ]
    index = io.StringIO(json.dumps({"wids_version": 1, "shardlist": shards}))

    dataset = wids.ShardListDataset(index, cache_dir=str(tmp_path), transformations=[])

    assert len(dataset) == SAMPLES
    images = expected_images(wide_set, FULL)
    for number in (0, 6, 7, 49):
        sample = dataset[number]
        assert sample["__key__"] == f"{number:09d}"
        image = np.asarray(Image.open(sample[f".{level.encoding}"]))
        np.testing.assert_array_equal(image.transpose(2, 0, 1), images[number])
        assert sample[".cls"].read() == str(number // 25).encode()
