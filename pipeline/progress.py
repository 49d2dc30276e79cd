"""The training on a terminal: a live bar, or plain lines where nobody watches."""

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.loop import Commit, Tick


class Display(Protocol):
    """Shows what an `Observer` is told; a context manager, because a terminal must be restored."""

    def __enter__(self) -> "Display": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def began(self, nimg: int, url: str) -> None:
        """See `pipeline.loop.Observer`."""
        ...

    def tick(self, tick: Tick) -> None:
        """See `pipeline.loop.Observer`."""
        ...

    def committed(self, commit: Commit) -> None:
        """See `pipeline.loop.Observer`."""
        ...

    def say(self, message: str) -> None:
        """A line of its own."""
        ...


def display(console: Console) -> "Display":
    """A bar on a terminal, plain lines elsewhere."""
    return Bar(console) if console.is_terminal else Lines(console)


class Lines:
    """A line for each tick and commit."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start_s = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def began(self, nimg: int, url: str) -> None:
        """Where training begins."""
        self.say(_beginning(nimg, url))

    def tick(self, tick: Tick) -> None:
        """Progress, losses and the time left."""
        left_s = max(tick.total_nimg - tick.nimg, 0) / max(tick.images_per_s, 1e-9)
        metrics = tick.metrics
        self.say(
            f"kimg {tick.nimg / 1000:.1f}/{tick.total_nimg / 1000:.1f}  lod {tick.lod:.2f}  "
            f"{tick.resolution} px  batch {tick.batch}  {tick.images_per_s:.0f} img/s  "
            f"loss D {metrics['loss/D']:.3f} G {metrics['loss/G']:.3f} "
            f"r1 {metrics['loss/r1']:.4f}  data wait {metrics['time/data_wait_s']:.1f} s  "
            f"left {_duration(left_s)}"
        )

    def committed(self, commit: Commit) -> None:
        """Where the checkpoint is."""
        self.say(f"checkpoint {commit.checkpoint.url}")

    def say(self, message: str) -> None:
        """A line with the time since the start."""
        seconds = time.monotonic() - self._start_s
        self._console.print(f"{_duration(seconds):>8}  {message}", soft_wrap=True, highlight=False)


class Bar:
    """One live line; messages scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[place]}"),
            TextColumn("[dim]{task.fields[losses]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("starting", total=None, place="", losses="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def began(self, nimg: int, url: str) -> None:
        """Where training begins."""
        self.say(_beginning(nimg, url))

    def tick(self, tick: Tick) -> None:
        """Move the bar."""
        metrics = tick.metrics
        self._progress.update(
            self._task,
            description=f"{tick.nimg / 1000:.1f}/{tick.total_nimg / 1000:.0f} kimg",
            completed=tick.nimg,
            total=tick.total_nimg,
            place=f"{tick.resolution} px  lod {tick.lod:.2f}  {tick.images_per_s:.0f} img/s",
            losses=f"D {metrics['loss/D']:.2f} G {metrics['loss/G']:.2f} "
            f"r1 {metrics['loss/r1']:.3f}",
        )

    def committed(self, commit: Commit) -> None:
        """Where the checkpoint is."""
        self.say(f"[dim]checkpoint {commit.checkpoint.url}[/]")

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._progress.console.print(message, soft_wrap=True, highlight=False)


def _beginning(nimg: int, url: str) -> str:
    if url:
        return f"training goes on at {nimg / 1000:.1f} kimg from {url}"
    return "training begins"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
