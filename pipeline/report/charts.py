"""Diagrams of the report as SVG: a column wide, with letters that stay readable when shrunk.

The text is text, in the reader's own font. Equal values give equal bytes.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipeline.figures import Span, draw_fades, name_spans
from stylegan.diagnosis import Components

Points = Sequence[tuple[int, float]]
"""(nimg, value)."""

WIDTH_PX, HEIGHT_PX, TALL_PX = 440, 250, 300
INK, MUTED, RULE, FADE = "#1f2430", "#6b7280", "#e7e9ee", "#f4efe2"
BLUE, RED, GREEN, VIOLET = "#2f6db5", "#d1495b", "#3b8f6e", "#7b5ea7"
COLORS = (BLUE, RED, GREEN, VIOLET, "#c98a1b", "#4b5563")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_SMOOTH_POINTS = 60
_NAMED_SHARE = 0.07
_BINS = 36
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#c3c7cd",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": RULE,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.1,
}


def curves(
    series: Mapping[str, Points],
    *,
    spans: Sequence[Span] = (),
    from_zero: bool = False,
    colors: Sequence[str] = COLORS,
    goals: Mapping[str, float] | None = None,
) -> str:
    """Lines over thousands of images.

    Args:
        series: By name; a single one has no legend.
        spans: Resolutions, named above the lines; fades are shaded.
        from_zero: Begin the axis at 0.
        colors: Of the lines.
        goals: Values of some series that a short dash at the right end shows.
    """

    def draw(ax: Axes) -> None:
        end = max((nimg for points in series.values() for nimg, _ in points), default=0) / 1000
        draw_fades(ax, spans, FADE)
        name_spans(ax, spans, least_share=_NAMED_SHARE, color=MUTED, fontsize=9.5, fades=False)
        for (name, points), color in zip(series.items(), colors, strict=False):
            _draw_line(ax, points, color, name)
            if goals and name in goals:
                ax.plot(
                    [1, 1.04],
                    [goals[name]] * 2,
                    color=color,
                    linewidth=2.2,
                    clip_on=False,
                    transform=ax.get_yaxis_transform(),
                )
        ax.grid(visible=True, axis="y", linewidth=0.7)
        ax.set_xlim(0, end or 1)
        low, high = ax.get_ylim()
        # Room for the names of resolutions.
        ax.set_ylim(min(0, low) if from_zero else low, high + 0.1 * (high - low) * bool(spans))
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("thousands of images shown (kimg)")
        if len(series) > 1:
            _legend(ax, len(series))

    return _svg(draw)


def histogram(groups: Mapping[str, Tensor], *, xlabel: str) -> str:
    """How values [n] of some groups are distributed, on common bins."""

    def draw(ax: Axes) -> None:
        every = np.concatenate([values.numpy() for values in groups.values()])
        low, high = np.quantile(every, [0.002, 0.998])
        bins = np.linspace(low, high + 1e-6, _BINS)
        for (name, values), color in zip(groups.items(), (BLUE, RED), strict=True):
            ax.hist(
                np.clip(values.numpy(), low, high),
                bins=list(bins),
                weights=np.full(len(values), 1 / len(values)),
                color=color,
                alpha=0.55,
                label=name,
            )
            ax.axvline(float(values.mean()), color=color, linewidth=1.4, linestyle=(0, (3, 2)))
        ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.grid(visible=True, axis="y", linewidth=0.7)
        ax.set_xlabel(xlabel)
        _legend(ax, len(groups))

    return _svg(draw)


def scatter(points: Tensor, *, colors: Tensor, shares: Tensor) -> str:
    """Latents [n k] along the first two components, in colours [n 3] in [0, 1]."""

    def draw(ax: Axes) -> None:
        x, y = points[:, 0].numpy(), points[:, 1].numpy()
        ax.scatter(x, y, c=colors.numpy(), s=26, edgecolors="#00000030", linewidths=0.5)
        ax.axhline(0, color=RULE, linewidth=1, zorder=0)
        ax.axvline(0, color=RULE, linewidth=1, zorder=0)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"component 1: {float(shares[0]):.0%} of the variance")
        ax.set_ylabel(f"component 2: {float(shares[1]):.0%}")

    return _svg(draw, height_px=TALL_PX)


def shares(components: Components) -> str:
    """How much of the variance of w each component holds, and the first ones together."""

    def draw(ax: Axes) -> None:
        values = components.shares.numpy()
        numbers = np.arange(1, len(values) + 1)
        ax.bar(numbers, values, color=BLUE, width=0.62, label="each")
        ax.plot(numbers, values.cumsum(), color=RED, marker="o", markersize=4, label="up to here")
        ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
        ax.set_ylim(0, 1.02)
        ax.set_xticks(numbers)
        ax.grid(visible=True, axis="y", linewidth=0.7)
        ax.set_xlabel("component")
        _legend(ax, 2)

    return _svg(draw, height_px=TALL_PX)


def by_resolution(count: int) -> list[str]:
    """Colours from coarse to fine."""
    return [mpl.colors.to_hex(c) for c in mpl.colormaps["viridis"](np.linspace(0.05, 0.85, count))]


def _draw_line(ax: Axes, points: Points, color: str, name: str) -> None:
    """A curve; one of many points faint, and their running mean over it."""
    table = np.array([(nimg / 1000, value) for nimg, value in points]).reshape(-1, 2)
    kimg, values = table[np.isfinite(table[:, 1])].T
    window = len(values) // _SMOOTH_POINTS
    if window > 1:
        ax.plot(kimg, values, color=color, linewidth=0.8, alpha=0.25)
        padded = np.pad(values, (window, window), mode="edge")
        kernel = np.full(2 * window + 1, 1 / (2 * window + 1))
        values = np.convolve(padded, kernel, mode="valid")
    few = len(values) <= 12
    ax.plot(
        kimg,
        values,
        color=color,
        linewidth=1.8,
        label=name,
        marker="o" if few else "",
        markersize=4.5,
        clip_on=not few,
    )


def _legend(ax: Axes, count: int) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=min(count, 6), borderaxespad=0.2)


def _svg(draw: Callable[[Axes], None], *, height_px: int = HEIGHT_PX) -> str:
    with mpl.rc_context(_STYLE):
        # A point of an SVG is a pixel here.
        figure = Figure(figsize=(WIDTH_PX / 72, height_px / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().replace("'DejaVu Sans'", _FONTS)
