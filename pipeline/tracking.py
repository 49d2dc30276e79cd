"""What a run reports to MLflow: the one door to its client for runs.

    tracker = Tracker.open(TrackingConfig(uri="http://mlflow:5000"), run_id=None, spool=folder)
    tracker.describe(params={"loss.r1_gamma": 10}, tags={"data_digest": "…"}, config_text=text)
    tracker.log_tick(64_000, {"loss/D": 1.2, "progress/kimg": 64})  # returns at once
    tracker.log_checkpoint(url, digest=digest, nimg=64_000)
    tracker.finish("FINISHED")

The driver owns one MLflow run for the whole life of a training: it stores `tracker.run_id` and
hands it to `open` when it comes back. Everything goes into a spool on the local disk and from
there, by a thread, to the server: a server that is away costs nothing but a delay, and nothing is
logged twice.
Steps are images shown (nimg).
"""

import logging
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from data_prep import storage
from pipeline.delivery import Sender, SystemSampler
from pipeline.mlflow_client import (
    TrackingError,
    asking,
    check_uri,
    connect,
    first_line,
    sqlite_folder,
)
from pipeline.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
History = dict[str, list[tuple[int, float]]]

_METRIC = re.compile(r"[\w.\-/ ]{1,250}")
_PARAM_CHARS = 6000
_SAMPLE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run is reported."""

    uri: str = ""
    """http://HOST:PORT or sqlite:////FOLDER/mlflow.db; empty: mlflow.db in the run's folder."""
    experiment: str = "stylegan"
    """Experiment, made if it does not exist."""
    run_name: str = ""
    """Name of the run in MLflow; empty: the last part of the run's URL."""
    system_metrics: bool = True
    """Log use of processor, memory, disk, network and GPU of the driver's machine."""

    def __post_init__(self) -> None:
        if self.uri:
            check_uri(self.uri)
        if not self.experiment.strip():
            raise ValueError("tracking.experiment is empty; give it a name, e.g. stylegan")


def default_uri(folder: Path) -> str:
    """SQLite file in a folder of this machine."""
    return f"sqlite:///{folder.resolve()}/mlflow.db"


def history(uri: str, run_id: str, names: Sequence[str] | None = None) -> History:
    """Values of a run's metrics as (nimg, value), oldest first.

    Args:
        uri: Tracking URI.
        run_id: The run.
        names: Metrics to read; None for all but the system's.
    """
    client = connect(uri)
    present = client.get_run(run_id).data.metrics
    if names is None:
        names = [name for name in sorted(present) if not name.startswith("system/")]
    return {name: _points(client, run_id, name) for name in names if name in present}


def log_values(uri: str, run_id: str, nimg: int, values: Mapping[str, float]) -> None:
    """Add values to a run that goes on or has ended; those it has at this nimg are left out.

    Raises:
        TrackingError: The server does not answer, or refuses.
    """
    client = connect(uri, create=False)
    known = history(uri, run_id, list(values))
    try:
        for name, value in values.items():
            if (nimg, value) not in known.get(name, []):
                client.log_metric(run_id, name, value, step=nimg)
    except Exception as err:
        raise TrackingError(f"run {run_id} does not take values: {first_line(err)}") from err


