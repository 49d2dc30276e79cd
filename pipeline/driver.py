"""The driver of a run: checks, the group of workers, tracking, evaluation, registration.

It owns the MLflow run for the whole life of a training and the terminal. What the workers say comes
through a mailbox; what they compute lies in the run's folder, from which any driver can go on:

    RUN_URL/run.json             tracking run, so that a restart goes on with it
    RUN_URL/config.yaml          what was asked for
    RUN_URL/checkpoints/         see pipeline.checkpoint
    RUN_URL/samples/             a grid of images with each checkpoint
    RUN_URL/evaluation/          values and fingerprints of each checkpoint evaluated
    RUN_URL/result.json          what came out
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from PIL import Image
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from rich.console import Console

from data_prep import storage
from data_prep.manifest import Manifest
from pipeline import cluster, registry
from pipeline import config as configs
from pipeline.bundle import from_checkpoint
from pipeline.checkpoint import Checkpoints, CommittedCheckpoint
from pipeline.config import ConfigError, TrainConfig
from pipeline.evaluations import Evaluations
from pipeline.loop import Commit, refuse_changes
from pipeline.minibatches import total_nimg_of
from pipeline.progress import Display, display
from pipeline.result import Result
from pipeline.revision import code_revision
from pipeline.tracking import Status, Tracker, default_uri

logger = logging.getLogger(__name__)

_POLL_S = 0.5


class TrainingFailedError(RuntimeError):
    """The group of workers failed for good; the message says why and what can be done."""


class Driver:
    """Runs a configuration to its end (see the head of this file)."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config = absolute(config)
        self.console = console
        self.failure = ""
        """What a worker said that no restart will mend."""

    def run(self) -> Result:
        """Train, evaluate, register.

        Raises:
            ConfigError: The request cannot be met; said before anything starts.
            StorageError: A store or the tracking server does not answer.
            TrainingFailedError: The workers failed for good.
        """
        config = self.config
        manifest = preflight(config)
        record = _read_record(config)
        tracker = self._open_tracker(record)
        _write_record(
            config, {"tracking_run_id": tracker.run_id, "tracking_uri": tracker.config.uri}
        )
        tracker.describe(
            params=configs.to_dict(config),
            tags={
                "data_digest": manifest.digest,
                "config_digest": config.digest,
                "code_revision": code_revision(),
                "run_url": config.run_url,
            },
            config_text=configs.to_yaml(config),
        )
        status: Status = "FAILED"
        try:
            with display(self.console) as shown:
                shown.say(f"{config.name}: {manifest.samples:,} images of {config.data.url}")
                shown.say(f"tracking  {tracker.url}")
                result = self._run(tracker, shown)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
            if ray.is_initialized():
                ray.shutdown()
        return result

    def _run(self, tracker: Tracker, shown: Display) -> Result:
        config = self.config
        evaluations = Evaluations(config, tracker, shown)
        shown.say(f"Ray starts with {config.workers} workers")
        cluster.start_ray(config.ray.address, workers=config.workers)
        evaluations.begin()
        with _Pump(self, tracker, shown, evaluations) as pump:
            self._fit(pump, tracker.run_id)
        last = Checkpoints(config.run_url).latest()
        assert last is not None, "a training that ends has committed"
        evaluations.finish()
        registered = self._register(last, tracker, evaluations, shown)
        first = min(evaluations.done(), default=last.nimg)
        result = Result(
            run_url=config.run_url,
            checkpoint_url=last.url,
            checkpoint_digest=last.digest,
            nimg=last.nimg,
            metrics=evaluations.values(last.nimg),
            first_metrics=evaluations.values(first),
            model=registered,
            alias=config.registry.alias,
            tracking_uri=tracker.config.uri,
            tracking_run_id=tracker.run_id,
        )
        result.write()
        return result

    def _fit(self, pump: "_Pump", tracking_run_id: str) -> None:
        """Run the group of workers to the end of the training."""
        config = self.config
        payload = {
            "config": configs.to_dict(config),
            "mailbox": pump.box,
            "tracking_run_id": tracking_run_id,
        }
        gpus = cluster.resource("GPU")
        use_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
        if use_gpu and gpus < config.workers:
            raise ConfigError(
                f"workers is {config.workers}, but the cluster has {gpus:.0f} GPUs; set "
                f"workers={max(int(gpus), 1)}, add nodes, or train on CPUs with device=cpu"
            )
        callbacks: list[Any] = [StopOnLasting()]
        trainer = ray.train.torch.TorchTrainer(
            cluster.train_worker,
            train_loop_config=payload,
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name="ray",
                storage_path=config.run_url.removeprefix("file://"),
                failure_config=FailureConfig(max_failures=config.ray.max_failures),
                callbacks=callbacks,
            ),
        )
        # Whatever Ray remembers of an earlier group: the state of a run is its checkpoints.
        storage.delete(storage.join(config.run_url, "ray"), recursive=True)
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as err:
            pump.take()
            if self.failure:
                raise TrainingFailedError(self.failure) from err
            raise TrainingFailedError(
                f"the workers failed more than {config.ray.max_failures} times: {err}; run the "
                f"same command again to go on from the last checkpoint"
            ) from err
        finally:
            storage.delete(storage.join(config.run_url, "ray"), recursive=True)

    def _open_tracker(self, record: dict[str, str]) -> Tracker:
        config = self.config
        uri = tracking_uri(config)
        return Tracker.open(
            dataclasses.replace(config.tracking, uri=uri),
            run_id=record.get("tracking_run_id"),
            spool=_spool_folder(config),
            run_name=config.name,
        )

    def _register(
        self, last: CommittedCheckpoint, tracker: Tracker, done: Evaluations, shown: Display
    ) -> str:
        """Put the last generator into the registry, once; NAME/VERSION."""
        config = self.config
        record = _read_record(config)
        if record.get("registered_digest") == last.digest:
            return record["registered"]
        tracker.flush()
        metrics = {result.name: result.as_value() for result in done.results(last.nimg)}
        bundle = from_checkpoint(last.url, metrics=metrics, code_revision=code_revision())
        name = config.registry.name or config.name
        registered = registry.register(
            bundle,
            uri=tracker.config.uri,
            run_id=tracker.run_id,
            name=name,
            alias=config.registry.alias,
            decide_by=next(iter(metrics), ""),
        )
        model = f"{name}/{registered.version}"
        shown.say(f"registered {model}; {registered.reason}")
        _write_record(config, {**record, "registered": model, "registered_digest": last.digest})
        return model


