"""Folders of random images, what data_prep makes of them, and how anyone else reads that."""

import gc
import hashlib
import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep import storage
from data_prep.images import ImageConfig
from data_prep.job import JobReport, run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import (
    Manifest,
    ShardIndex,
    index_url,
    manifest_url,
    sample_digest,
    shard_url,
)
from data_prep.storage import local_path


def image_array(seed: int, side: int = 16) -> np.ndarray:
    """A random uint8 RGB image [h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def image_bytes(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(folder: Path, count: int, *, side: int = 16, classes: int = 0) -> Path:
    """`count` random images; with `classes`, in folders that name them."""
    for number in range(count):
        target = folder / f"class-{number % classes}" if classes else folder
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"{number:04d}.png"
        path.write_bytes(image_bytes(image_array(number, side)))
    return folder


def shard(source: Path, dest: Path | str, *, resolution: int = 16, **options) -> JobReport:
    """Run the sharding job without a word; 5 samples a shard unless told otherwise."""
    config = JobConfig(
        source=source,
        dest=str(dest),
        image=ImageConfig(resolution=resolution),
        **{"samples_per_shard": 5, **options},
    )
    return run_job(config, lambda done, total, what: None)


def make_dataset(folder: Path, count: int, *, classes: int = 0, side: int = 16, **options) -> str:
    """URL of a new local data set of `count` random images."""
    source = make_folder(folder / "images", count, side=side, classes=classes)
    labels = "folder" if classes else "none"
    shard(source, folder / "data", labels=labels, resolution=side, **options)
    return str(folder / "data")


def read_webdataset(path: Path, *, decode: str = "") -> list[dict]:
    """All samples of a tar as webdataset gives them."""
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves closing the file to Python
        dataset = webdataset.WebDataset(str(path), shardshuffle=False)
        samples = list(dataset.decode(decode) if decode else dataset)
        gc.collect()
    return samples


def expected_images(url: str, resolution: int) -> np.ndarray:
    """All images [n, c, h, w] of a level as webdataset and Pillow read them, in sample order."""
    manifest = Manifest.load(url)
    level = manifest.level(resolution)
    found = {}
    for number in range(manifest.num_shards):
        for sample in read_webdataset(local_path(shard_url(url, resolution, number))):
            payload = io.BytesIO(sample[level.encoding])
            array = np.load(payload) if level.encoding == "npy" else np.asarray(Image.open(payload))
            found[int(sample["__key__"])] = array.transpose(2, 0, 1)
    return np.stack([found[number] for number in range(manifest.samples)])


def tree(folder: Path) -> dict[str, bytes]:
    """All files below `folder`, by path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def copy_to(url: str, target: str) -> str:
    """Put a local data set to another URL."""
    for name, content in tree(local_path(url)).items():
        storage.write_atomic(storage.join(target, name), content)
    return target


def damage(url: str, resolution: int, sample: int) -> None:
    """Alter one byte of the image of `sample`, as a disk would."""
    manifest = Manifest.load(url)
    number, row = manifest.locate(sample)
    index = ShardIndex.load(url, resolution, number, manifest)
    tar = shard_url(url, resolution, number)
    content = bytearray(storage.read_bytes(tar))
    content[index.offsets[row] + index.lengths[row] // 2] ^= 1
    storage.write_atomic(tar, bytes(content))


def write_nonsense(url: str, resolution: int, sample: int, nonsense: bytes = b"") -> None:
    """Make the image of `sample` undecodable, with right digests all the way up.

    Or put other bytes in its place, if they are as many.
    """
    manifest = Manifest.load(url)
    number, row = manifest.locate(sample)
    index = ShardIndex.load(url, resolution, number, manifest)
    tar = shard_url(url, resolution, number)
    content = bytearray(storage.read_bytes(tar))
    nonsense = nonsense or b"?" * index.lengths[row]
    assert len(nonsense) == index.lengths[row]
    content[index.offsets[row] : index.offsets[row] + index.lengths[row]] = nonsense
    digests = [*index.sha256]
    digests[row] = sample_digest(nonsense)
    index_bytes = replace(index, sha256=tuple(digests)).to_bytes()
    entry = replace(
        manifest.level(resolution).shards[number],
        sha256=hashlib.sha256(content).hexdigest(),
        index_bytes=len(index_bytes),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
    )
    level = manifest.level(resolution)
    shards = (*level.shards[:number], entry, *level.shards[number + 1 :])
    levels = [
        replace(level, shards=shards) if level.resolution == resolution else level
        for level in manifest.levels
    ]
    storage.write_atomic(tar, bytes(content))
    storage.write_atomic(index_url(url, resolution, number), index_bytes)
    storage.write_atomic(
        manifest_url(url), replace(manifest, levels=tuple(levels)).to_json().encode()
    )