def log_artifacts(uri: str, run_id: str, run_url: str, files: Mapping[str, bytes]) -> bool:
    """Add files to the artifacts of a run, by their paths; False if it is not that of `run_url`.

    The copy of a run's folder names the tracking run of the original, which is left alone.

    Raises:
        TrackingError: The server does not answer, or refuses.
    """
    client = connect(uri, create=False)
    with asking(uri, f"take the artifacts of run {run_id}"):
        owner = client.get_run(run_id).data.tags.get("run_url", "")
        if not owner or _place(owner) != _place(run_url):
            return False
        with tempfile.TemporaryDirectory(prefix="artifacts-") as scratch:
            for name, content in files.items():
                path = Path(scratch, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            client.log_artifacts(run_id, scratch)
    return True


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Tracker:
    """One MLflow run, from its first start to its end (see the head of this file)."""

    def __init__(self, config: TrackingConfig, *, run_id: str, spool: Path, fresh: bool) -> None:
        """Use `open`, which finds or makes the run."""
        self.config = config
        self.run_id = run_id
        self.spool = Spool(spool)
        self._session = secrets.token_hex(8)
        self._sender = Sender(config.uri, run_id, self.spool, session=self._session, fresh=fresh)
        self._sampler = _sampler(config, run_id)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        *,
        run_id: str | None,
        spool: Path,
        run_name: str = "",
        patient: bool = False,
    ) -> "Tracker":
        """Make a run, or go on with the one a training has had before.

        Args:
            config: Where; `uri` must be set.
            run_id: The training's run; None at its first start.
            spool: Folder on the local disk for what is on its way, the same at every start.
            run_name: Name of a new run if the config has none.
            patient: Go on with `run_id` also if the server does not answer, for restarts.

        Raises:
            TrackingError: The server does not answer (within 30 seconds), or refuses.
        """
        try:
            client = connect(config.uri)
            known = run_id is not None and _exists(client, run_id)
            if run_id is not None and not known:
                logger.warning("%s has no run %s: a new one is made", config.uri, run_id)
            if known and run_id is not None:
                client.update_run(run_id, status="RUNNING")
            else:
                run_id = _create_run(client, config, config.run_name or run_name or None)
        except TrackingError as err:
            if not (patient and run_id):
                raise
            logger.warning("%s; points are kept in %s until it answers", err, spool)
            known = True
        return cls(config, run_id=run_id, spool=spool, fresh=not known)

    @property
    def url(self) -> str:
        """Where the run can be looked at; for a SQLite file its URI."""
        if not self.config.uri.startswith("http"):
            return self.config.uri
        return f"{self.config.uri.rstrip('/')}/#/runs/{self.run_id}"

    def describe(
        self, *, params: Mapping[str, Any], tags: Mapping[str, str], config_text: str
    ) -> None:
        """What was run; at every start.

        Args:
            params: The configuration; mappings in it become dotted names.
            tags: Digests, code revision.
            config_text: The resolved configuration, kept as the artifact config.yaml.
        """
        flat = {key: str(value)[:_PARAM_CHARS] for key, value in flatten(params).items()}
        entry = {"kind": "describe", "params": flat, "tags": dict(tags), "text": config_text}
        self.spool.put(entry)

    def log_tick(self, nimg: int, metrics: Mapping[str, float]) -> None:
        """Values at `nimg`; those this run already has at this nimg are left out."""
        system = self._sampler.take() if self._sampler else {}
        self._put_metrics(nimg, {**system, **metrics})

    def log_image(self, nimg: int, name: str, image: Image.Image) -> None:
        """A picture, in MLflow under `name` with a slider over nimg."""
        file = f"{re.sub(r'[^A-Za-z0-9_-]', '-', name)}-{nimg:012d}.png"
        entry = {"kind": "image", "nimg": nimg, "name": name, **_now()}
        self.spool.put_file(file, entry, lambda path: image.save(path, format="PNG"))

    def log_file(self, name: str, content: bytes) -> None:
        """An artifact; `name` is its path."""
        spooled = re.sub(r"[^A-Za-z0-9_.-]", "~", name)

        def write(path: Path) -> None:
            path.write_bytes(content)

        self.spool.put_file(f"file~{spooled}", {"kind": "file", "name": name}, write)

    def log_checkpoint(
        self,
        url: str,
        *,
        digest: str,
        nimg: int,
        metrics: Mapping[str, float] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        """A committed checkpoint; again with its metrics once they are known.

        Args:
            url: Its folder.
            digest: Of its commit marker.
            nimg: Images shown.
            metrics: Values such as metric/fid300, which are also logged at `nimg`.
            fingerprints: Of each metric, a digest of how it was measured.
        """
        if metrics:
            self._put_metrics(nimg, metrics)
        how = {f"{name} fingerprint": value for name, value in (fingerprints or {}).items()}
        row = {"nimg": nimg, **(metrics or {}), **how, "digest": digest, "url": url}
        self.spool.put({"kind": "checkpoint", "row": row})

    def flush(self, timeout_s: float = 30) -> bool:
        """Wait until all is with the server; whether it is."""
        return self.spool.wait_empty(timeout_s)

    def finish(self, status: Status, *, timeout_s: float = 30) -> bool:
        """Deliver what waits and end the run; whether all was delivered.

        What could not be delivered stays in the spool for the next start of the same training.
        """
        if not self._closing.is_set():
            self.spool.put({"kind": "end", "status": status, "session": self._session, **_now()})
            self._sender.hurry()
            self.flush(timeout_s)
            self._closing.set()
            self.spool.close()
            self._sender.hurry()
            self._thread.join(timeout=1)
        if waiting := len(self.spool):
            logger.warning(
                "MLflow at %s did not take all: %d entries wait in %s and are sent when this "
                "training is started again",
                self.config.uri,
                waiting,
                self.spool.path,
            )
        return not waiting

    def history(self, names: Sequence[str] | None = None) -> History:
        """What the run has been told so far (see `history`)."""
        self.flush()
        return history(self.config.uri, self.run_id, names)

    def _put_metrics(self, nimg: int, metrics: Mapping[str, float]) -> None:
        for name in metrics:
            if not _METRIC.fullmatch(name):
                raise ValueError(
                    f"metric name {name!r} is none MLflow takes; use letters, digits, spaces and "
                    f"_ - . /"
                )
        values = {name: float(value) for name, value in metrics.items()}
        self.spool.put({"kind": "metrics", "nimg": nimg, "values": values, **_now()})

    def _work(self) -> None:
        while not self._closing.is_set():
            if self.spool.wait(_SAMPLE_S if self._sampler else 60):
                self._sender.deliver()
            if self._sampler:
                self._sampler.sample()


def _create_run(client: "MlflowClient", config: TrackingConfig, name: str | None) -> str:
    """A new run in the experiment, which is made if need be."""
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        # Without a server there is nobody to say where artifacts go.
        place = None
        if config.uri.startswith("sqlite:///"):
            place = (sqlite_folder(config.uri).resolve() / "mlartifacts").as_uri()
        experiment_id = client.create_experiment(config.experiment, artifact_location=place)
    elif experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {config.experiment!r} was deleted in {config.uri}; restore it there or "
            f"choose another tracking.experiment"
        )
    else:
        experiment_id = experiment.experiment_id
    run_id: str = client.create_run(experiment_id, run_name=name).info.run_id
    return run_id


def _place(url: str) -> str:
    """The same for all ways to write it."""
    return str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")


def _exists(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        stage: str = client.get_run(run_id).info.lifecycle_stage
    except MlflowException as err:
        if err.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise TrackingError(f"run {run_id} cannot be looked up: {first_line(err)}") from err
    return stage == "active"


def _points(client: "MlflowClient", run_id: str, name: str) -> list[tuple[int, float]]:
    history = client.get_metric_history(run_id, name)
    return sorted((int(point.step), float(point.value)) for point in history)


def _sampler(config: TrackingConfig, run_id: str) -> SystemSampler | None:
    try:
        return SystemSampler(config.uri, run_id) if config.system_metrics else None
    except Exception as err:  # noqa: BLE001 (nothing of this may stop a training)
        logger.warning("no system metrics: %s", first_line(err))
        return None


def _now() -> dict[str, int]:
    return {"time_ms": round(time.time() * 1000)}
