"""The README's data commands, as they stand there, on stand-ins in the published layouts."""

import hashlib
import json
import re
import shlex
import subprocess
from pathlib import Path

from data_prep.__main__ import main
from data_prep.manifest import Labels, Manifest, ShardIndex
from tests import source_forms
from tests.ray_cluster import ROOT
from tests.small_sets import copy_to, image_array, image_bytes, make_folder
from tests.test_align import landmarks_of

SIDE, RESOLUTION = 64, 32
"""Of the images, and instead of 256 to 1024."""
IMAGES = [image_bytes(image_array(number, SIDE)) for number in range(4)]


def _commands() -> list[list[str]]:
    """Every command of the section, word by word."""
    section = (ROOT / "README.md").read_text().partition("\n## Data")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ")
    lines = [part for line in block.splitlines() for part in line.split("&&")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _published(folder: Path) -> None:
    """What the commands take, with the names that it has when it was fetched."""
    make_folder(folder / "Pictures", 4, side=SIDE, classes=2)
    _ffhq(source_forms.ffhq(folder / "ffhq"))
    source_forms.zipped(folder / "CelebAMask-HQ.zip", _celebahq())
    for name in ("bedroom_train_lmdb", "car"):
        webp = [image_bytes(image_array(number, SIDE), "WEBP") for number in range(4)]
        made = source_forms.lmdb(folder / f"{name}-made", webp)
        files = {f"{name}/{path.name}": path.read_bytes() for path in made.iterdir()}
        source_forms.zipped(folder / f"{name}.zip", files)
    arrays = [image_array(number, SIDE) for number in range(4)]
    source_forms.tfrecords(folder / "celebahq-tfrecords", arrays)
    source_forms.ada_zip(folder / "afhqv2.zip", IMAGES, classes=3)
    source_forms.webdataset(folder / "wds", shards=123, each=1)


def _ffhq(folder: Path) -> None:
    """Add the images as photographed, and where the faces are in them."""
    path = folder / "ffhq-dataset-v2.json"
    records = json.loads(path.read_text())
    for number, record in enumerate(records.values()):
        content = image_bytes(image_array(number, 400))
        file = {"file_size": len(content), "file_md5": hashlib.md5(content).hexdigest()}
        record["in_the_wild"] |= {**file, "face_landmarks": landmarks_of()}
        wild = folder / record["in_the_wild"]["file_path"]
        wild.parent.mkdir(parents=True, exist_ok=True)
        wild.write_bytes(content)
    path.write_text(json.dumps(records))


def _celebahq() -> dict[str, bytes]:
    photographs = [image_bytes(image_array(number, SIDE), "JPEG") for number in range(4)]
    rows = [f"{n}.jpg -1 {1 - 2 * (n % 2)} {1 - 2 * (n // 2)} 1" for n in range(4)]
    attributes = "\n".join(["4", "5_o_Clock_Shadow Male Smiling Young", *rows, ""])
    files = {
        **{f"CelebA-HQ-img/{number}.jpg": content for number, content in enumerate(photographs)},
        **{f"CelebAMask-HQ-mask-anno/0/{n:05d}_hair.png": IMAGES[0] for n in range(4)},
        "CelebAMask-HQ-attribute-anno.txt": attributes.encode(),
        "README.txt": b"read me",
    }
    return {f"CelebAMask-HQ/{name}": content for name, content in files.items()}


EXPECTED = {
    "pictures": (4, Labels(kind="class", size=2, names=("class-0", "class-1"))),
    "set": (123, Labels(kind="class", size=3)),
    "ffhq": (4, None),
    "ffhq-aligned": (4, None),
    "celebahq": (4, Labels(kind="vector", size=2, names=("Smiling", "Male"))),
    "lsun-bedroom": (4, None),
    "lsun-car": (4, None),
    "celebahq-official": (4, None),
    "afhq": (4, Labels(kind="class", size=3)),
}
"""Samples and labels by the last component of DEST."""


def test_every_data_command_of_the_readme_does_what_it_says(s3, tmp_path, monkeypatch):
    _published(tmp_path)
    monkeypatch.chdir(tmp_path)
    copy_to("wds", f"{s3.url}/wds")
    made = {}
    for words in _commands():
        if words[0] == "unzip":
            subprocess.run(words, check=True, capture_output=True)
        elif words[0] == "python":
            command = [word.replace("s3://bucket", s3.url) for word in words]
            command = [word.replace("~", str(tmp_path)) for word in command]
            at = command.index("--resolution")
            command[at + 1] = str(RESOLUTION)
            assert command[:4] == ["python", "-m", "data_prep", "shard"]
            assert main(command[3:]) == 0, command
            dest = command[at - 1]
            made[dest.rpartition("/")[2]] = dest
        else:
            assert words[0] == "export", words

    manifests = {name: Manifest.load(dest) for name, dest in made.items()}
    assert {name: (found.samples, found.labels) for name, found in manifests.items()} == EXPECTED
    for name in ("ffhq", "ffhq-aligned"):
        index = ShardIndex.load(made[name], RESOLUTION, 0, manifests[name])
        assert [row["author"] for row in index.metadata] == [f"Ünal {n}" for n in range(4)]
    index = ShardIndex.load(made["celebahq"], RESOLUTION, 0, manifests["celebahq"])
    assert index.labels == ((1, 1), (1, -1), (-1, 1), (-1, -1))
