"""Tables of a sweep: read from YAML, written as Markdown and JSON with fingerprints."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.metric import MetricResult
from pipeline.options import ConfigError

SWEEPS = Path(__file__).parent / "sweeps"
_NAME = re.compile(r"\w([\w -]*[\w-])?")
_MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a generator that is trained, or taken."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    config: tuple[str, ...] = ()
    """Presets or files, each laid over those before it."""
    overrides: tuple[str, ...] = ()
    """Of the training, as on its command line."""
    run: str = ""
    """URL of a training that is taken as it is."""
    model: str = ""
    """Folder or URL of a pulled or imported model."""
    metrics: tuple[str, ...] = ()
    """Instead of the table's."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is trained, and what is measured of it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    title: str
    metrics: tuple[str, ...]
    """Names as `pipeline.evaluate` knows them."""
    rows: Mapping[str, Row]
    """By their names."""
    evaluate: str = ""
    """Options of `pipeline.evaluate`."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """A line of the finished table."""

    name: str
    columns: tuple[str, ...]
    """Names of the values that were asked for."""
    url: str = ""
    nimg: int | None = None
    digest: str = ""
    results: tuple[MetricResult, ...] = ()
    failure: str = ""
    """Why something is missing; empty if nothing is."""

    def get(self, column: str) -> MetricResult | None:
        """The value of a column."""
        return next((result for result in self.results if result.name == column), None)


def read_table(name: str) -> Table:
    """One of `SWEEPS` by name, or a file.

    Raises:
        ConfigError: There is none, or it is no table; one sentence.
    """
    path = Path(name)
    if not path.is_file():
        path = SWEEPS / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SWEEPS.glob("*.yaml")))
        raise ConfigError(f"{name} is neither a file nor a table; choose from {names}")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"{path} cannot be read as YAML: {err}") from err
    for row in _rows_of(content):
        if isinstance(row.get("config"), str):
            row["config"] = [row["config"]]
    try:
        table = TypeAdapter(Table).validate_python(content)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"{path}: {where}: {first['msg'].lower()}; a table has title, metrics, rows and "
            f"evaluate, a row config, overrides, run, model and metrics"
        ) from err
    _check(table, path)
    return table


def to_markdown(table: Table, rows: Sequence[RowResult]) -> str:
    """The table; below it how each column was measured, by the digests of fingerprints."""
    columns = list(_columns(rows))
    lines = [["", "kimg", *columns]]
    for row in rows:
        kimg = _MISSING if row.nimg is None else f"{row.nimg / 1000:.6g}"
        cells = [(column, row.get(column)) for column in columns]
        lines.append([row.name, kimg, *(_cell(r, len(_ways(rows, c)) > 1) for c, r in cells)])
    ways = [_ways(rows, column) for column in columns]
    shared = [f"`{way[0]}`" if len(way) == 1 else "differ" if way else "" for way in ways]
    lines.append(["*fingerprint*", "", *shared])
    text = [f"| {' | '.join(line)} |" for line in lines]
    text.insert(1, "|---" * len(lines[0]) + "|")
    text += [f"\n{row.name}: {row.failure}" for row in rows if row.failure]
    return "\n".join([f"**{table.title}**", "", *text])


def to_json(table: Table, rows: Sequence[RowResult]) -> str:
    """Everything that is known of the table."""
    content: dict[str, Any] = {"title": table.title, "evaluate": table.evaluate, "rows": []}
    for row in rows:
        results = [
            {**dataclasses.asdict(r), "fingerprint_digest": r.fingerprint_digest}
            for r in row.results
        ]
        content["rows"].append({**dataclasses.asdict(row), "results": results})
    return json.dumps(content, indent=1)


def _rows_of(content: Any) -> Iterator[dict[str, Any]]:
    rows = content.get("rows") if isinstance(content, dict) else None
    yield from (row for row in (rows or {}).values() if isinstance(row, dict))


def _check(table: Table, path: Path) -> None:
    if not table.rows or not table.metrics:
        raise ConfigError(f"{path} has no {'metrics' if table.rows else 'rows'}; name some")
    for name, row in table.rows.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: row {name!r} cannot name a folder and a model; use letters, "
                f"digits, _, - and spaces within"
            )
        given = [key for key in ("config", "run", "model") if getattr(row, key)]
        if len(given) != 1:
            raise ConfigError(
                f"{path}: row {name} has {' and '.join(given) or 'nothing'}; give it one of config "
                f"(to train it), run or model (to take it)"
            )
        if row.overrides and not row.config:
            raise ConfigError(f"{path}: row {name} is not trained; leave its overrides out")


def _columns(rows: Sequence[RowResult]) -> Iterator[str]:
    """Names of values, in the order in which rows ask for them, each followed by its details."""
    asked = dict.fromkeys(column for row in rows for column in row.columns)
    found = dict.fromkeys(result.name for row in rows for result in row.results)
    for column in asked:
        yield column
        yield from (n for n in found if n.startswith(f"{column}_") and n not in asked)


def _ways(rows: Sequence[RowResult], column: str) -> list[str]:
    """How the values of a column were measured; more than one if they cannot be compared."""
    results = (row.get(column) for row in rows)
    return list(dict.fromkeys(r.fingerprint_digest[:12] for r in results if r is not None))


def _cell(result: MetricResult | None, different: bool) -> str:
    if result is None:
        return _MISSING
    return f"{result.value:.5g}" + f" (`{result.fingerprint_digest[:12]}`)" * different
