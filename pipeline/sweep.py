r"""A table of a paper: generators trained or taken, measured alike, printed with fingerprints.

    python -m pipeline.sweep stylegan-table-1 --out sweeps/table-1 data.url=s3://bucket/ffhq
    python -m pipeline.sweep stylegan-table-4 --out sweeps/try --overlay small --num-images 20 \
        --no-ray schedule.total_kimg=1     # a try of a few minutes on the demo's images

TABLE is one of those in pipeline/sweeps, or a file like them:

    title: R1 on my pictures
    metrics: [fid50k, pr50k]
    evaluate: --num-reals 10000              # options of pipeline.evaluate, for all rows
    rows:
      gamma 10: {config: [ffhq-256, mine.yaml]}
      gamma 1: {config: ffhq-256, overrides: [loss.r1_gamma=1]}
      earlier: {run: s3://bucket/runs/earlier}     # its newest checkpoint
      theirs: {model: models/ffhq, metrics: [fid50k]}

Values are those of the last checkpoint. In FOLDER lie a run for each row, values/ROW.json, table.md
and table.json. Stopped? The same command goes on. A row that failed is named, and the others come.
Exit codes: 0 done, 1 rows or metrics failed, 2 wrong request, before anything starts.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import dataclasses
import itertools
import json
import logging
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep import storage
from data_prep.manifest import DigestError
from data_prep.storage import StorageError
from pipeline import bundle as bundles
from pipeline import config as configs
from pipeline import evaluate, options
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.exits import fail
from pipeline.metric import MetricResult, with_count
from pipeline.minibatches import total_nimg_of
from pipeline.options import ConfigError
from pipeline.preflight import absolute, preflight
from pipeline.sweep_table import Row, RowResult, Table, read_table, to_json, to_markdown


class RowFailedError(RuntimeError):
    """A row could not be trained or measured; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done for one row."""

    name: str
    metrics: Mapping[str, tuple[str, ...]]
    """Names of the values of each metric."""
    config: TrainConfig | None
    """Of what is trained; None where a generator is taken."""
    subject: tuple[str, str]
    """--run or --model, and a URL."""
    evaluate: tuple[str, ...]
    """Options of `pipeline.evaluate`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all values."""
        return tuple(itertools.chain(*self.metrics.values()))

    def missing(self, results: Sequence[MetricResult]) -> list[str]:
        """Metrics without a value."""
        found = {result.name for result in results}
        return [metric for metric, names in self.metrics.items() if names[0] not in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    asked = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(highlight=False, soft_wrap=True)
    try:
        table = read_table(asked.table)
        sweep = Sweep(table, asked, console)
        results = sweep.run()
    except (StorageError, DigestError) as err:
        return fail(1, str(err))
    except ValueError as err:
        return fail(2, str(err))
    except KeyboardInterrupt:
        return fail(130, "stopped; run the same command again to go on")
    console.rule(table.title)
    print(to_markdown(table, results))
    print(f"table.md and table.json are in {asked.out}")
    failed = [result for result in results if result.failure]
    for result in failed:
        print(f"error: row {result.name}: {result.failure}", file=sys.stderr)
    return 1 if failed else 0


class Sweep:
    """All rows of a table, one after the other."""

    def __init__(self, table: Table, asked: argparse.Namespace, console: Console) -> None:
        """See that nothing is wrong with any row.

        Raises:
            ValueError: Something is; names the row.
        """
        self.table, self.asked, self.console = table, asked, console
        if asked.num_images is not None and asked.num_images < 2:
            raise ValueError(f"--num-images is {asked.num_images}; choose at least 2")
        self.plans = [self._plan(name, row) for name, row in table.rows.items()]

    def run(self) -> list[RowResult]:
        """Train and measure what is missing; the table is written after each row."""
        results: list[RowResult] = []
        for plan in self.plans:
            try:
                results.append(self._row(plan))
            except (RowFailedError, StorageError, ValueError) as err:
                results.append(RowResult(name=plan.name, columns=plan.columns, failure=str(err)))
            for name, text in (
                ("table.md", to_markdown(self.table, results)),
                ("table.json", to_json(self.table, results)),
            ):
                storage.write_atomic(storage.join(self.asked.out, name), f"{text}\n".encode())
        return results

    def _row(self, plan: Plan) -> RowResult:
        if plan.config is not None:
            self._train(plan.name, plan.config)
        url, digest, nimg = _newest(*plan.subject)
        results = self._values(plan, url, digest)
        missing = plan.missing(results)
        failure = f"{', '.join(missing)} left out; the evaluation says why" if missing else ""
        return RowResult(
            name=plan.name,
            columns=plan.columns,
            url=url,
            nimg=nimg,
            digest=digest,
            results=tuple(results),
            failure=failure,
        )

    def _train(self, name: str, config: TrainConfig) -> None:
        """Train in a process of its own, as a user would, unless it has come to its end."""
        latest = Checkpoints(config.run_url).latest()
        if latest is not None and latest.nimg >= total_nimg_of(config):
            return
        self.console.rule(f"{name}: training")
        train = [str(Path(__file__).with_name("train.py"))]
        if self.asked.no_ray:
            train = ["-m", "pipeline.worker"]
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            path = Path(folder, "config.yaml")
            path.write_text(configs.to_yaml(config))
            _call("training", [*train, "--config", str(path)])

    def _values(self, plan: Plan, url: str, digest: str) -> list[MetricResult]:
        """Values kept from before, and those that are missing."""
        kept_url = storage.join(self.asked.out, "values", f"{plan.name}.json")
        asked = {"subject": digest, "evaluate": list(plan.evaluate)}
        kept = _kept(kept_url, asked)
        missing = plan.missing(kept)
        if not missing:
            return kept
        self.console.rule(f"{plan.name}: {', '.join(missing)}")
        flag = "--model" if plan.subject[0] == "--model" else "--checkpoint"
        command = ["-m", "pipeline.evaluate", flag, url]
        command += [f"--metrics={','.join(missing)}", *plan.evaluate, "--json"]
        # With code 1 some metrics were left out; the others are there.
        if printed := _call("the evaluation", command, captured=True, allowed=(0, 1)):
            rows = json.loads(printed)
            for row in rows:
                del row["fingerprint_digest"]
            kept += [MetricResult(**row) for row in rows]
        content = {"asked": asked, "results": [dataclasses.asdict(result) for result in kept]}
        storage.write_atomic(kept_url, (json.dumps(content, indent=1) + "\n").encode())
        return kept

    def _plan(self, name: str, row: Row) -> Plan:
        try:
            metrics = row.metrics or self.table.metrics
            if self.asked.num_images is not None:
                metrics = tuple(with_count(m, self.asked.num_images) for m in metrics)
            config = self._config(name, row) if row.config else None
            subject = ("--run", config.run_url) if config else _taken(row)
            given = shlex.split(self.table.evaluate) + shlex.split(self.asked.evaluate)
            if row.model:
                given += ["--data", self._data_url()]
            arguments = [*subject, f"--metrics={','.join(metrics)}", *given]
            wanted = evaluate.config_of(evaluate.parser().parse_args(arguments)).wanted
        except ValueError as err:
            raise ConfigError(f"row {name}: {err}") from err
        return Plan(
            name=name,
            metrics={m: w.names for m, w in zip(metrics, wanted, strict=True)},
            config=config,
            subject=subject,
            evaluate=tuple(given),
        )

    def _config(self, name: str, row: Row) -> TrainConfig:
        """The configuration of a row's training, which its data and earlier checkpoints fit."""
        config = configs.load(
            self._with_overlay(row.config),
            [
                "evaluation.metrics=[]",
                "registry.alias=''",
                *row.overrides,
                *self.asked.overrides,
                f"name={Path(self.asked.table).stem} {name}",
                f"run_url={storage.join(self.asked.out, name)}",
            ],
        )
        config = absolute(config)
        preflight(config)
        return config

    def _with_overlay(self, presets: Sequence[str]) -> list[str]:
        """Presets below the overlay, or below the one of its name for their kind of network."""
        overlay = self.asked.overlay
        if not overlay:
            return list(presets)
        kind = options.read(presets).get("network", {}).get("kind", "stylegan")
        own = f"{overlay}-{kind}"
        return [*presets, own if (options.PRESETS / f"{own}.yaml").is_file() else overlay]

    def _data_url(self) -> str:
        url: str = options.read([], self.asked.overrides).get("data", {}).get("url", "")
        if not url:
            raise ValueError("a model does not say where its data are; name them by data.url=URL")
        return url


