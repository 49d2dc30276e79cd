"""The ways to shard that `tests.benchmarks.sharding` compares; run by it, each in its own process.

All take the same files, make of each a PNG of compression level 1 at 256 px by the same calls of
Pillow (decode, cut, resize by Lanczos), and store that in their own form in a local folder.
"""

import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from PIL import Image

from tests.benchmarks.machine import cpu_s
from tests.benchmarks.peers import import_streaming

SIDE = 256
Way = Callable[[Path, Path, int], None]
"""Makes of the images in a folder what lies in another one, in so many processes."""


def one_level(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
    buffer = io.BytesIO()
    square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def one_level_of(path: str) -> bytes:
    return one_level(Path(path).read_bytes())


def ours(source: Path, dest: Path, processes: int, *, levels: str = "full") -> None:
    from data_prep.images import ImageConfig
    from data_prep.job import run_job
    from data_prep.job_config import JobConfig

    image = ImageConfig(resolution=SIDE, levels=levels)
    config = JobConfig(
        source=source, dest=str(dest), image=image, workers=processes, samples_per_shard=128
    )
    run_job(config, lambda done, total, what: None)


def litdata(source: Path, dest: Path, processes: int) -> None:
    from litdata import optimize

    options = {"num_workers": processes, "chunk_bytes": "16MB", "verbose": False}
    optimize(one_level_of, _paths(source), str(dest), **options)


def mosaicml(source: Path, dest: Path, processes: int) -> None:
    _in_processes(partial(_mosaicml_part, dest), source, processes)


def _mosaicml_part(dest: Path, part: int, paths: list[str]) -> None:
    import_streaming()
    from streaming.base import MDSWriter

    out = str(dest / str(part))
    with MDSWriter(columns={"image": "bytes"}, out=out, size_limit=2**24) as writer:
        for path in paths:
            writer.write({"image": one_level_of(path)})


def pillow(source: Path, dest: Path, processes: int) -> None:
    """A loop over the files that writes a file each."""
    dest.mkdir()
    _in_processes(partial(_pillow_part, dest), source, processes)


def _pillow_part(dest: Path, part: int, paths: list[str]) -> None:
    for path in paths:
        (dest / f"{Path(path).stem}.png").write_bytes(one_level_of(path))


def codec(source: Path, dest: Path, processes: int) -> None:
    """The limit: the same calls, and nothing is stored."""
    _in_processes(_codec_part, source, processes)


def _codec_part(part: int, paths: list[str]) -> None:
    for path in paths:
        one_level_of(path)


WAYS: dict[str, Way] = {
    "ours": ours,
    "litdata": litdata,
    "mosaicml": mosaicml,
    "pillow": pillow,
    "codec": codec,
    "ours, all levels": partial(ours, levels="all"),
}


def _paths(source: Path) -> list[str]:
    return sorted(str(path) for path in source.glob("*.jpg"))


def _in_processes(
    work: Callable[[int, list[str]], None], source: Path, processes: int
) -> Iterable[None]:
    paths = _paths(source)
    if processes == 1:
        return [work(0, paths)]
    parts = [(part, paths[part::processes]) for part in range(processes)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.starmap(work, parts)


if __name__ == "__main__":
    name, source, dest, processes = sys.argv[1:]
    begin_s, begin_cpu_s = time.perf_counter(), cpu_s()
    WAYS[name](Path(source), Path(dest), int(processes))
    images = len(_paths(Path(source)))
    figures = [images / (time.perf_counter() - begin_s), images / (cpu_s() - begin_cpu_s)]
    print(json.dumps(figures), flush=True)
    os._exit(0)
