"""Train every system on the demo's images until KID falls below half of its value at the start.

    make train-all                 # all of them, one after the other; over an hour on two cores
    python -m tests.benchmarks.train_all stylegan2-f gan

Needs the data set of `make demo`. Runs, grids and table.md lie under ~/stylegan-demo/all; a run
that is there goes on where it stopped.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import config as configs
from pipeline.result import Result, read_result
from stylegan.networks import family

ROOT = Path(__file__).parents[2]
FOLDER = Path("~/stylegan-demo/all").expanduser()
KID = "metric/kid300"
FID = "metric/fid300"
BEST_SHARE = 0.5

SYSTEMS = {
    "gan": ["gan", "small-gan"],
    "dcgan": ["dcgan", "small-dcgan"],
    "pggan": ["pggan", "small-pggan"],
    **{f"stylegan-{letter}": [f"stylegan-{letter}", "small"] for letter in "bcdef"},
    **{f"stylegan2-{letter}": [f"stylegan2-{letter}", "small"] for letter in "abcdef"},
}
"""Presets laid over each other, by name."""

SHORT = [
    "network.resolution=16",
    "schedule.stable_kimg=2",
    "schedule.fade_kimg=1",
    "data.url=~/stylegan-demo/data",
]
NARROW = [f"network.{name}.{key}" for name in "GD" for key in ("fmap_base=256", "fmap_max=64")]
WIDE = [f"network.{name}.{key}" for name in "GD" for key in ("fmap_base=512", "fmap_max=64")]


def differences(name: str) -> list[str]:
    """What a system has beside its presets: size, length, and R1 as weak as 16 px need it."""
    kimg = {"gan": 50, "dcgan": 50, "pggan": 40, "stylegan2-e": 50, "stylegan2-f": 50}.get(name, 28)
    options = [] if name in ("gan", "dcgan") else WIDE if name == "stylegan2-f" else NARROW
    if name.startswith("stylegan"):
        options = [*options, "loss.r1_gamma=1"]
    return [*SHORT, *options] + [
        f"{key}={kimg}" for key in ("schedule.total_kimg", "evaluation.every_kimg", "commit_kimg")
    ]


def main(names: Sequence[str]) -> int:
    """Train those of these names, or all; the exit code."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names or SYSTEMS:
        started_s = time.monotonic()
        done = subprocess.run(command(name), check=False)
        if done.returncode:
            failed.append(f"{name} ended with {done.returncode}")
            continue
        result = read_result(str(FOLDER / name))
        write(name, result, time.monotonic() - started_s)
        first, last = result.first_metrics[KID], result.metrics[KID]
        if not last <= BEST_SHARE * first:
            failed.append(f"{name}: KID went from {first:.4f} to {last:.4f}")
    print((FOLDER / "table.md").read_text())
    print("\n".join(failed) or "all of them learn")
    return 1 if failed else 0


def command(name: str) -> list[str]:
    """How a user would train it."""
    presets = [word for preset in SYSTEMS[name] for word in ("--config", preset)]
    options = [*differences(name), f"name={name}", f"run_url={FOLDER / name}", "registry.alias=''"]
    options.append(f"tracking.uri=sqlite:///{FOLDER}/mlflow.db")
    return [sys.executable, str(ROOT / "pipeline" / "train.py"), *presets, *options]


def write(name: str, result: Result, seconds: float) -> None:
    """Add a row to the table, or put a new one in the place of the old."""
    path = FOLDER / "table.md"
    head = [
        "| system | G parameters | kimg | KID300 at 0 | KID300 | FID300 at 0 | FID300 | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = path.read_text().splitlines()[2:] if path.exists() else []
    rows = [row for row in rows if not row.startswith(f"| {name} |")]
    first, last = result.first_metrics, result.metrics
    rows.append(
        f"| {name} | {_parameters(name):,} | {result.nimg / 1000:.0f} | {first[KID]:.4f} | "
        f"{last[KID]:.4f} | {first[FID]:.1f} | {last[FID]:.1f} | {seconds / 60:.1f} |"
    )
    order = list(SYSTEMS)
    rows.sort(key=lambda row: order.index(row.split("|")[1].strip()))
    path.write_text("\n".join([*head, *rows]) + "\n")


def _parameters(name: str) -> int:
    config = configs.load(SYSTEMS[name], [*differences(name), f"run_url={FOLDER / name}"])
    return sum(p.numel() for p in family.generator(config.network.G).parameters())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
