"""Writes the images of `tests.benchmarks.loading` in the form of a peer; run in its environment."""

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.loading_ways import SHARDS
from tests.benchmarks.machine import CORES
from tests.benchmarks.peers import import_streaming


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def write_mosaicml(images: Path, dest: Path) -> None:
    import_streaming()
    from streaming.base import MDSWriter

    with MDSWriter(
        columns={"image": "bytes"}, out=str(dest), size_limit=_shard_bytes(images)
    ) as out:
        for path in _paths(images):
            out.write({"image": path.read_bytes()})


def write_litdata(images: Path, dest: Path) -> None:
    from litdata import optimize

    inputs = list(map(str, _paths(images)))
    options = {"num_workers": CORES, "chunk_bytes": _shard_bytes(images), "verbose": False}
    optimize(read, inputs, str(dest), **options)


def _paths(images: Path) -> Iterator[Path]:
    return iter(sorted(images.glob("*.png")))


def _shard_bytes(images: Path) -> int:
    return sum(path.stat().st_size for path in _paths(images)) // SHARDS


if __name__ == "__main__":
    form, images, dest = sys.argv[1:]
    {"mosaicml": write_mosaicml, "litdata": write_litdata}[form](Path(images), Path(dest))
