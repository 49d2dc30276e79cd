"""The training on a terminal: a live bar, or plain lines where nobody watches."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from pipeline.observer import Commit, Tick


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
        self.say(f"{_place(tick)}  {_details(tick)}  left {_duration(_left_s(tick))}")

    def committed(self, commit: Commit) -> None:
        """Where the checkpoint is."""
        self.say(f"checkpoint {commit.checkpoint.url}")

    def say(self, message: str) -> None:
        """A line with the time since the start."""
        seconds = time.monotonic() - self._start_s
        _print(self._console, Text(f"{_duration(seconds):>8}  {message}"))


class _TwoLines(Progress):
    """A bar with a line of details under it, which together fit 80 columns."""

    details = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the details."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.details, style="dim", no_wrap=True, overflow="ellipsis")


class Bar:
    """A live bar; messages scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._progress = _TwoLines(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("left {task.fields[left]}"),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("starting", total=None, left="-:--")

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
        self._progress.details = _details(tick)
        self._progress.update(
            self._task,
            description=_place(tick),
            completed=tick.nimg,
            total=tick.total_nimg,
            left=_duration(_left_s(tick)),
        )

    def committed(self, commit: Commit) -> None:
        """Where the checkpoint is."""
        message = Text(f"checkpoint {commit.checkpoint.url}", style="dim")
        _print(self._progress.console, message)

    def say(self, message: str) -> None:
        """A line above the bar."""
        _print(self._progress.console, Text(message))


def _print(console: Console, message: Text) -> None:
    # As a Text, since square brackets in a path are none of rich's markup.
    console.print(message, soft_wrap=True, highlight=False)


def _beginning(nimg: int, url: str) -> str:
    if url:
        return f"training goes on at {nimg / 1000:.1f} kimg from {url}"
    return "training begins"


def _place(tick: Tick) -> str:
    return f"{tick.nimg / 1000:.1f}/{tick.total_nimg / 1000:.1f} kimg"


def _details(tick: Tick) -> str:
    losses = " ".join(
        f"{short} {tick.metrics[f'loss/{short}']:.{digits}f}"
        for short, digits in (("D", 3), ("G", 3), ("r1", 4), ("gp", 3))
        if f"loss/{short}" in tick.metrics
    )
    return (
        f"{tick.resolution} px  lod {tick.lod:.2f}  {tick.images_per_s:.0f} img/s  "
        f"loss {losses}  data wait {tick.metrics['time/data_wait_s']:.1f} s"
    )


def _left_s(tick: Tick) -> float:
    """Seconds to the end at the pace of the last tick."""
    return max(tick.total_nimg - tick.nimg, 0) / max(tick.images_per_s, 1e-9)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
