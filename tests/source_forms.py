"""Small sources of the forms that a folder of images is not, and what sources hold."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.sources import Listing
from data_prep.sources.crc32c import masked_crc32c
from tests.small_sets import image_array, image_bytes

TFRECORDS = Path(__file__).parent / "golden" / "F2_tfrecords"


def contents(listing: Listing) -> dict[str, bytes]:
    return {entry.name: listing.source.read(entry) for entry in listing.entries}


def ffhq(folder: Path, form: str = "images1024x1024") -> Path:
    folder.mkdir(parents=True)
    records = {}
    for number in range(4):
        content = image_bytes(image_array(number))
        name = f"00000/{number:05d}.png"
        (folder / form / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / form / name).write_bytes(content)
        file = {"file_size": len(content), "file_md5": hashlib.md5(content).hexdigest()}
        records[str(number)] = {
            "category": "training",
            "metadata": {"author": f"Ünal {number}", "license": "Public Domain"},
            **{
                key: {**file, "file_path": f"{place}/{name}"}
                for key, place in (
                    ("image", "images1024x1024"),
                    ("in_the_wild", "in-the-wild-images"),
                    ("thumbnail", "thumbnails128x128"),
                )
            },
        }
    (folder / "ffhq-dataset-v2.json").write_text(json.dumps(records))
    return folder


def webdataset(folder: Path, shards: int = 3, each: int = 4, side: int = 16) -> Path:
    from webdataset import TarWriter

    folder.mkdir(parents=True)
    for number in range(shards):
        with (folder / f"{number:03d}.tar").open("wb") as file:
            writer = TarWriter(file)
            for row in range(each):
                sample = number * each + row
                image = image_bytes(image_array(sample, side))
                writer.write({"__key__": f"{row:04d}", "png": image, "cls": sample % 3})
            writer.close()
    return folder


def lmdb(folder: Path, images: Iterable[bytes]) -> Path:
    """As LSUN's: a folder with data.mdb and lock.mdb, keys of 40 characters."""
    from lmdb import open as open_lmdb

    environment = open_lmdb(str(folder), map_size=2**26)
    with environment, environment.begin(write=True) as transaction:
        for image in images:
            transaction.put(hashlib.sha1(image).hexdigest().encode(), image)
    return folder


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def ada_zip(path: Path, images: Sequence[bytes], classes: int) -> Path:
    """As dataset_tool.py of stylegan2-ada writes it."""
    names = [f"{number // 1000:05d}/img{number:08d}.png" for number in range(len(images))]
    labels = [[name, number % classes] for number, name in enumerate(names)]
    table = json.dumps({"labels": labels}).encode()
    return zipped(path, {**dict(zip(names, images, strict=True)), "dataset.json": table})


def tfrecords(folder: Path, images: Sequence[np.ndarray], *, packed: bool = True) -> Path:
    """Images [h, w, c] in the file of the full level."""
    folder.mkdir(exist_ok=True)
    log2 = images[0].shape[0].bit_length() - 1
    with (folder / f"x-r{log2:02d}.tfrecords").open("wb") as file:
        for image in images:
            record = _example(image.transpose(2, 0, 1), packed=packed)
            head = len(record).to_bytes(8, "little")
            file.write(head + masked_crc32c(head).to_bytes(4, "little"))
            file.write(record + masked_crc32c(record).to_bytes(4, "little"))
    return folder


def _example(image: np.ndarray, *, packed: bool) -> bytes:
    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    numbers = (bytes([n]) for n in image.shape)
    shape = field(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers)
    data = field(1, image.tobytes())
    features = b"".join(
        field(1, field(1, name) + field(2, field(kind, value)))
        for name, kind, value in ((b"shape", 3, shape), (b"data", 1, data))
    )
    return field(1, features)
