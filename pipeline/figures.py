"""The course of a training as a picture.

    training_curves(tracker.history(), resolution=32).save("curves.png")

Values come as in MLflow's history: name -> [(nimg, value)]. Figures are drawn at twice the size a
README shows them at.
"""

import functools
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from PIL import Image

History = Mapping[str, Sequence[tuple[int, float]]]

WIDTH_PX = 1800
_DPI = 200
PANEL_IN = 1.7
_PENALTIES = {
    "loss/r1": "Gradient penalty R1",
    "loss/gp": "Gradient penalty of WGAN-GP",
    "loss/path": "Path length regularization",
}
_SMALL_PANEL_IN = 0.9
_SMOOTH_POINTS = 60
_INK, FAINT, _GRID, _FADE = "#2b2f36", "#7a808a", "#e8eaed", "#f1ede2"
BLUE, RED, _GREEN, _VIOLET = "#2f6db5", "#d1495b", "#3b8f6e", "#7b5ea7"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#c3c7cd",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "grid.color": _GRID,
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class Span:
    """Part of a training with one resolution, or one fade to it."""

    start_nimg: int
    end_nimg: int
    resolution: int
    fade: bool

    @property
    def start_kimg(self) -> float:
        """Where it begins."""
        return self.start_nimg / 1000

    @property
    def end_kimg(self) -> float:
        """Where it ends."""
        return self.end_nimg / 1000


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One of the diagrams above each other."""

    draw: Callable[[Axes], None]
    height_in: float = PANEL_IN


def training_curves(history: History, *, resolution: int, title: str = "") -> Image.Image:
    """Quality, losses, penalty and resolution against thousands of images.

    Args:
        history: What a run has logged; panels without values are left out.
        resolution: Of the finished generator, in pixels.
        title: Above all.

    Raises:
        ValueError: There is nothing to draw.
    """
    panels = _panels(history, resolution)
    if not panels:
        raise ValueError(
            f"nothing to draw: the history has {', '.join(history) or 'no metric'}, but nothing "
            f"that begins with metric/ or loss/, nor progress/lod"
        )
    spans = phase_spans(history.get("progress/lod", ()), resolution=resolution)
    end = max(nimg for points in history.values() for nimg, _ in points)
    return draw_panels(panels, spans, end_nimg=end, title=title)


def draw_panels(
    panels: Sequence[Panel], spans: Sequence[Span], *, end_nimg: int, title: str
) -> Image.Image:
    """Diagrams above each other against thousands of images, the resolutions behind them."""
    heights = [panel.height_in for panel in panels]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(
            len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        for ax, panel in zip(axes, panels, strict=True):
            draw_fades(ax, spans, _FADE)
            ax.grid(visible=True, axis="y", linewidth=0.7)
            ax.set_xlim(0, end_nimg / 1000 or 1)
            panel.draw(ax)
            ax.tick_params(length=0)
            ax.set_axisbelow(True)
        name_spans(axes[0], spans, least_share=0.03, color=FAINT, fontsize=7.5, fades=True)
        axes[-1].xaxis.set_major_locator(MaxNLocator(8))
        axes[-1].set_xlabel("thousands of images shown (kimg)")
        figure.align_ylabels(axes)

    return picture(draw, size_in=(WIDTH_PX / _DPI, 0.9 + sum(heights)), title=title)


def picture(
    draw: Callable[[Figure], None], *, size_in: tuple[float, float], title: str
) -> Image.Image:
    """A figure in the style of all of them."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size_in, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def phase_spans(lods: Sequence[tuple[int, float]], *, resolution: int) -> list[Span]:
    """Phases that the logged lods show: while one is a fraction, a resolution fades in."""
    spans: list[Span] = []
    for (start, lod), (end, after) in itertools.pairwise(lods):
        # It falls also where a level entered and was complete between two ticks.
        fade = lod != after or lod != int(lod)
        side = resolution >> int(min(lod, after))
        last = spans[-1] if spans else None
        goes_on = last is not None and (last.resolution, last.fade) == (side, fade)
        begin = spans.pop().start_nimg if goes_on else start
        spans.append(Span(start_nimg=begin, end_nimg=end, resolution=side, fade=fade))
    return spans


def _panels(history: History, resolution: int) -> list[Panel]:
    """What there are values for, from top to bottom."""
    panels = []
    quality = {name: history[name] for name in sorted(history) if name.startswith("metric/")}
    if any(quality.values()):
        panels.append(Panel(draw=lambda ax: _draw_quality(ax, quality)))
    if history.get("loss/D") or history.get("loss/G"):
        panels.append(Panel(draw=lambda ax: _draw_losses(ax, history)))
    for name, title in _PENALTIES.items():
        if points := history.get(name):
            panels.append(Panel(draw=functools.partial(_draw_penalty, points=points, title=title)))
    if lods := history.get("progress/lod"):
        panels.append(
            Panel(draw=lambda ax: _draw_resolution(ax, lods, resolution), height_in=_SMALL_PANEL_IN)
        )
    return panels