class StopOnLasting(UserCallback):
    """Ends a training at once where no restart would help."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise in the controller what a worker raised and will raise again."""
        for err in worker_exceptions.values():
            cause = getattr(err, "cause", None) or err
            if isinstance(cause, cluster.LASTING):
                raise cause


class _Pump:
    """Takes what the workers say and passes it on, in a thread, for the time of a `with`."""

    def __init__(
        self, driver: Driver, tracker: Tracker, shown: Display, evaluations: Evaluations
    ) -> None:
        self._driver = driver
        self._tracker = tracker
        self._shown = shown
        self._evaluations = evaluations
        self.box = cluster.mailbox()
        """Where the workers put what they say."""
        self._taking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="messages", daemon=True)

    def __enter__(self) -> "_Pump":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.take()

    def _work(self) -> None:
        while not self._ended.wait(_POLL_S):
            self.take()

    def take(self) -> None:
        """Pass on what has been said so far."""
        with self._taking:
            self._take()

    def _take(self) -> None:
        try:
            messages = ray.get(self.box.take.remote(), timeout=30)
        except ray.exceptions.RayError as err:
            logger.warning("messages of the workers cannot be read: %s", err)
            return
        for message in messages:
            try:
                self._handle(message)
            except Exception as err:  # noqa: BLE001 (reporting must not end a training)
                logger.warning("%s could not be reported: %s", message.kind, err)

    def _handle(self, message: cluster.Message) -> None:
        content = message.content
        if message.kind == "began":
            self._shown.began(*content)
        elif message.kind == "tick":
            self._shown.tick(content)
            self._tracker.log_tick(content.nimg, content.metrics)
        elif message.kind == "committed":
            self._committed(content)
        elif message.kind == "failed":
            self._driver.failure = content
        else:
            self._shown.say(content)

    def _committed(self, commit: Commit) -> None:
        checkpoint = commit.checkpoint
        self._shown.committed(commit)
        self._tracker.log_checkpoint(checkpoint.url, digest=checkpoint.digest, nimg=checkpoint.nimg)
        grid = Image.open(io.BytesIO(storage.read_bytes(commit.samples_url)))
        self._tracker.log_image(checkpoint.nimg, "samples", grid)
        self._evaluations.offer(checkpoint)


