"""Memory of one training step of StyleGAN at 1024 px with 4 images on a CPU.

    python -m tests.benchmarks.memory_1024            # configuration F
    python -m tests.benchmarks.memory_1024 stylegan2-f

Prints the largest resident set beside what `pipeline.footprint` counts; the goal is 12 GiB.
"""

import resource
import sys
import time

import torch

from pipeline import config as configs
from pipeline.footprint import footprint
from pipeline.memory import keep_freed_memory
from pipeline.trial import Trial, levels

BATCH = 4
OPTIONS = ["data.url=none", "run_url=none", "workers=1", "schedule.first_resolution=1024"]


def main(preset: str) -> None:
    """One step, timed and measured."""
    keep_freed_memory()
    config = configs.load(preset, OPTIONS)
    (phase,) = levels(config)
    counted = footprint(config, phase, batch=BATCH)
    before_gib = _resident_gib()
    trial = Trial(config, phase, batch=BATCH, device=torch.device("cpu"))
    started_s = time.monotonic()
    trial()
    print(
        f"{preset}: {time.monotonic() - started_s:.0f} s, {_resident_gib():.1f} GiB at most, "
        f"{before_gib:.1f} of them before; counted {counted.peak_bytes / 2**30:.1f} GiB"
    )


def _resident_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "stylegan-f")
