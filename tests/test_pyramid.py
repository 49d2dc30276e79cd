"""The levels of a data set: those of the official exporter, bit for bit."""

import tarfile
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import Manifest
from data_prep.pyramid import encode, encoding, level_sizes, pyramid, resolutions
from pipeline.loader import Loader, LoaderConfig, decode
from pipeline.order import SampleOrder
from tests.loading import wanted
from tests.small_sets import shard

LANCZOS = Image.Resampling.LANCZOS


def test_a_constant_image_is_constant_at_every_level():
    for level in pyramid(np.full((32, 32, 3), 200, np.uint8)):
        np.testing.assert_array_equal(level, np.full_like(level, 200))


def test_levels_are_rounded_once_half_to_even():
    """A 4 px pixel is the mean of 16: rounding at 8 px as well would give another value."""
    block = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    image = np.tile(block, (4, 4))[:, :, None].repeat(3, axis=2)

    four, eight, _ = pyramid(image)

    assert set(eight[:, :, 0].ravel()) == {0}  # 0.5 and 0, half to even
    assert set(four.ravel()) == {0}  # 0.25
    assert set(pyramid(image + 1)[1][:, :, 0].ravel()) == {1, 2}  # 1.5 goes to 2


@pytest.mark.parametrize("least", [0, 255], ids=["random", "white"])
def test_every_level_is_the_exact_mean_of_the_full_one_rounded_once(least):
    """Six halvings: beyond those that are summed in 16 bits."""
    image = np.random.default_rng(2).integers(least, 256, (256, 512, 3)).astype(np.uint8)

    for level in pyramid(image):
        height, width, _ = level.shape
        blocks = image.reshape(height, 256 // height, width, 512 // width, 3)
        np.testing.assert_array_equal(level, np.rint(blocks.mean(axis=(1, 3))))


def test_lanczos_levels_are_the_full_one_resized_channel_by_channel():
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 4), np.uint8)

    levels = pyramid(image, "lanczos")

    assert [level.shape for level in levels] == [(side, side, 4) for side in (4, 8, 16, 32)]
    for level in levels[:-1]:
        for c in range(4):
            expected = Image.fromarray(image[:, :, c]).resize(level.shape[:2], LANCZOS)
            np.testing.assert_array_equal(level[:, :, c], expected)
    assert levels[-1] is image
    np.testing.assert_array_equal(pyramid(image)[-1], image)
    assert not np.array_equal(pyramid(image)[1], levels[1])


@pytest.mark.parametrize("width", [16, 130], ids=["at once", "by plane"])
@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(suffix, n) for suffix in ("npy", "png", "webp") for n in (1, 3, 4)]
    + [("jpg", 1), ("jpg", 3)],
)
def test_the_loader_decodes_what_was_encoded(suffix, channels, width):
    """Colours under transparent pixels included; only jpg, which has no alpha, loses a little."""
    image = np.random.default_rng(0).integers(0, 256, (6, width, channels), np.uint8)
    image[:2, :, -1] = 0
    if suffix == "jpg":
        image = np.full_like(image, [100, 150, 200][:channels])

    read = np.empty((channels, 6, width), np.uint8)
    decode(encode(image, suffix, quality=100), suffix, read)

    off = np.abs(read.transpose(1, 2, 0).astype(int) - image)
    assert off.max() <= (1 if suffix == "jpg" else 0)
    with pytest.raises(ValueError, match="instead of"):
        decode(encode(image, suffix), suffix, np.empty((channels, 6, width + 1), np.uint8))


def test_small_levels_are_raw_and_the_others_as_chosen():
    config = ImageConfig(resolution=64, encoding="jpg", lower_encoding="png")

    found = {side: encoding((side, side), config) for side in (4, 8, 16, 32, 64)}

    assert found == {4: "npy", 8: "npy", 16: "png", 32: "png", 64: "jpg"}
    assert encoding((8, 6), ImageConfig(resolution=8, height=6)) == "npy"
    huge = ImageConfig(resolution=16384, encoding="webp")
    assert encoding((16384, 16384), huge) == "png", "webp ends at 16383 px"
    assert encoding((8192, 8192), huge) == "webp"


