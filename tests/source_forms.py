"""Small sources of the forms that a folder of images is not, and what sources hold."""

import hashlib
import json
from pathlib import Path

from data_prep.sources import Listing
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


def webdataset(folder: Path, shards: int = 3, each: int = 4) -> Path:
    from webdataset import TarWriter

    folder.mkdir(parents=True)
    for number in range(shards):
        with (folder / f"{number:03d}.tar").open("wb") as file:
            writer = TarWriter(file)
            for row in range(each):
                sample = number * each + row
                image = image_bytes(image_array(sample))
                writer.write({"__key__": f"{row:04d}", "png": image, "cls": sample % 3})
            writer.close()
    return folder
