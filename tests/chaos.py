"""Pull every plug during one training, and see that the result is that of an undisturbed one.

    make chaos                                            # 55 faults; report in build/chaos
    python -m tests.chaos --faults 2 --kinds "node killed" "cable cut" --seed 3

The hosts are network namespaces where this machine permits them, else processes on loopback (then
no cable can be cut). Exit code 0: every fault has happened, and the weights are equal.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from stylegan.schedule import ScheduleConfig, phase_at
from tests.chaos_faults import Injector
from tests.chaos_plan import KINDS, Fault, plan
from tests.chaos_report import Outcome, Report
from tests.datasets import draw_images, make_data_set
from tests.hosts import Network, refusal
from tests.installation import HOSTS, NODES, Installation
from tests.run_watch import RunWatch, wait_for
from tests.services import BUCKET

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
RESOLUTION = 16
RECOVERY_S = 900
"""Until a commit newer than the fault; more is a run that does not recover."""


class Chaos:
    """One training without faults and one with them, on one installation."""

    def __init__(self, installation: Installation, report: Report) -> None:
        self.installation = installation
        self.report = report
        kimg = report.total_nimg / 1000
        self.schedule: dict[str, Any] = {
            "first_resolution": RESOLUTION // 2,
            "stable_kimg": 0.2 * kimg,
            "fade_kimg": 0.5 * kimg,
            "total_kimg": kimg,
            "table": "none",
            "batch": {8: 12, 16: 12},
            "tick_kimg": {8: 0.12, 16: 0.12},
        }
        self._config = installation.folder / "chaos.yaml"

    def prepare(self) -> None:
        """The data set on S3, and the configuration."""
        folder = self.installation.folder
        draw_images(folder / "images", 50, RESOLUTION)
        make_data_set(folder / "images", str(folder / "data"), RESOLUTION, samples_per_shard=16)
        self.installation.upload(folder / "data", "data")
        options = {
            "name": "chaos",
            "seed": 5,
            "workers": len(NODES),
            "commit_kimg": 0.12,
            "network": {
                # Wide enough that a commit takes a moment, which can be hit.
                "resolution": RESOLUTION,
                "G": {"fmap_base": 512, "fmap_max": 64, "mapping_layers": 2},
                "D": {"fmap_base": 512, "fmap_max": 64},
            },
            "schedule": self.schedule,
            "data": {"url": f"s3://{BUCKET}/data", "mirror": True},
            "loader": {"threads": 1, "cache_dir": str(folder / "cache")},
            "evaluation": {"metrics": []},
            "tracking": {"uri": self.installation.mlflow.uri, "experiment": "chaos"},
        }
        self._config.write_text(yaml.safe_dump(options))

    def undisturbed(self) -> None:
        """What is expected."""
        with self._training("undisturbed") as watch:
            self._finish(watch)
            self.report.expected = watch.weights

    def disturbed(
        self, faults: Sequence[Fault], waited_out: Callable[[], None] = lambda: None
    ) -> None:
        """What comes out; each fault is waited out before the next, and `waited_out` called."""
        with self._training("disturbed") as watch, Injector(self.installation, watch) as injector:
            self.report.found = watch.weights
            for number, fault in enumerate(faults, start=1):
                self._await_moment(watch, fault)
                outcome = self._outcome(watch, injector, fault)
                self.report.outcomes.append(outcome)
                logger.info("%d of %d: %s", number, len(faults), outcome.line())
                waited_out()
            self._finish(watch)
        self.report.tracking = self.installation.tracking(f"s3://{BUCKET}/disturbed")

    def _training(self, run: str) -> RunWatch:
        arguments = ("--config", str(self._config), f"run_url=s3://{BUCKET}/{run}")
        self.installation.start_driver(*arguments)
        return RunWatch(self.installation.s3, run)

    def _await_moment(self, watch: RunWatch, fault: Fault) -> None:
        self._until(lambda: watch.nimg >= fault.nimg, RECOVERY_S, "progress")
        if fault.in_commit:
            self._until(lambda: bool(watch.uploading), RECOVERY_S, "a commit", every_s=0.001)
        if self.installation.finished():
            raise RuntimeError(f"the training ended before {fault.kind}: more images per fault")

    def _outcome(self, watch: RunWatch, injector: Injector, fault: Fault) -> Outcome:
        folder, nimg, given = watch.uploading, watch.nimg, self.installation.commands_given
        start_s = time.monotonic()
        hit = injector.inject(fault)
        in_commit = fault.in_commit and bool(folder) and not watch.is_committed(folder)
        away = injector.broken

        def went_on() -> bool:
            injector.repair()
            return watch.nimg > nimg and not injector.broken

        self._until(went_on, RECOVERY_S, f"a commit after {fault.kind}", every_s=0.2)
        phase = phase_at(max(nimg, 0), ScheduleConfig(**self.schedule), resolution=RESOLUTION)
        return Outcome(
            kind=fault.kind,
            in_commit=in_commit,
            in_fade=phase.lod % 1 > 0,
            nimg=nimg,
            hit=hit,
            lasts_s=fault.lasts_s if away else 0,
            recovered_s=round(time.monotonic() - start_s, 1),
            commands_given=self.installation.commands_given - given,
        )

    def _finish(self, watch: RunWatch) -> None:
        self._until(self.installation.finished, 4 * 3600, "the end")
        watch.look()

    def _until(self, condition: Any, timeout_s: float, what: str, every_s: float = 0.1) -> None:
        """Wait, and tend the installation meanwhile."""

        def tended() -> bool:
            self.installation.tend()
            return condition() or self.installation.finished()

        if not wait_for(tended, timeout_s, every_s):
            logs = self.installation.logs()
            raise RuntimeError(f"{what} did not come within {timeout_s:.0f} s: {logs}")


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=5 * len(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--images-per-fault", type=int, default=600)
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "chaos")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)

    why_not = refusal()
    total_nimg = options.faults * options.images_per_fault // 48 * 48
    kinds = [kind for kind in options.kinds if not why_not or kind != "cable cut"]
    faults = plan(options.faults, seed=options.seed, kinds=kinds, total_nimg=total_nimg)
    report = Report(
        seed=options.seed,
        total_nimg=total_nimg,
        hosts=f"on one ({why_not})" if why_not else "network namespaces",
        wanted=len(faults),
    )
    with ExitStack() as stack:
        network = None if why_not else stack.enter_context(Network(HOSTS))
        chaos = Chaos(stack.enter_context(Installation(network)), report)
        try:
            chaos.prepare()
            start_s = time.monotonic()
            chaos.undisturbed()
            report.undisturbed_s = time.monotonic() - start_s
            logger.info("undisturbed: %.0f s", report.undisturbed_s)
            chaos.disturbed(faults, lambda: report.write(options.report))
            report.disturbed_s = time.monotonic() - start_s - report.undisturbed_s
        except RuntimeError as err:
            report.failure = str(err)
    report.write(options.report)
    print(report.summary())
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
