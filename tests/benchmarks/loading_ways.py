"""The ways to load that `tests.benchmarks.loading` compares; run by it, each in its own process.

All give batches of 64 images (16 at 1024 px) as uint8 tensors [n, c, h, w], shuffled, from the same
PNGs, decoded by the same Pillow, with one thread or process for each core. Loading is by DataLoader
workers but for ours, which decodes in threads.
"""

import io
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.machine import CORES, cpu_s
from tests.benchmarks.peers import import_streaming

EPOCHS = 2


@dataclass(frozen=True)
class Place:
    """Where the images are in the form of each library."""

    url: str
    """Folder of ours, litdata, mosaicml and images: local or s3://."""
    scratch: str
    """For caches; empty at the start."""
    images: int
    side: int
    start: int
    """The image at which to begin, as a resumed run."""

    @property
    def batch(self) -> int:
        return 64 if self.side < 1024 else 16

    def of(self, form: str) -> str:
        return f"{self.url}/{form}"


Way = Callable[[Place], Iterator[torch.Tensor]]


def to_tensor(content: bytes) -> torch.Tensor:
    """As torchvision's `pil_to_tensor`."""
    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def ours(place: Place) -> Iterator[torch.Tensor]:
    from data_prep.manifest import Manifest
    from pipeline.loader import Loader, LoaderConfig, Request
    from pipeline.order import SampleOrder

    url = place.of("ours")
    manifest = Manifest.load(url)
    config = LoaderConfig(cache_dir=Path(place.scratch, "cache"))
    loader = Loader(url, manifest, SampleOrder(manifest.samples, 0), config=config)
    ends = range(place.start, EPOCHS * place.images, place.batch)
    requests = (
        Request(level_resolution=place.side, positions=np.arange(at, at + place.batch))
        for at in ends
    )
    return (batch.images for batch in loader.stream(requests))


def webdataset(place: Place) -> Iterator[torch.Tensor]:
    import webdataset as wds

    wds.gopen_schemes["s3"] = lambda url, *_, **__: _s3_object(url)["Body"]
    folder = f"{place.of('ours')}/{place.side}"
    shards = [f"{folder}/{number:06d}.tar" for number in range(SHARDS)]
    data = (
        wds.WebDataset(shards, shardshuffle=SHARDS, empty_check=False)
        .shuffle(1000)
        .map(lambda sample: to_tensor(sample["png"]))
        .batched(place.batch, collation_fn=torch.stack)
    )
    return _epochs(wds.WebLoader(data, batch_size=None, **_workers()))


def mosaicml(place: Place) -> Iterator[torch.Tensor]:
    import_streaming()
    from streaming.base import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # left by the run before

    class Images(StreamingDataset):
        def __getitem__(self, at: int) -> torch.Tensor:
            return to_tensor(super().__getitem__(at)["image"])

    url, s3 = place.of("mosaicml"), place.url.startswith("s3://")
    os.environ["S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
    where = {"remote": url, "local": f"{place.scratch}/cache"} if s3 else {"local": url}
    data = Images(**where, shuffle=True, batch_size=place.batch)
    loader = StreamingDataLoader(data, batch_size=place.batch, **_workers())
    if place.start:
        state = {"epoch": 0, "sample_in_epoch": place.start, "num_canonical_nodes": 1}
        loader.load_state_dict({**state, "shuffle_seed": 9176, "initial_physical_nodes": 1})
    return _epochs(loader)


def litdata(place: Place) -> Iterator[torch.Tensor]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    # There is no option for a store without TLS, as that of the tests.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    cache = f"{place.scratch}/cache" if place.url.startswith("s3://") else None
    data = StreamingDataset(
        place.of("litdata"), cache_dir=cache, shuffle=True, drop_last=False, transform=to_tensor
    )
    loader = StreamingDataLoader(data, batch_size=place.batch, **_workers())
    if place.start:
        state = {
            "dataset": data.state_dict(place.start, CORES, place.batch),
            "current_epoch": 1,
            "num_samples_yielded": place.start,
            "latest_worker_idx": 0,
        }
        loader.load_state_dict(state)
    return _epochs(loader)


def files(place: Place) -> Iterator[torch.Tensor]:
    """As torchvision's ImageFolder."""

    class Images(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return place.images

        def __getitem__(self, at: int) -> torch.Tensor:
            name = f"{place.of('images')}/{at:06d}.png"
            if place.url.startswith("s3://"):
                return to_tensor(_s3_object(name)["Body"].read())
            return to_tensor(Path(name).read_bytes())

    order = np.random.default_rng(0).permutation(place.images)[place.start :].tolist()
    sampler = order if place.start else None
    loader = DataLoader(
        Images(), batch_size=place.batch, shuffle=sampler is None, sampler=sampler, **_workers()
    )
    return _epochs(loader)


def bare(place: Place) -> Iterator[torch.Tensor]:
    """The limit: Pillow's decoder to an array, from memory, in a process for each core.

    Gives counts of images, not batches: nothing is handed over.
    """
    folder = Path(place.of("images"))
    names = sorted(folder.glob("*.png"))[: place.images]
    contents = [name.read_bytes() for name in names]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    size = place.batch

    def work(number: int) -> None:
        for _ in range(EPOCHS):
            for at in range(number * size, len(contents), CORES * size):
                for content in contents[at : at + size]:
                    with Image.open(io.BytesIO(content)) as image:
                        np.asarray(image)
                queue.put(len(contents[at : at + size]))

    processes = [context.Process(target=work, args=(number,)) for number in range(CORES)]
    for process in processes:
        process.start()
    for _ in range(EPOCHS * -(-len(contents) // size)):
        yield torch.empty(queue.get())
    for process in processes:
        process.join()


WAYS: dict[str, Way] = {
    "ours": ours,
    "webdataset": webdataset,
    "mosaicml": mosaicml,
    "litdata": litdata,
    "files": files,
    "bare": bare,
}
SHARDS = 8
"""Of each data set, in each form."""


def _workers() -> dict[str, Any]:
    return {"num_workers": CORES, "persistent_workers": True}


def _epochs(loader: Any) -> Iterator[torch.Tensor]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


_clients: dict[int, Any] = {}


def _s3_object(url: str) -> Any:
    import boto3

    client = _clients.setdefault(os.getpid(), None) or boto3.client("s3")
    _clients[os.getpid()] = client
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return client.get_object(Bucket=bucket, Key=key)


def measure(way: Way, place: Place) -> dict[str, float]:
    """Seconds to the first batch; images a second in each epoch, and in all for each CPU second."""
    start_s = time.perf_counter()
    batches = way(place)
    next(batches)
    first_s = time.perf_counter() - start_s
    if place.start:
        return {"resumed_s": first_s}
    result, shown, begin_cpu_s = {"first_s": first_s}, 0, cpu_s()
    for epoch in range(1, EPOCHS + 1):
        begin_s, begin = time.perf_counter(), shown
        while shown < epoch * place.images - place.batch:
            shown += len(next(batches))
        result[f"epoch_{epoch}"] = (shown - begin) / (time.perf_counter() - begin_s)
    result["per_cpu_s"] = shown / (cpu_s() - begin_cpu_s)
    return result


if __name__ == "__main__":
    name, url, scratch, images, side, start = sys.argv[1:]
    place = Place(url, scratch, int(images), int(side), int(start))
    print(json.dumps(measure(WAYS[name], place)), flush=True)
    os._exit(0)  # what is left are workers of peers that would be waited for
