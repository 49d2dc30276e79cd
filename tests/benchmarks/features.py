"""Features of FID side by side: ours, torch-fidelity's, and the bare forward pass of Inception.

    make agreement                                    # torch-fidelity, in an environment of its own
    python -m tests.benchmarks.features               # 200 stored images of 64 px, three rounds
    python -m tests.benchmarks.features --images 20 --rounds 1

All on one thread of a CPU, in turn, the median of the rounds. Ours reads a data set of the sharding
job, torch-fidelity a folder of PNG files, the bare forward pass a tensor that is resized already.
Below: what bfloat16 does to the values, and the arithmetic of FID of 2048 features.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import JobConfig, run_job
from data_prep.manifest import Manifest
from pipeline import features, weights
from pipeline.tasks import Extractor, RealsTask, plan_batches
from stylegan.metrics.features import FeatureMoments
from stylegan.metrics.fid import fid, frechet_distance
from stylegan.metrics.inception import FEATURES, InceptionV3
from stylegan.metrics.inception_input import inception_input
from stylegan.metrics.kid import kid

ORACLES = Path(weights.CACHE).parent / "oracles" / "bin" / "python"
SIDE, BATCH = 64, 25
_THEIRS = Path(__file__).with_name("features_torch_fidelity.py")


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = _images(Path(scratch, "images"), args.images)
        config = JobConfig(
            source=source, dest=str(Path(scratch, "data")), image=ImageConfig(resolution=SIDE)
        )
        run_job(config, lambda done, total, what: None)
        _table(source, config.dest, args.images, args.rounds)
        _precision(config.dest, args.images)
    _arithmetic(args.rounds)


def _images(folder: Path, count: int) -> Path:
    """Smooth coloured pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        image = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06d}.png")
    return folder


def _task(data: str, count: int, precision: str = "float32") -> RealsTask:
    extractor = Extractor(
        network="inception-2015-12-05",
        precision="bfloat16" if precision == "bfloat16" else "float32",
        weights="",
        device="cpu",
        threads=1,
    )
    return RealsTask(
        batches=tuple(plan_batches(count, BATCH)),
        batch=BATCH,
        extractors=(extractor,),
        data_url=data,
        data_digest=Manifest.load(data).digest,
        resolution=SIDE,
        count=count,
        mirror_seed=None,
    )


def _table(source: Path, data: str, count: int, rounds: int) -> None:
    task = _task(data, count)
    small = _task(data, BATCH)
    features.real_features(small)  # the network is loaded
    network = InceptionV3(weights.load("inception-2015-12-05"))
    images = torch.cat(list(features.real_images(small)))
    ready = inception_input(images, "official").contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(0, count, BATCH):
                network.layers(ready)

    times: dict[str, list[float]] = {"ours": [], "bare forward pass": []}
    for _ in range(rounds):
        times["ours"].append(_seconds(lambda: features.real_features(task)))
        times["bare forward pass"].append(_seconds(bare))
        if ORACLES.exists():
            times.setdefault("torch-fidelity 0.4.0", []).append(_theirs(source, count))
    ours = statistics.median(times["ours"])
    print(f"{count} images of {SIDE} px, batches of {BATCH}, one thread, {rounds} rounds\n")
    print("| | seconds | images/s | ours is so many times as fast |\n|---|---|---|---|")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median:.2f} | {count / median:.2f} | {median / ours:.2f} |")
    if not ORACLES.exists():
        print("\ntorch-fidelity is not there: run `make agreement` first")


def _theirs(source: Path, count: int) -> float:
    """Seconds of torch-fidelity, in its environment; without starting and loading."""
    command = [ORACLES, _THEIRS, source, weights.CACHE, count, BATCH]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout))


def _precision(data: str, count: int) -> None:
    """FID and KID between the halves of the images, in both types."""
    print("\n| precision | seconds | FID of the halves | KID |\n|---|---|---|---|")
    for precision in ("float32", "bfloat16"):
        task = _task(data, count, precision)
        start_s = time.perf_counter()
        (rows,) = features.real_features(task)
        seconds = time.perf_counter() - start_s
        a, b = torch.from_numpy(rows).chunk(2)
        moments = FeatureMoments.of(a), FeatureMoments.of(b)
        print(f"| {precision} | {seconds:.2f} | {fid(*moments):.4f} | {kid(a, b):.6f} |")


def _arithmetic(rounds: int) -> None:
    """The Fréchet distance of two full-rank Gaussians, against a general matrix square root."""
    rng = torch.Generator().manual_seed(0)
    gaussians = []
    for _ in range(2):
        x = torch.randn(3 * FEATURES, FEATURES, dtype=torch.float64, generator=rng)
        x *= torch.logspace(0, -3, FEATURES, dtype=torch.float64)
        moments = FeatureMoments.of(x)
        gaussians.append((moments.mean(), moments.covariance()))
    seconds = [_seconds(lambda: frechet_distance(*gaussians)) for _ in range(rounds)]
    value = frechet_distance(*gaussians)
    (mean_a, cov_a), (mean_b, cov_b) = ([part.numpy() for part in g] for g in gaussians)
    start_s = time.perf_counter()
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    theirs_s = time.perf_counter() - start_s
    exact = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    print(
        f"\nFID of {FEATURES} features: {statistics.median(seconds):.2f} s, "
        f"{abs(value - exact) / exact:.1e} from SciPy's sqrtm, which takes {theirs_s:.1f} s"
    )


def _seconds(call: object) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    sys.exit(main())