def _draw_quality(ax: Axes, metrics: History) -> None:
    """The first metric on the left axis, the second on the right one."""
    ax.set_title("Distance to the real images (lower is better)")
    shown = [name for name, points in metrics.items() if len(columns(points)[0])][:2]
    for index, name in enumerate(shown):
        side, color, marker = (ax, BLUE, "o") if index == 0 else (ax.twinx(), RED, "D")
        label = metric_label(name)
        kimg, values = columns(metrics[name])
        side.plot(
            kimg, values, color=color, marker=marker, markersize=4, linewidth=1.6, clip_on=False
        )
        # An unbiased KID can be below 0.
        side.set_ylim(1.18 * min(0, values.min()), 1.18 * max(0, values.max()) or 1)
        side.set_ylabel(label, color=color)
        side.tick_params(axis="y", colors=color, length=0)
        side.spines[["top", "left", "right"]].set_visible(False)
        side.annotate(
            f"{label}  {values[0]:.3g} → {values[-1]:.3g}",
            (1, 1),
            xycoords="axes fraction",
            xytext=(-130 * (len(shown) - 1 - index), 5),
            textcoords="offset points",
            ha="right",
            color=color,
        )


def _draw_losses(ax: Axes, history: History) -> None:
    ax.set_title("Losses")
    for name, color in (("D", _VIOLET), ("G", _GREEN)):
        if points := history.get(f"loss/{name}"):
            _draw_line(ax, points, color, label=name)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, handlelength=1.4, borderaxespad=0)
    ax.set_ylabel("loss")


def _draw_penalty(ax: Axes, *, points: Sequence[tuple[int, float]], title: str) -> None:
    ax.set_title(title)
    _draw_line(ax, points, RED)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("penalty")


def _draw_resolution(ax: Axes, lods: Sequence[tuple[int, float]], resolution: int) -> None:
    ax.set_title("Resolution")
    kimg, values = columns(lods)
    sides = resolution / 2.0**values
    ax.plot(kimg, sides, color=_INK, linewidth=1.6)
    ax.set_yscale("log", base=2)
    first, last = int(math.log2(sides.min())), math.ceil(math.log2(sides.max()))
    ticks = [2**level for level in range(first, last + 1)]
    ax.set_yticks(ticks, [str(side) for side in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(ticks[0] / 1.4, ticks[-1] * 1.4)
    ax.set_ylabel("px")


def _draw_line(
    ax: Axes, points: Sequence[tuple[int, float]], color: str, *, label: str = ""
) -> None:
    """A curve; one of many points faint, and their running mean over it."""
    kimg, values = columns(points)
    window = len(values) // _SMOOTH_POINTS
    if window > 1:
        ax.plot(kimg, values, color=color, linewidth=0.8, alpha=0.25)
        padded = np.pad(values, (window, window), mode="edge")
        kernel = np.full(2 * window + 1, 1 / (2 * window + 1))
        values = np.convolve(padded, kernel, mode="valid")
    ax.plot(kimg, values, color=color, linewidth=1.5, label=label)


def draw_fades(ax: Axes, spans: Sequence[Span], color: str) -> None:
    """Bands where a resolution fades in."""
    for span in spans:
        if span.fade:
            ax.axvspan(span.start_kimg, span.end_kimg, color=color, linewidth=0, zorder=0)


def name_spans(
    ax: Axes, spans: Sequence[Span], *, least_share: float, color: str, fontsize: float, fades: bool
) -> None:
    """Resolutions over the phases that are wide enough for a word.

    Args:
        ax: Whose abscissa is thousands of images.
        spans: Phases of the schedule.
        least_share: Width of a phase that gets a word, of all of them.
        color: Of the words.
        fontsize: Of the words, in points.
        fades: Whether fades are named, too.
    """
    total = max((span.end_kimg for span in spans), default=0.0)
    for span in spans:
        if span.end_kimg - span.start_kimg < least_share * total or (span.fade and not fades):
            continue
        ax.annotate(
            "fade" if span.fade else f"{span.resolution} px",
            ((span.start_kimg + span.end_kimg) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=fontsize,
            color=color,
            fontstyle="italic" if span.fade else "normal",
        )


def metric_label(name: str) -> str:
    """metric/fid300 as people write it: FID-300."""
    word = name.removeprefix("metric/")
    letters = word.rstrip("0123456789k")
    return f"{letters.upper()}-{word[len(letters) :]}" if letters != word else word.upper()


def columns(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Kimg and finite values."""
    table = np.array([(nimg / 1000, value) for nimg, value in points]).reshape(-1, 2)
    table = table[np.isfinite(table[:, 1])]
    return table[:, 0], table[:, 1]
