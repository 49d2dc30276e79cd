"""Takes what a run reports from its spool to MLflow, once each, however often it has to try."""

import json
import logging
import shutil
import tempfile
import threading
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.mlflow_client import first_line, is_lasting, make_client
from pipeline.spool import Entry, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Row = dict[str, Any]

CHECKPOINTS = "checkpoints.json"
"""Artifact with a row for each committed checkpoint."""

_COLUMNS = ("nimg", "url", "digest")
_BATCH = 1000  # MLflow takes no more metrics at a time,
_PARAM_BATCH = 100  # and no more parameters
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0


class Sender:
    """Sends entries to one run, in their order.

    Kinds: metrics (nimg, values), describe (params, tags, text), image (nimg, name, file),
    file (name, file), checkpoint (row), end (status, session).
    """

    def __init__(self, uri: str, run_id: str, spool: Spool, *, session: str, fresh: bool) -> None:
        """`fresh`: nobody has reported to this run before."""
        self.uri, self.run_id, self.spool, self.session = uri, run_id, spool, session
        self._client: MlflowClient | None = None
        self._fresh = fresh
        # What the run is known to have; read from the server when it is needed.
        self._logged: dict[str, set[int]] = {}
        self._images: set[str] | None = set() if fresh else None
        self._rows: dict[str, Row] | None = {} if fresh else None
        self._wake = threading.Event()
        self._failures = 0

    def hurry(self) -> None:
        """Do not wait for the next try."""
        self._wake.set()

    def deliver(self) -> None:
        """Send what is at the head of the spool; after a failure wait a while."""
        entries = self.spool.peek(_BATCH)
        count = _together(entries)
        try:
            self._send(entries[:count])
        except Exception as err:  # MLflow, SQLAlchemy and requests have no common class
            if not is_lasting(err):
                self._postpone(err)
                return
            logger.exception("MLflow at %s refuses: %s", self.uri, entries[0])
        if self._failures:
            logger.info("MLflow at %s answers again", self.uri)
        self._failures = 0
        self.spool.delivered(count)

    def _postpone(self, err: Exception) -> None:
        if not self._failures:
            logger.warning(
                "MLflow at %s is away (%s); what is reported waits in %s",
                self.uri,
                first_line(err),
                self.spool.path,
            )
        # A call that failed may have come through all the same.
        self._fresh = False
        self._logged.clear()
        self._images = self._rows = None
        self._wake.wait(min(_FIRST_WAIT_S * 2.0**self._failures, _LONGEST_WAIT_S))
        self._wake.clear()
        self._failures += 1

    def _send(self, entries: list[Entry]) -> None:
        if self._client is None:
            self._client = make_client(self.uri)
        first = entries[0]
        match first["kind"]:
            case "metrics":
                self._send_metrics(self._client, entries)
            case "describe":
                self._send_description(self._client, first)
            case "image":
                self._send_image(self._client, first)
            case "file":
                self._send_file(self._client, first)
            case "checkpoint":
                self._send_checkpoint(self._client, first["row"])
            case "end" if first["session"] == self.session:
                self._client.set_terminated(self.run_id, first["status"], first["time_ms"])

    def _send_metrics(self, client: "MlflowClient", entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            nimg, time_ms = entry["nimg"], entry["time_ms"]
            for name, value in entry["values"].items():
                if nimg not in self._steps(client, name):
                    new[name, nimg] = Metric(name, value, time_ms, nimg)
        if new:
            client.log_batch(self.run_id, metrics=list(new.values()))
        for name, nimg in new:
            self._logged[name].add(nimg)

    def _steps(self, client: "MlflowClient", name: str) -> set[int]:
        """Where the run has values of this metric."""
        if name not in self._logged:
            points = [] if self._fresh else client.get_metric_history(self.run_id, name)
            self._logged[name] = {point.step for point in points}
        return self._logged[name]

    def _send_description(self, client: "MlflowClient", entry: Entry) -> None:
        from mlflow.entities import Param, RunTag

        # MLflow changes no parameter; what a resumed training has changed becomes a tag.
        known = client.get_run(self.run_id).data.params
        params = [Param(key, value) for key, value in entry["params"].items() if key not in known]
        for start in range(0, len(params), _PARAM_BATCH):
            client.log_batch(self.run_id, params=params[start : start + _PARAM_BATCH])
        tags = entry["tags"] | {
            f"changed.{key}": value
            for key, value in entry["params"].items()
            if known.get(key, value) != value
        }
        client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.log_text(self.run_id, entry["text"], "config.yaml")

    def _send_image(self, client: "MlflowClient", entry: Entry) -> None:
        path, name, nimg = Path(entry["file"]), entry["name"], entry["nimg"]
        if self._images is None:
            files = client.list_artifacts(self.run_id, "images")
            self._images = {
                file.path.rpartition("/")[2].partition("+timestamp+")[0] for file in files
            }
        file = f"{name.replace('/', '~')}+step+{nimg}"  # as MLflow calls it
        if file in self._images or not path.exists():
            return
        with Image.open(path) as image:
            client.log_image(
                self.run_id,
                image,
                key=name,
                step=nimg,
                timestamp=entry["time_ms"],
                synchronous=True,
            )
        self._images.add(file)

    def _send_file(self, client: "MlflowClient", entry: Entry) -> None:
        spooled, name = Path(entry["file"]), PurePosixPath(entry["name"])
        if not spooled.exists():
            return  # sent by a process that was killed before it could say so
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(spooled, path)
            client.log_artifacts(self.run_id, folder)

    def _send_checkpoint(self, client: "MlflowClient", row: Row) -> None:
        if self._rows is None:
            self._rows = {row["url"]: row for row in read_checkpoints(client, self.run_id)}
        rows = self._rows | {row["url"]: self._rows.get(row["url"], {}) | row}
        _write_checkpoints(client, self.run_id, list(rows.values()))
        self._rows = rows


class SystemSampler:
    """MLflow's own measurements, without its thread, which ends at the first failed call.

    What cannot be measured is left out; that is said once.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor: Any = SystemMetricsMonitor  # has no types
        self._monitor = monitor(run_id, tracking_uri=uri)
        self._lock = threading.Lock()
        self._failed = False
        self.sample()

    def sample(self) -> None:
        """Measure."""
        with self._lock:
            self._collect()

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        with self._lock:
            self._collect()
            means = self._monitor.aggregate_metrics()
            for monitor in self._monitor.monitors:
                monitor.clear_metrics()
        return {f"system/{name}": float(value) for name, value in means.items()}

    def _collect(self) -> None:
        for monitor in self._monitor.monitors:
            try:
                monitor.collect_metrics()
            except Exception as err:  # noqa: BLE001 (psutil, NVML and the system have no common one)
                if not self._failed:
                    logger.warning(
                        "%s does not measure: %s", type(monitor).__name__, first_line(err)
                    )
                self._failed = True


def read_checkpoints(client: "MlflowClient", run_id: str) -> list[Row]:
    """Rows of the table of a run's checkpoints, newest first."""
    if not any(file.path == CHECKPOINTS for file in client.list_artifacts(run_id)):
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, CHECKPOINTS, folder)
        table = json.loads(Path(path).read_text())
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _write_checkpoints(client: "MlflowClient", run_id: str, rows: list[Row]) -> None:
    """Write the table in the form that MLflow shows as one."""
    rows = sorted(rows, key=lambda row: row["nimg"], reverse=True)
    metrics = sorted({name for row in rows for name in row} - set(_COLUMNS))
    columns = [_COLUMNS[0], *metrics, *_COLUMNS[1:]]
    table = {
        "columns": columns,
        "data": [[_short(row.get(name)) for name in columns] for row in rows],
    }
    client.log_dict(run_id, table, CHECKPOINTS)
    client.set_tag(
        run_id, "mlflow.loggedArtifacts", json.dumps([{"path": CHECKPOINTS, "type": "table"}])
    )
    client.set_tag(run_id, "checkpoint.latest", rows[0]["url"])


def _short(value: Any) -> Any:
    """A number as people read it; the metric beside the table has all digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _together(entries: list[Entry]) -> int:
    """How many of the first entries go in one call."""
    values = 0
    for count, entry in enumerate(entries):
        values += len(entry.get("values", ()))
        if entry["kind"] != "metrics" or values > _BATCH:
            return max(count, 1)
    return len(entries)
