"""Values that belong to a checkpoint, wherever they were measured, and how two compare.

RUN_URL/evaluation/000-000000064000.json    by the run's driver (pipeline.measurements)
RUN_URL/values/000-000000064000.json        by `python -m pipeline.evaluate`, one list
MODEL/metrics.json                          of a registered model
results.json                                what `python -m pipeline.evaluate --json` printed
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep import storage
from pipeline import bundle as bundles
from pipeline.marker import MARKER, CommittedCheckpoint, read_marker
from pipeline.metric import MetricResult, differences
from pipeline.record import read_record, update_record
from pipeline.tracking import log_values

BY_DRIVER, BY_HAND = "evaluation", "values"
_CHECKPOINTS = "/checkpoints/"


def file_name(checkpoint: CommittedCheckpoint) -> str:
    """Of the values of one checkpoint."""
    return f"{checkpoint.attempt:03d}-{checkpoint.nimg:012d}.json"


def run_of(checkpoint_url: str) -> str:
    """URL of the run that a checkpoint lies in; empty if it lies in none."""
    before, found, _ = checkpoint_url.rstrip("/").rpartition(_CHECKPOINTS)
    return before if found else ""


def keep(checkpoint_url: str, results: Sequence[MetricResult]) -> None:
    """Put values into the run of their checkpoint: its folder, and its curves in MLflow.

    Raises:
        StorageError: The folder cannot be written.
        TrackingError: MLflow does not answer; the values are in the folder then.
    """
    run_url = run_of(checkpoint_url)
    if not run_url or not results:
        return
    checkpoint = read_marker(checkpoint_url)
    url = storage.join(run_url, BY_HAND, file_name(checkpoint))
    kept = {(r.name, r.fingerprint_digest, r.subject["digest"]): r for r in _read_list(url)}
    kept |= {(r.name, r.fingerprint_digest, r.subject["digest"]): r for r in results}
    rows = [dataclasses.asdict(result) for result in kept.values()]
    storage.write_atomic(url, (json.dumps(rows, indent=1) + "\n").encode())

    record = read_record(run_url)
    if "tracking_run_id" in record:
        curves = record.get("curves", {})
        named = {name: r.value for name, r in on_curves(results, curves).items()}
        update_record(run_url, curves=curves)
        log_values(record["tracking_uri"], record["tracking_run_id"], checkpoint.nimg, named)


def read(url: str) -> list[MetricResult]:
    """Values of a run's newest measured checkpoint, a checkpoint, a model's folder or a file.

    Raises:
        StorageError: It cannot be read.
        ValueError: There are none.
    """
    found: list[MetricResult] = []
    if url.endswith(".json"):
        found = _read_list(url)
    elif storage.exists(storage.join(url, bundles.DIGESTS)):
        found = list(_of_model(url))
    elif storage.exists(storage.join(url, MARKER)):
        digest = read_marker(url).digest
        name = file_name(read_marker(url))
        found = [r for r in of_run(run_of(url), name) if r.subject["digest"] == digest]
    else:
        folders = (storage.join(url, folder) for folder in (BY_DRIVER, BY_HAND))
        names = sorted(name for folder in folders for name in storage.listdir(folder))
        found = of_run(url, names[-1]) if names else []
    if not found:
        raise ValueError(
            f"{url} holds no values; name a run, a checkpoint, a model's folder or a file of "
            f"--json, and measure first with `python -m pipeline.evaluate`"
        )
    return found


def of_run(run_url: str, name: str) -> list[MetricResult]:
    """Values of the checkpoint whose `file_name` is `name`, by hand and by the driver."""
    by_hand = _read_list(storage.join(run_url, BY_HAND, name))
    return by_hand + _read_list(storage.join(run_url, BY_DRIVER, name))


def history(run_url: str) -> dict[str, list[tuple[int, float]]]:
    """All values of a run's checkpoints as (nimg, value), by the names of their curves."""
    folders = [storage.join(run_url, folder) for folder in (BY_DRIVER, BY_HAND)]
    curves = dict(read_record(run_url).get("curves", {}))
    found: dict[str, dict[int, float]] = {}
    for name in sorted({name for folder in folders for name in storage.listdir(folder)}):
        for curve, result in on_curves(of_run(run_url, name), curves).items():
            found.setdefault(curve, {})[int(result.subject["nimg"])] = result.value
    return {name: sorted(points.items()) for name, points in sorted(found.items())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two values of the same name."""

    a: MetricResult
    b: MetricResult

    @property
    def differences(self) -> Sequence[str]:
        """Why they cannot be compared, one line each."""
        return differences(self.a, self.b)


def pairs(ours: Sequence[MetricResult], theirs: Sequence[MetricResult]) -> list[Pair]:
    """Values of equal names; of several those that may be compared, if any."""
    found = []
    for name in dict.fromkeys(result.name for result in ours):
        both = [Pair(a=a, b=b) for a in ours for b in theirs if a.name == b.name == name]
        # Those that may be compared come first.
        found += sorted(both, key=lambda pair: len(pair.differences))[:1]
    return found


def on_curves(
    results: Sequence[MetricResult], curves: dict[str, str]
) -> Mapping[str, MetricResult]:
    """Results by the names of their curves in tracking, such as metric/fid50k.

    Values that were measured in another way than those before them get a curve of their own.

    Args:
        results: Of one checkpoint.
        curves: Fingerprint digest of each curve; new ones are added.
    """
    named = {}
    for result in results:
        name, digest = f"metric/{result.name}", result.fingerprint_digest
        if curves.setdefault(name, digest) != digest:
            name = f"{name}-{digest[:8]}"
            curves[name] = digest
        named[name] = result
    return named


def _of_model(url: str) -> Iterator[MetricResult]:
    content = storage.read_bytes(storage.join(url, bundles.METRICS))
    for name, value in bundles.read_metrics(content).items():
        fingerprint = dict(value.fingerprint)
        subject = {"url": url, "digest": fingerprint.pop("snapshot", "")}
        yield MetricResult(name=name, value=value.value, fingerprint=fingerprint, subject=subject)


def _read_list(url: str) -> list[MetricResult]:
    """Results in a file; none if it is not there."""
    try:
        content: Any = json.loads(storage.read_bytes(url))
        rows = content["results"] if isinstance(content, dict) else content
        names = {field.name for field in dataclasses.fields(MetricResult)}
        return [MetricResult(**{k: v for k, v in row.items() if k in names}) for row in rows]
    except storage.MissingError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise ValueError(f"{url} holds no results ({err}); delete it and measure again") from err