def preflight(config: TrainConfig) -> Manifest:
    """Everything that can be known to be wrong before anything starts.

    Raises:
        ConfigError: Data or earlier checkpoints do not fit.
        StorageError: A store does not answer.
    """
    storage.check_reachable(config.data.url)
    storage.check_reachable(config.run_url)
    tracking_uri(config)
    try:
        manifest = Manifest.load(config.data.url)
    except storage.MissingError as err:
        raise ConfigError(
            f"data.url {config.data.url} holds no data set ({err}); make one with "
            f"`python -m data_prep shard SOURCE {config.data.url} --resolution "
            f"{config.network.resolution}`"
        ) from err
    config.check_data(manifest)
    latest = Checkpoints(config.run_url).latest()
    if latest is not None:
        _, scalars = Checkpoints.load(latest, set())
        refuse_changes(config, scalars, manifest, latest.url)
        if latest.nimg > total_nimg_of(config):
            logger.warning(
                "%s is at %d images, past schedule.total_kimg=%g: nothing is left to train",
                config.run_url,
                latest.nimg,
                config.schedule.total_kimg,
            )
    return manifest


def absolute(config: TrainConfig) -> TrainConfig:
    """Local paths made absolute: workers have other working directories."""
    return dataclasses.replace(
        config,
        run_url=_absolute(config.run_url),
        init_from=_absolute(config.init_from) if config.init_from else "",
        data=dataclasses.replace(config.data, url=_absolute(config.data.url)),
    )


def tracking_uri(config: TrainConfig) -> str:
    """Where MLflow is: the option, else MLFLOW_TRACKING_URI, else a file in the run's folder."""
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("sqlite:///~"):
        return "sqlite:///" + str(Path(uri.removeprefix("sqlite:///")).expanduser())
    if uri:
        return uri
    if storage.is_local(config.run_url):
        return default_uri(storage.local_path(config.run_url))
    raise ConfigError(
        f"tracking.uri is empty and run_url {config.run_url} is no local folder for its default, a "
        f"SQLite file; set tracking.uri=http://HOST:PORT or MLFLOW_TRACKING_URI"
    )


def _absolute(url: str) -> str:
    if "://" in url:
        return url
    return str(Path(url).expanduser().absolute())


def _spool_folder(config: TrainConfig) -> Path:
    if storage.is_local(config.run_url):
        return storage.local_path(config.run_url) / "tracking-spool"
    name = hashlib.sha256(config.run_url.encode()).hexdigest()[:16]
    return config.loader.cache_dir.expanduser() / "tracking-spool" / name


def _read_record(config: TrainConfig) -> dict[str, str]:
    url = storage.join(config.run_url, "run.json")
    try:
        record: dict[str, str] = json.loads(storage.read_bytes(url))
    except storage.MissingError:
        return {}
    return record


def _write_record(config: TrainConfig, record: dict[str, str]) -> None:
    url = storage.join(config.run_url, "run.json")
    known = _read_record(config)
    storage.write_atomic(url, json.dumps({**known, **record}, indent=1).encode())
    config_url = storage.join(config.run_url, "config.yaml")
    storage.write_atomic(config_url, configs.to_yaml(config).encode())
