"""The time of a training step with an evaluation beside it, on a core of its own.

    python -m tests.benchmarks.beside                    # five pairs of trainings
    python -m tests.benchmarks.beside --rounds 1 --kimg 0.5

The training has the first core to itself, the evaluation (FID and KID of one of its checkpoints,
again and again) the second one; Ray and MLflow are not there. Trainings with and without alternate,
each in a new process. Prints images/s of each after its first tick, and the ratio of the times of a
step; the goal is 1.02. Needs two cores that are idle otherwise.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import JobConfig, run_job
from pipeline import config as configs
from pipeline.checkpoint import Checkpoints
from pipeline.evaluate import EvaluationConfig, evaluate
from pipeline.loop import Commit, Tick, train
from pipeline.preflight import absolute

SIDE, IMAGES = 32, 1000
TRAINING_CORE, EVALUATION_CORE = 0, 1


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kimg", type=float, default=3, help="thousands of images of a training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = _data_set(Path(scratch))
        first = Path(scratch, "first")
        _call("train", data, first, 0.2)
        checkpoint = Checkpoints(str(first)).latest()
        assert checkpoint is not None
        speeds: dict[str, list[float]] = {"alone": [], "beside an evaluation": []}
        for number in range(args.rounds):
            speeds["alone"].append(_call("train", data, Path(scratch, f"a{number}"), args.kimg))
            with _evaluating(checkpoint.url, data):
                beside = _call("train", data, Path(scratch, f"b{number}"), args.kimg)
            speeds["beside an evaluation"].append(beside)
    print(f"{SIDE} px, {args.kimg:g} kimg a training, {args.rounds} pairs\n")
    print("| training | images/s, median | slowest | fastest |\n|---|---|---|---|")
    for name, found in speeds.items():
        median = statistics.median(found)
        print(f"| {name} | {median:.1f} | {min(found):.1f} | {max(found):.1f} |")
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    print(f"\ntime of a step, beside / alone: {statistics.median(ratios):.3f} (goal 1.02)")


def _data_set(folder: Path) -> str:
    source = folder / "images"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        image = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(source / f"{number:06d}.png")
    config = JobConfig(source=source, dest=str(folder / "data"), image=ImageConfig(resolution=SIDE))
    run_job(config, lambda done, total, what: None)
    return config.dest


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.beside", *map(str, arguments)]


def _call(*arguments: object) -> float:
    done = subprocess.run(_command(*arguments), stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout))


@contextlib.contextmanager
def _evaluating(checkpoint_url: str, data: str) -> Iterator[None]:
    with subprocess.Popen(
        _command("evaluate", checkpoint_url, data), stdout=subprocess.PIPE
    ) as process:
        try:
            # It says so once its network is loaded.
            assert process.stdout is not None
            process.stdout.readline()
            assert process.poll() is None
            yield
            assert process.poll() is None, "it went on all the time"
        finally:
            process.kill()


class _Speed:
    """Ticks but the first, in which everything is made ready."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []

    def began(self, nimg: int, url: str) -> None:
        pass

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)

    def committed(self, commit: Commit) -> None:
        pass


def _train(data: str, run: str, kimg: str) -> None:
    """Print images/s of a training at its full resolution."""
    os.sched_setaffinity(0, {TRAINING_CORE})
    torch.set_num_threads(1)
    tick_kimg = float(kimg) / 10
    options = [
        f"data.url={data}",
        f"run_url={run}",
        "workers=1",
        f"schedule.first_resolution={SIDE}",
        f"schedule.total_kimg={kimg}",
        f"schedule.tick_kimg.{SIDE}={tick_kimg}",
        f"commit_kimg={kimg}",
        "evaluation.metrics=[]",
    ]
    speed = _Speed()
    train(absolute(configs.load(["demo"], options)), observer=speed)
    found = [tick.images_per_s for tick in speed.ticks[1:]] or [speed.ticks[0].images_per_s]
    print(json.dumps(statistics.median(found)))


def _evaluate(checkpoint_url: str, data: str) -> None:
    """Evaluate for ever; a line after each."""
    os.sched_setaffinity(0, {EVALUATION_CORE})
    torch.set_num_threads(1)
    seed = 0
    while True:
        count = 50 if seed else 8
        config = EvaluationConfig(num_images=count, batch=8, device="cpu", seed=seed)
        evaluate(checkpoint_url, data, config)
        print("evaluated", flush=True)
        seed += 1


if __name__ == "__main__":
    children = {"train": _train, "evaluate": _evaluate}
    if sys.argv[1:2] and sys.argv[1] in children:
        children[sys.argv[1]](*sys.argv[2:])
    else:
        main()
