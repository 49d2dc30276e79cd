"""Metrics of a run's checkpoints as pictures.

    metric_curves(history, spans=schedule_spans(config, resolution=1024)).save("metrics.png")
    precision_recall_scatter(history).save("precision-recall.png")

Values come as in `pipeline.figures`, under the names of their curves: metric/fid50k.
"""

import functools
import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.figures import (
    BLUE,
    FAINT,
    RED,
    History,
    Panel,
    Span,
    columns,
    draw_panels,
    metric_label,
    picture,
)
from pipeline.metric import HIGHER
from stylegan.schedule import ScheduleConfig, phases

_PAIRS = {"precision": "recall", "density": "coverage"}
_SIDE_IN = 5.0


def schedule_spans(config: ScheduleConfig, *, resolution: int) -> list[Span]:
    """Resolutions and fades that a schedule plans, up to its end."""
    planned = phases(config, resolution)
    starts = [phase.nimg for phase in planned] + [int(config.total_kimg * 1000)]
    return [
        Span(
            start_nimg=start,
            end_nimg=end,
            resolution=phase.resolution,
            fade=phase.lod != int(phase.lod),
        )
        for phase, (start, end) in zip(planned, itertools.pairwise(starts), strict=True)
    ]


def metric_curves(history: History, *, spans: Sequence[Span], title: str = "") -> Image.Image:
    """Each metric against thousands of images, over the resolutions of the schedule.

    Raises:
        ValueError: There are no metrics.
    """
    panels = []
    for name in history:
        label = _letters(name)
        if label in _PAIRS.values() and name.replace(label, _first_of(label)) in history:
            continue
        second = name.replace(label, _PAIRS.get(label, label))
        names = [name, second] if second != name and second in history else [name]
        panels.append(Panel(draw=functools.partial(_draw_metric, history=history, names=names)))
    if not panels:
        raise ValueError("nothing to draw: no checkpoint of the run was measured")
    end = max([span.end_nimg for span in spans] + [n for p in history.values() for n, _ in p])
    return draw_panels(panels, spans, end_nimg=end, title=title)


def precision_recall_scatter(history: History, *, title: str = "") -> Image.Image:
    """Recall and precision of each checkpoint, from the first one to the last.

    Raises:
        ValueError: No checkpoint has both.
    """
    courses = {}
    for name, points in history.items():
        if _letters(name) == "precision":
            recall = dict(history.get(name.replace("precision", "recall"), ()))
            both = [(n, recall[n], value) for n, value in points if n in recall]
            if both:
                courses[name] = both
    if not courses:
        raise ValueError("nothing to draw: no checkpoint has precision and recall; measure pr")

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.grid(visible=True, linewidth=0.7)
        for color, (name, course) in zip(
            itertools.cycle((BLUE, RED)), courses.items(), strict=False
        ):
            _, recalls, precisions = zip(*course, strict=True)
            label = metric_label(name.replace("precision", "checkpoints, pr"))
            ax.plot(recalls, precisions, color=color, marker="o", linewidth=1.2, label=label)
            for nimg, recall, precision in course:
                ax.annotate(
                    f"{nimg / 1000:g} kimg",
                    (recall, precision),
                    xytext=(6, 5),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=FAINT,
                )
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision")
        ax.set_aspect("equal")
        ax.tick_params(length=0)
        if len(courses) > 1:
            ax.legend(loc="lower left")

    return picture(draw, size_in=(_SIDE_IN, _SIDE_IN), title=title)


def _draw_metric(ax: Axes, *, history: History, names: Sequence[str]) -> None:
    better = "higher" if _letters(names[0]) in HIGHER else "lower"
    ax.set_title(f"{' and '.join(metric_label(name) for name in names)} ({better} is better)")
    for name, color in zip(names, (BLUE, RED), strict=False):
        kimg, values = columns(history[name])
        ax.plot(
            kimg,
            values,
            color=color,
            marker="o",
            markersize=4,
            linewidth=1.6,
            clip_on=False,
            label=metric_label(name),
        )
        for at in sorted({0, len(values) - 1}) if len(values) else ():
            left = kimg[at] < ax.get_xlim()[1] / 2
            ax.annotate(
                f"{values[at]:.4g}",
                (kimg[at], values[at]),
                xytext=(4 if left else -4, 5),
                textcoords="offset points",
                ha="left" if left else "right",
                fontsize=7.5,
                color=color,
            )
    every = [value for name in names for value in columns(history[name])[1]]
    # An unbiased KID can be below 0.
    ax.set_ylim(1.25 * min(0, *every), 1.25 * max(0, *every) or 1)
    if len(names) > 1:
        ax.legend(loc="lower right", ncols=2, handlelength=1.4)


def _letters(name: str) -> str:
    """The word in a name: precision of metric/precision50k."""
    word = name.removeprefix("metric/")
    return "".join(itertools.takewhile(str.isalpha, word))


def _first_of(second: str) -> str:
    return next(first for first, other in _PAIRS.items() if other == second)
