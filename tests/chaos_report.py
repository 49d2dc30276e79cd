"""What a chaos run has shown, as JSON and as a page to read."""

import json
import platform
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.chaos_plan import KINDS

Weights = dict[int, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A fault that has happened, and how the run went on."""

    kind: str
    in_commit: bool
    """Whether a checkpoint was without its marker before it and is after it, as measured."""
    in_fade: bool
    nimg: int
    """Of the newest commit when it happened."""
    hit: str
    lasts_s: float
    """How long something was away, part of the next; 0 for what is killed once."""
    recovered_s: float
    """From the fault to the first commit after it."""
    commands_given: int
    """How often the same command was given again."""

    def line(self) -> str:
        """For the terminal."""
        where = f"{self.hit}, {self.nimg} images{', in a commit' if self.in_commit else ''}"
        return f"{self.kind} ({where}): going on after {self.recovered_s:.0f} s"


@dataclass(kw_only=True)
class Report:
    """Everything about one run."""

    seed: int
    total_nimg: int
    hosts: str
    """namespaces, or why there are none."""
    wanted: int
    """Faults that were planned."""
    outcomes: list[Outcome] = field(default_factory=list)
    expected: Weights = field(default_factory=dict)
    """Commits of the undisturbed run that were seen, by nimg."""
    found: Weights = field(default_factory=dict)
    attempts: list[int] = field(default_factory=list)
    tracking: dict[str, Any] = field(default_factory=dict)
    undisturbed_s: float = 0
    disturbed_s: float = 0
    failure: str = ""

    @property
    def compared(self) -> list[int]:
        """nimg of the commits that were seen in both runs."""
        return sorted(self.expected.keys() & self.found.keys())

    @property
    def different(self) -> list[int]:
        """Of these, those whose weights differ."""
        return [nimg for nimg in self.compared if self.expected[nimg] != self.found[nimg]]

    @property
    def equal(self) -> bool:
        """Whether the final weights are those of the undisturbed run, at the same nimg."""
        last = max(self.expected, default=-1)
        return (
            last == self.total_nimg == max(self.found, default=0) and last in self.compared
        ) and not self.different

    @property
    def good(self) -> bool:
        """Whether all faults have happened and nothing came of them."""
        tracked = self.tracking.get("runs") == 1 and self.tracking.get("repeated") == 0
        return self.equal and tracked and not self.failure and len(self.outcomes) == self.wanted

    def summary(self) -> str:
        """A sentence each."""
        commits, different = len(self.compared), len(self.different)
        tracked = {name: self.tracking.get(name, "?") for name in ("runs", "status", "repeated")}
        lines = [
            f"{len(self.outcomes)} of {self.wanted} faults, seed {self.seed}",
            f"{self.total_nimg:,} images with 2 workers; hosts: {self.hosts}",
            f"final weights (SHA-256): {'equal to' if self.equal else 'NOT'} the undisturbed run's",
            f"equal at {commits - different} of {commits} commits that were seen in both runs",
            f"images lost or repeated: {'0' if self.equal else 'some'}, or weights would differ",
            "MLflow: {runs} run, {status}, {repeated} points repeated".format(**tracked),
            f"{self.undisturbed_s:.0f} s undisturbed, {self.disturbed_s:.0f} s with the faults",
        ]
        return "\n".join([*lines, *([f"FAILED: {self.failure}"] if self.failure else [])])

    def write(self, folder: Path) -> None:
        """report.json and report.md."""
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self) | {"good": self.good, "equal": self.equal, "compared": self.compared}
        (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / "report.md").write_text("\n".join(self._page()) + "\n")

    def _page(self) -> list[str]:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch"))
        page = ["# Chaos", "", *(f"- {line}" for line in self.summary().splitlines())]
        page += [f"- {platform.machine()}, Python {platform.python_version()}, {versions}", ""]
        page += ["Seconds are from the fault to the first commit after it.", ""]
        page += ["| fault | what | times | in a commit | in a fade | median s | longest s |"]
        page += ["|---|---|---|---|---|---|---|"]
        groups: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            groups[outcome.kind].append(outcome)
        for kind, what in KINDS.items():
            if group := groups.get(kind):
                times = [outcome.recovered_s for outcome in group]
                counts = [str(sum(o.in_commit for o in group)), str(sum(o.in_fade for o in group))]
                numbers = [f"{statistics.median(times):.0f}", f"{max(times):.0f}"]
                cells = [kind, what, str(len(group)), *counts, *numbers]
                page.append(f"| {' | '.join(cells)} |")
        page += ["", "| | nimg | fault | hit | in a | away s | going on after s | commands |"]
        page += ["|---|---|---|---|---|---|---|---|"]
        for number, o in enumerate(self.outcomes, start=1):
            away = f"{o.lasts_s:.0f}" if o.lasts_s else ""
            moment = ", ".join(["commit"] * o.in_commit + ["fade"] * o.in_fade)
            cells = [str(number), f"{o.nimg:,}", o.kind, o.hit, moment, away]
            cells += [f"{o.recovered_s:.0f}", str(o.commands_given)]
            page.append(f"| {' | '.join(cells)} |")
        return page