def _call(
    what: str, command: Sequence[str], *, captured: bool = False, allowed: Sequence[int] = (0,)
) -> str:
    """Call a command line of this project; what it printed, if that is captured."""
    done = subprocess.run(  # noqa: S603 (our own command lines)
        [sys.executable, *command],
        check=False,
        stdout=subprocess.PIPE if captured else None,
        text=True,
    )
    if done.returncode not in allowed:
        raise RowFailedError(f"{what} ended with code {done.returncode}; it says why above")
    return done.stdout or ""


def _taken(row: Row) -> tuple[str, str]:
    return ("--run", row.run) if row.run else ("--model", row.model)


def _newest(flag: str, url: str) -> tuple[str, str, int | None]:
    """URL, digest and nimg of the checkpoint, or of the model."""
    if flag == "--model":
        bundle = bundles.load(url)
        digest = storage.sha256(storage.join(url, bundles.DIGESTS))
        return url, digest, bundle.lineage.get("nimg")
    latest = Checkpoints(url).latest()
    if latest is None:
        raise RowFailedError(f"nothing was committed under {url}; give the run_url of a training")
    return latest.url, latest.digest, latest.nimg


def _kept(url: str, asked: Mapping[str, Any]) -> list[MetricResult]:
    """Values of this very generator, measured as is asked now."""
    try:
        content = json.loads(storage.read_bytes(url))
        if content["asked"] != asked:
            return []
        return [MetricResult(**row) for row in content["results"]]
    except storage.MissingError:
        return []
    except (ValueError, TypeError, KeyError) as err:
        raise RowFailedError(f"{url} is damaged ({err}); delete it to measure again") from err


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", metavar="TABLE", help="name or YAML file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of runs and values")
    parser.add_argument(
        "--overlay",
        default="",
        metavar="PRESET",
        help="laid over the presets of all rows, as small; PRESET-KIND where there is one",
    )
    parser.add_argument("--num-images", type=int, help="of all metrics, instead of the table's")
    parser.add_argument(
        "--no-ray", action="store_true", help="train in one process, without Ray and MLflow"
    )
    parser.add_argument(
        "--evaluate",
        default="",
        metavar="OPTIONS",
        help="of pipeline.evaluate, in one argument: --evaluate='--workers 2 --weights URL'",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all trainings")
    return parser


if __name__ == "__main__":
    sys.exit(main())
