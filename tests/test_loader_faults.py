"""The loader on a store that misbehaves: the same images in the same order, and none is skipped."""

import os
import shutil
import ssl
import subprocess
import sys
from contextlib import ExitStack
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest

from data_prep import storage
from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig
from pipeline.order import SampleOrder
from tests.certificates import make_certificate
from tests.fault_proxy import fault_proxy
from tests.file_server import serve_files
from tests.loading import copy_to_server, read, wanted
from tests.small_sets import expected_images, make_dataset

SAMPLES = 64
BATCH = 8
STALL_S = 0.4
SEED = 3


@pytest.fixture(scope="module")
def large_set(tmp_path_factory):
    """URL of 64 images of 32 px, of 2 classes, in 10 shards of which the last is short."""
    folder = tmp_path_factory.mktemp("faults")
    return make_dataset(folder, SAMPLES, side=32, classes=2, samples_per_shard=7)


@pytest.fixture(scope="module")
def images(large_set):
    """Its full level [n, c, h, w], as webdataset reads it."""
    return expected_images(large_set, 32)


@pytest.fixture(scope="module")
def s3_set(large_set, s3_server):
    """The same on S3."""
    return copy_to_server(large_set, s3_server, "faults")


@pytest.fixture
def behind_proxy(large_set, request, monkeypatch):
    """The data set behind a proxy without faults: its URL there, and the proxy."""
    with ExitStack() as stack:

        def serve(transport):
            if transport == "http":
                files = stack.enter_context(serve_files(storage.local_path(large_set)))
                address = urlsplit(files.url)
                proxy = stack.enter_context(fault_proxy(address.hostname, address.port))
                return proxy.url, proxy
            url, s3 = request.getfixturevalue("s3_set"), request.getfixturevalue("s3")
            address = urlsplit(s3.server.endpoint)
            proxy = stack.enter_context(fault_proxy(address.hostname, address.port))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            clear = fsspec.get_filesystem_class("s3").clear_instance_cache
            clear()  # clients stay with the endpoint they began with
            stack.callback(clear)
            return url, proxy

        yield serve


