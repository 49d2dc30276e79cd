"""Memory of one training step of StyleGAN at 1024 px with 4 images on a CPU.

    python -m tests.benchmarks.memory_1024            # configuration F
    python -m tests.benchmarks.memory_1024 stylegan2-f

Prints the largest resident set; the goal is 12 GiB.
"""

import resource
import sys
import time

import torch

from pipeline import config as configs
from pipeline.loop import new_state
from pipeline.minibatches import Minibatch, RunDraws
from stylegan.schedule import phase_at
from stylegan.step import Part, TrainingStep

BATCH = 4
OPTIONS = [
    "data.url=none",
    "run_url=none",
    "workers=1",
    "schedule.first_resolution=1024",
    f"schedule.batch.1024={BATCH}",
]


def main(preset: str) -> None:
    """One step, timed and measured."""
    config = configs.load(preset, OPTIONS)
    state = new_state(config, torch.device("cpu"))
    split = config.split(0)
    step = TrainingStep(state, loss=config.loss, config=config.step, split=split)
    phase = phase_at(0, config.schedule, resolution=1024)
    step.enter(phase)
    shares = split.parts(BATCH)
    reals = torch.rand(BATCH, 3, 1024, 1024) * 2 - 1
    draws = RunDraws(
        config,
        config.draws(0),
        state.G,
        Minibatch(nimg=0, phase=phase, ends_iteration=True),
        shares,
    )
    started_s = time.monotonic()
    step([Part(reals=reals[torch.from_numpy(share)]) for share in shares], draws, phase)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{preset}: {time.monotonic() - started_s:.0f} s, {peak_gib:.1f} GiB at most")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "stylegan-f")
