"""The page: what is above the sections, and the HTML of all."""

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from pipeline import config as configs
from pipeline.figures import metric_label
from pipeline.metric import MetricResult, comparable
from pipeline.report.inside import Inside
from pipeline.report.pictures import Picture, of_image
from pipeline.report.records import Run
from pipeline.report.sections import Section, sections

_KINDS = {
    "gan": "GAN",
    "dcgan": "DCGAN",
    "pggan": "Progressive GAN",
    "stylegan": "StyleGAN",
    "stylegan2": "StyleGAN2",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """A number that is seen first."""

    name: str
    value: str
    note: str = ""
    better: bool = False


@dataclass(frozen=True, kw_only=True)
class Value:
    """A row of the table of metrics."""

    name: str
    first: str
    last: str
    reals: str
    fakes: str
    network: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the template shows."""

    title: str
    subtitle: str
    hero: Picture | None
    cards: Sequence[Card]
    missing: Sequence[str]
    sections: Sequence[Section]
    values: Sequence[Value]
    facts: Sequence[tuple[str, str]]
    commands: str
    config: str


def make(run: Run, inside: Inside) -> Page:
    """The page of a run."""
    hero = None
    if run.grids:
        newest = run.grids[-1]
        hero = of_image(
            "samples", newest.picture, title="", alt=f"Samples after {newest.nimg / 1000:.1f} kimg"
        )
    kimg, network = run.latest.nimg / 1000, run.config.network
    state = "finished" if run.result and run.result.nimg == run.latest.nimg else "so far"
    return Page(
        title=run.config.name,
        subtitle=f"{_KINDS[network.kind]}, {run.resolution}x{run.resolution} px, "
        f"{kimg:,.1f} thousand images shown, {state}.",
        hero=hero,
        cards=list(_cards(run)),
        missing=[*run.missing, *inside.missing],
        sections=sections(run, inside),
        values=[_value(last, first) for last, first in _first_and_last(run)],
        facts=list(_facts(run)),
        commands=_commands(run),
        config=configs.to_yaml(run.config),
    )


def render(page: Page) -> str:
    """The page as HTML."""
    source = importlib.resources.files("pipeline.report").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(page=page) + "\n"


def _first_and_last(run: Run) -> list[tuple[MetricResult, MetricResult | None]]:
    """Values of the newest measured checkpoint, each with the first one measured likewise."""
    if not run.measured:
        return []
    last = run.measured[-1]
    earlier = [value for values in run.measured[:-1] for value in values]
    pairs = []
    for value in last:
        same = [old for old in earlier if old.name == value.name and comparable(old, value)]
        pairs.append((value, same[0] if same else None))
    return pairs


def _cards(run: Run) -> list[Card]:
    cards = [
        Card(
            name=metric_label(last.name),
            value=f"{last.value:.4g}",
            note="" if first is None else f"from {first.value:.4g}",
            better=first is not None and last.sign * last.value < last.sign * first.value,
        )
        for last, first in _first_and_last(run)[:4]
    ]
    cards.append(Card(name="images shown", value=f"{run.latest.nimg:,}"))
    if seconds := _training_s(run.history.get("time/sec_per_kimg", ())):
        hours, minutes = divmod(round(seconds / 60), 60)
        cards.append(
            Card(
                name="training time",
                value=f"{hours} h {minutes} min" if hours else f"{minutes} min",
                note=f"{run.latest.nimg / seconds:.3g} images a second",
            )
        )
    return cards


def _training_s(pace: Sequence[tuple[int, float]]) -> float:
    """Of seconds per thousand images, as they were logged since the tick before."""
    before, total = 0, 0.0
    for nimg, seconds in pace:
        total += (nimg - before) / 1000 * seconds
        before = nimg
    return total


def _value(last: MetricResult, first: MetricResult | None) -> Value:
    how: Mapping[str, Any] = last.fingerprint
    return Value(
        name=metric_label(last.name),
        first="-" if first is None else f"{first.value:.5g}",
        last=f"{last.value:.5g}",
        reals=str(how.get("reals", "-")),
        fakes=str(how.get("fakes", "-")),
        network=str(how.get("network", "-")),
        digest=last.fingerprint_digest[:12],
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = [
        ("Run", run.url),
        ("Checkpoint", f"{run.latest.url.rpartition('/')[2]}, SHA-256 {run.latest.digest}"),
        ("Data", f"{run.config.data.url}, digest {run.state.get('data_digest', '')}"),
        ("Configuration", f"digest {run.state.get('config_digest', '')}"),
    ]
    revisions = {str(value.subject.get("code_revision", "")) for v in run.measured for value in v}
    if revisions - {""}:
        facts.append(("Code", ", ".join(sorted(revisions - {""}))))
    if run.result:
        alias = f" as {run.result.alias}" if run.result.alias else ""
        facts.append(("Registered", f"{run.result.model}{alias}"))
    if "tracking_run_id" in run.record:
        facts.append(
            ("Tracking", f"{run.record['tracking_uri']}, run {run.record['tracking_run_id']}")
        )
    return facts


def _commands(run: Run) -> str:
    if not run.result or not run.result.model:
        return ""
    name = run.result.model.partition("/")[0]
    model = f"{name}@{run.result.alias}" if run.result.alias else run.result.model
    return "\n".join(
        [
            f"export MLFLOW_TRACKING_URI={run.result.tracking_uri}",
            f"python -m pipeline.registry pull {model} models/{name}",
            f"python -m pipeline.generate images --model models/{name} --seeds 0-31 --out images",
        ]
    )