def assert_whole(url, images, *, workers=1, held=False, **options):
    """All workers together show an epoch, and the begin of the next, in the order of the run."""
    order = SampleOrder(SAMPLES, SEED)
    batches = np.arange(SAMPLES + BATCH).reshape(-1, BATCH)
    shown = np.full(batches.shape, -1)
    manifest = Manifest.load(url)
    for rank in range(workers):
        config = LoaderConfig(
            **{
                "cache_bytes": 0,
                "held_resolution": 64 if held else 0,
                "decoded_bytes": 0,
                "threads": 8,
                "stall_s": STALL_S,
                **options,
            }
        )
        loader = Loader(url, manifest, order, config=config)
        requests = (wanted(batch[rank::workers], 32) for batch in batches)
        for row, batch in zip(shown, loader.stream(requests), strict=True):
            row[rank::workers] = batch.sample_ids
            np.testing.assert_array_equal(batch.images, images[batch.sample_ids])
            # Images are sorted by class: 32 of each.
            np.testing.assert_array_equal(batch.labels.argmax(1), batch.sample_ids // 32)
        assert loader.bad_samples == {}
    np.testing.assert_array_equal(shown, order.samples_at(batches.ravel()).reshape(shown.shape))


FAULTS = {
    "5 % of 503": {"503": 0.05},
    "truncated": {"truncated": 0.1, "short": 0.05},
    "stall": {"stall": 0.02, "stall in body": 0.02},
    "reset": {"reset": 0.05, "reset in body": 0.05},
}


@pytest.mark.parametrize("transport", ["http", "s3"])
@pytest.mark.parametrize("kind", FAULTS)
def test_no_fault_of_the_store_changes_what_is_shown(kind, transport, images, behind_proxy):
    """A stall is three times as long as the patience; 45 s where the patience is 15."""
    url, proxy = behind_proxy(transport)
    proxy.stall_s = 3 * STALL_S
    proxy.shares = FAULTS[kind]

    assert_whole(url, images, workers=2)

    assert all(proxy.injected[name] for name in FAULTS[kind]), proxy.injected


@pytest.mark.parametrize("transport", ["http", "s3"])
def test_shards_that_are_fetched_whole_arrive_whole_through_all_faults(
    transport, images, behind_proxy, tmp_path
):
    url, proxy = behind_proxy(transport)
    proxy.stall_s = 3 * STALL_S
    proxy.shares = {name: 0.03 for shares in FAULTS.values() for name in shares}

    assert_whole(url, images, workers=2, held=True, cache_bytes=10**8, cache_dir=tmp_path / "cache")

    assert sum(proxy.injected.values()) - proxy.injected[""] > 3, proxy.injected


@pytest.mark.parametrize("transport", ["http", "s3"])
def test_a_silence_shorter_than_the_patience_is_waited_out(transport, images, behind_proxy, caplog):
    """Two thirds of it, as 10 s are of 15."""
    url, proxy = behind_proxy(transport)
    manifest = Manifest.load(url)
    config = LoaderConfig(cache_bytes=0, held_resolution=0, stall_s=3, threads=1)
    loader = Loader(url, manifest, SampleOrder(SAMPLES, SEED), config=config)
    read(loader, wanted([0], 32))
    proxy.stall_s, proxy.shares = 2.0, {"stall in body": 1.0}
    proxy.faults_left = 1

    (batch,) = read(loader, wanted([5], 32))

    np.testing.assert_array_equal(batch.images, images[batch.sample_ids])
    assert proxy.injected["stall in body"] == 1
    assert "again in" not in caplog.text


@pytest.mark.parametrize("transport", ["http", "s3"])
def test_a_store_that_fails_for_longer_than_the_retries_ends_the_run_with_url_and_key(
    transport, large_set, behind_proxy
):
    url, proxy = behind_proxy(transport)
    config = LoaderConfig(cache_bytes=0, held_resolution=0, retries=1)
    loader = Loader(url, Manifest.load(url), SampleOrder(SAMPLES, SEED), config=config)
    proxy.shares = {"503": 1.0}

    with pytest.raises(storage.StorageError, match=rf"sample \d{{9}}: cannot .* {url}/.*attempts"):
        read(loader, wanted(range(BATCH), 32))


# Credentials.


@pytest.fixture
def credentials_file(s3, monkeypatch, tmp_path):
    """Where S3 clients of this process find keys, and a function that writes one there."""
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    keys = s3.environment["AWS_ACCESS_KEY_ID"], s3.environment["AWS_SECRET_ACCESS_KEY"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def write(key, secret):
        path.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")

    write(*keys)
    return write


def test_a_credential_that_expires_in_mid_run_is_renewed(
    images, behind_proxy, s3_server, credentials_file
):
    """Whoever renews it comes a moment late, when reads are refused already."""
    url, proxy = behind_proxy("s3")
    proxy.expires_after = 40
    proxy.on_expiry = lambda: credentials_file(*s3_server.renewed_key)

    assert_whole(url, images)

    assert proxy.injected["expired"] > 0
    assert proxy.keys == {s3_server.environment["AWS_ACCESS_KEY_ID"], s3_server.renewed_key[0]}


def test_a_credential_that_is_not_renewed_ends_the_run(behind_proxy, credentials_file):
    url, proxy = behind_proxy("s3")
    proxy.expires_after = 5
    config = LoaderConfig(cache_bytes=0, held_resolution=0, retries=2)
    loader = Loader(url, Manifest.load(url), SampleOrder(SAMPLES, SEED), config=config)

    with pytest.raises(storage.StorageError, match=f"cannot .* {url}/.*(expired|Bad Request)"):
        read(loader, wanted(range(BATCH), 32))


# https, and a disk without room, in processes of their own.

READ = """
import sys
from pathlib import Path
import numpy as np
from data_prep.manifest import Manifest
from pipeline.loader import Loader, LoaderConfig, Request
from pipeline.order import SampleOrder
url, cache, seed, *held = sys.argv[1:]
for held_resolution in map(int, held):
    config = LoaderConfig(cache_dir=Path(cache), held_resolution=held_resolution)
    loader = Loader(url, Manifest.load(url), SampleOrder(64, int(seed)), config=config)
    for batch in loader.stream(Request(level_resolution=32, positions=part)
                               for part in np.arange(64).reshape(-1, 8)):
        for sample, image in zip(batch.sample_ids, batch.images):
            print(sample, image.sum().item())
"""


def _read_in_a_process(url, cache, *, held=(0,), environment=None, wrapper=()):
    return subprocess.run(
        [*wrapper, sys.executable, "-c", READ, url, str(cache), str(SEED), *map(str, held)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def _expected_output(images):
    samples = SampleOrder(SAMPLES, SEED).samples_at(np.arange(SAMPLES))
    return [f"{sample} {images[sample].sum(dtype=np.int64)}" for sample in samples]


def test_https_with_an_authority_of_ones_own_and_faults(large_set, images, tmp_path):
    certificate = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.server)
    with serve_files(storage.local_path(large_set)) as files:
        address = urlsplit(files.url)
        with fault_proxy(address.hostname, address.port, tls=tls) as proxy:
            proxy.shares = {"503": 0.05, "truncated": 0.05, "reset in body": 0.05}
            known = {"SSL_CERT_FILE": str(certificate.authority)}
            result = _read_in_a_process(proxy.url, tmp_path / "cache", environment=known)

            proxy.shares = {}
            look = "import sys; from data_prep import storage; storage.size_bytes(sys.argv[1])"
            refused = subprocess.run(
                [sys.executable, "-c", look, f"{proxy.url}/manifest.json"],
                capture_output=True,
                text=True,
                check=False,
            )

    assert proxy.url.startswith("https://")
    assert result.stdout.splitlines() == _expected_output(images), result.stderr
    assert sum(proxy.injected.values()) > proxy.injected[""]
    # Who is not trusted today will not be in half a minute.
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr.splitlines()[-1]
    assert "again in" not in refused.stderr


SMALL_DISK = ("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"')


def _may_mount(folder):
    if shutil.which("unshare") is None:
        return False
    command = [*SMALL_DISK, str(folder), "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_fills_up_in_mid_run_changes_nothing_that_is_shown(large_set, images, tmp_path):
    """A real file system of 64 KB, of which the level needs four times as much."""
    cache = tmp_path / "cache"
    cache.mkdir()
    if not _may_mount(cache):
        pytest.skip("nobody may mount a tmpfs here; test_loader_streams limits files instead")

    with serve_files(storage.local_path(large_set)) as files:
        result = _read_in_a_process(
            files.url, cache, held=(0, 64), wrapper=(*SMALL_DISK, str(cache))
        )

    assert result.stdout.splitlines() == _expected_output(images) * 2, result.stderr
    assert result.stderr.count("no longer caching in") == 2
    assert result.stderr.count("No space left on device") == 2
