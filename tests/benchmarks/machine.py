"""What the benchmarks say about the machine, and how they write down repeated figures."""

import datetime
import importlib.metadata
import os
import platform
import statistics
from pathlib import Path

import psutil

Figures = dict[str, list[float]]
"""All values of each quantity."""

CORES = len(os.sched_getaffinity(0))


def spread(values: list[float], form: str) -> str:
    """Median, lowest and highest."""
    if not values:
        return "—"
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def cpu_s() -> float:
    """CPU seconds of this process and its children, living or dead."""
    live = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(os.times()[:4]) + sum(times.user + times.system for times in live)


def describe(*packages: str) -> str:
    """Machine, versions, date and load, as a sentence in Markdown."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), "").partition(": ")[2]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    today = datetime.datetime.now(tz=datetime.UTC).date()
    busy = os.getloadavg()[0]
    return (
        f"{CORES} cores of {model or platform.machine()}, Python {platform.python_version()}, "
        f"{', '.join(versions)}; {today}; load {busy:.1f} at the start."
    )