def natural_image(seed: int, side: int) -> Image.Image:
    """Noise with the spectrum 1/f of photographs, the three colours much alike."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    amplitude = 1 / np.maximum(frequency, 1 / side) ** 1.4
    shared, *own = (
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * amplitude) for _ in range(4)
    )
    colours = np.stack([shared + 0.2 * colour for colour in own], axis=-1)
    return Image.fromarray((colours / colours.std() * 50 + 128).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("optimize", [True, False], ids=["kept as they are", "PNGs made here"])
def test_all_lossless_levels_take_no_more_than_1_4_times_the_full_one(optimize, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        image = natural_image(number, 512)
        suffix = "png" if optimize else "bmp"
        image.save(tmp_path / "images" / f"{number}.{suffix}", optimize=optimize)

    manifest = shard(tmp_path / "images", tmp_path / "data", resolution=512).manifest

    assert [level.encoding for level in manifest.levels] == ["npy"] * 2 + ["webp"] * 5 + ["png"]
    total = sum(level.bytes for level in manifest.levels)
    assert total <= 1.4 * manifest.level(512).bytes
    if optimize:
        with tarfile.open(tmp_path / "data/512/000000.tar") as tar:
            files = [tar.extractfile(member).read() for member in tar]
        paths = sorted((tmp_path / "images").iterdir())
        assert files == [path.read_bytes() for path in paths]


def test_a_data_set_of_another_shape_goes_all_the_way_to_the_batches(tmp_path):
    config = ImageConfig(
        resolution=48,
        height=32,
        channels=4,
        alpha="keep",
        encoding="webp",
        lower_encoding="png",
        downsampling="lanczos",
    )
    images = np.random.default_rng(3).integers(0, 256, (5, 32, 48, 4), np.uint8)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    job = JobConfig(source=tmp_path / "images", dest=str(tmp_path / "data"), image=config)

    run_job(job, lambda done, total, what: None)

    manifest = Manifest.load(str(tmp_path / "data"))
    assert (manifest.resolution, manifest.height, manifest.resample) == (48, 32, "lanczos")
    assert [level.size for level in manifest.levels] == [(6, 4), (12, 8), (24, 16), (48, 32)]
    assert [level.encoding for level in manifest.levels] == ["npy", "png", "png", "webp"]
    loader = Loader(str(tmp_path / "data"), manifest, SampleOrder(5, 0), config=LoaderConfig())
    for number, level in enumerate(manifest.levels):
        (batch,) = loader.stream([wanted(range(5), level.resolution)])
        for image, sample in zip(batch.images.numpy(), batch.sample_ids, strict=True):
            expected = pyramid(images[sample], "lanczos")[number]
            np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("width", "height", "first", "count"),
    [(512, 384, (8, 6), 7), (192, 192, (6, 6), 6), (1280, 768, (10, 6), 8), (5, 4, (5, 4), 1)],
)
def test_sizes_are_halved_as_far_as_they_go(width, height, first, count):
    sizes = level_sizes(width, height)

    assert (sizes[0], sizes[-1], len(sizes)) == (first, (width, height), count)
    assert all((2 * w, 2 * h) == above for (w, h), above in pairwise(sizes))


@pytest.mark.parametrize(("width", "height"), [(1000, 1000), (0, 8), (3, 4), (32768, 16384)])
def test_a_size_that_does_not_halve_to_a_small_one_is_refused(width, height):
    with pytest.raises(ValueError, match=f"size {width}x{height} halves to .* choose sides from 4"):
        level_sizes(width, height)


@pytest.mark.parametrize("resolution", [-4, 0, 1, 2, 3, 48, 100, 1000, 2**15, 2**20])
def test_a_resolution_that_is_no_power_of_two_in_the_range_is_refused(resolution):
    with pytest.raises(
        ValueError, match=f"resolution {resolution} is not a power of two from 4 to 16384"
    ):
        resolutions(resolution)


def test_resolutions_go_from_4_px_to_the_full_one():
    assert resolutions(4) == [4]
    assert resolutions(64) == [4, 8, 16, 32, 64]


@pytest.mark.parametrize(("suffix", "most"), [("bmp", 1.4), ("png", 1.42)])
def test_all_lossless_levels_of_photographs_take_at_most_1_4_times_the_full_one(
    suffix, most, tmp_path
):
    """At 256 px, tars and indices; a little more where the sources are optimized PNGs and kept."""
    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        with Image.open(resources.files("sklearn.datasets.images") / f"{name}.jpg") as photograph:
            for number in range(8):
                side = int(rng.integers(300, 428))
                left, top = rng.integers(0, 640 - side), rng.integers(0, 428 - side)
                part = photograph.crop((left, top, left + side, top + side))
                part = part.resize((256, 256), LANCZOS)
                part.save(tmp_path / f"{name}-{number}.{suffix}", optimize=True)

    manifest = shard(tmp_path, tmp_path / "data", resolution=256, samples_per_shard=0).manifest

    shards = [shard for level in manifest.levels for shard in level.shards]
    total = sum(shard.bytes + shard.index_bytes for shard in shards)
    assert manifest.levels[-1].bytes < total <= most * manifest.levels[-1].bytes
