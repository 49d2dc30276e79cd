"""How long a training stands still when something dies, and what being ready for it costs.

    python -m tests.benchmarks.recovery              # all of it, ten minutes
    python -m tests.benchmarks.recovery --only copy upload overhead worker node

    worker, node  kill -9 until images are trained on again, and until an empty function of Ray
                  Train runs again, which is Ray's own floor
    copy          host copy of the whole state of StyleGAN F at 1024 px
    upload        minibatches at the demo's size while a checkpoint goes to S3, over those before
    overhead      watchdog, agreement and tracking, as a part of a minibatch at the demo's size

Figures mean something on a machine that does nothing else.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import config as configs
from pipeline.agreement import Agreement
from pipeline.beginning import new_state
from pipeline.checkpoint import Checkpoints, _host_copy
from pipeline.config import TrainConfig
from pipeline.minibatches import Minibatch, RunDraws
from pipeline.pulse import DATA, STEP, Pulse
from pipeline.tracking import Tracker, TrackingConfig
from stylegan.schedule import Phase, phase_at
from stylegan.step import Part, TrainingStep
from tests.benchmarks.recovery_of_ray import lost_node, lost_worker
from tests.services import BUCKET, start_s3_server

MINIBATCHES = 30


def host_copy() -> str:
    """Seconds to copy G, D, Gs and both optimizers."""
    config = configs.load("stylegan-f", ["data.url=none", "run_url=none"])
    state = new_state(config, torch.device("cpu"))
    state.enter(phase_at(10**8, config.schedule, resolution=1024))
    tensors = state.tensors()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    seconds = [_seconds(lambda: _host_copy(tensors)) for _ in range(5)]
    return f"host copy of {size / 2**20:.0f} MiB: {statistics.median(seconds):.2f} s (goal 1 s)"


class DemoStep:
    """Minibatches at the last level of the demo, on random images."""

    def __init__(self) -> None:
        self.config = configs.load("demo", ["data.url=none", "run_url=none", "workers=1"])
        resolution = self.config.network.resolution
        self.phase: Phase = phase_at(10**9, self.config.schedule, resolution=resolution)
        self.state = new_state(self.config, torch.device("cpu"))
        self.split = self.config.split(0, 1)
        self.step = TrainingStep(
            self.state, loss=self.config.loss, config=self.config.step, split=self.split
        )
        self.step.enter(self.phase)
        self.reals = torch.rand(self.phase.batch, 3, resolution, resolution) * 2 - 1

    def __call__(self) -> None:
        shares = self.split.parts(self.phase.batch)
        draws = RunDraws(
            self.config,
            self.config.draws(0),
            self.state.G,
            Minibatch(nimg=0, phase=self.phase, ends_iteration=True),
            shares,
        )
        parts = [Part(reals=self.reals[torch.from_numpy(share)]) for share in shares]
        self.step(parts, draws, self.phase)


def upload(folder: Path) -> str:
    """Minibatches beside an upload over minibatches alone, taken in turn."""
    minibatch = DemoStep()
    minibatch()
    server = start_s3_server(folder / "s3")
    with _variables(server.environment):
        checkpoints = Checkpoints(f"s3://{BUCKET}/run")
        alone, beside, number = [], [], 0
        while len(beside) < MINIBATCHES:
            alone.append(_seconds(minibatch))
            future = checkpoints.save(minibatch.state.tensors(), {}, nimg=number, attempt=0)
            number += 1
            while future is not None and not future.done():
                beside.append(_seconds(minibatch))
        checkpoints.wait()
    server.stop()
    ratio = statistics.median(beside) / statistics.median(alone)
    return f"minibatch while uploading / alone: {ratio:.3f} (goal 1.05)"


def overhead(folder: Path) -> str:
    """What a minibatch pays for being watched, agreed upon and tracked."""
    minibatch = DemoStep()
    minibatch()
    step_s = statistics.median(_seconds(minibatch) for _ in range(MINIBATCHES))
    config: TrainConfig = minibatch.config
    pulse, agreement = Pulse(config.watchdog), Agreement(torch.device("cpu"))
    tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    tracker = Tracker.open(tracking, run_id=None, spool=folder / "spool")
    metrics = {f"loss/{number}": 1.0 for number in range(20)}

    def watched() -> None:
        pulse.enter(DATA, nimg=0)
        pulse.enter(STEP, nimg=0)
        pulse.place()

    repeats = config.schedule.minibatch_repeats
    per_tick = minibatch.phase.tick_kimg * 1000 / minibatch.phase.batch
    costs = {
        "watchdog": _mean_s(watched, 1000),
        "agreement": _mean_s(lambda: agreement.wanted(False), 1000) / repeats,
        "tracking": _mean_s(lambda: tracker.log_tick(0, metrics), 20) / per_tick,
    }
    tracker.finish("FINISHED")
    share = sum(costs.values()) / step_s
    said = ", ".join(f"{name} {cost * 1e6:.0f} µs" for name, cost in costs.items())
    return f"of a minibatch of {step_s * 1e3:.0f} ms: {said}: {share:.3%} (goal 1 %)"


def _seconds(call: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    call()
    return time.perf_counter() - begun_s


def _mean_s(call: Callable[[], object], times: int) -> float:
    return _seconds(lambda: [call() for _ in range(times)]) / times


def _variables(environment):
    from unittest import mock

    return mock.patch.dict("os.environ", environment)


PARTS: dict[str, Callable[[Path], str]] = {
    "copy": lambda folder: host_copy(),
    "upload": upload,
    "overhead": overhead,
    "worker": lost_worker,
    "node": lost_node,
}


def main(arguments: list[str]) -> None:
    """Print one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    torch.set_num_threads(1)
    for name in parser.parse_args(arguments).only:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name:9} {PARTS[name](Path(folder))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
