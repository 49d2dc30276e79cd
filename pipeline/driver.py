"""The driver of a run: checks, the group of workers, tracking, evaluation, registration.

It owns the MLflow run for the whole life of a training and the terminal. What the workers say comes
through a mailbox; what they compute lies in the run's folder, from which any driver can go on:

    RUN_URL/run.json             tracking run, so that a restart goes on with it
    RUN_URL/lock                 keeps a second training out, if this is a folder
    RUN_URL/config.yaml          what was asked for
    RUN_URL/checkpoints/         see pipeline.checkpoint
    RUN_URL/samples/             a grid of images with each checkpoint
    RUN_URL/evaluation/          values and fingerprints of each checkpoint evaluated
    RUN_URL/result.json          what came out
"""

import dataclasses
import io
import logging
import threading
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch
from PIL import Image
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from rich.console import Console

from data_prep import storage
from data_prep.manifest import Manifest
from data_prep.ray_start import start_ray
from pipeline import cluster, registry, report
from pipeline import config as configs
from pipeline.bundle import from_checkpoint
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.evaluations import Evaluations
from pipeline.loop import Commit
from pipeline.marker import CommittedCheckpoint
from pipeline.metric import MetricResult, comparable
from pipeline.preflight import absolute, claimed, local_folder, preflight, tracking_uri
from pipeline.progress import Display, display
from pipeline.record import read_record, update_record
from pipeline.result import Result
from pipeline.revision import code_revision
from pipeline.tracking import Status, Tracker

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
        uri = tracking_uri(self.config)
        manifest = preflight(self.config)
        with claimed(self.config):
            tracker = open_tracker(self.config, uri)
            status: Status = "FAILED"
            try:
                result = self._tracked(tracker, manifest)
                status = "FINISHED"
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                tracker.finish(status)
                if ray.is_initialized():
                    ray.shutdown()
        return result

    def _tracked(self, tracker: Tracker, manifest: Manifest) -> Result:
        config = self.config
        update_record(
            config.run_url, tracking_run_id=tracker.run_id, tracking_uri=tracker.config.uri
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
        with display(self.console) as shown:
            shown.say(f"{config.name}: {manifest.samples:,} images of {config.data.url}")
            shown.say(f"tracking  {tracker.url}")
            return self._run(tracker, shown)

    def _run(self, tracker: Tracker, shown: Display) -> Result:
        config = self.config
        evaluations = Evaluations(config, tracker, shown)
        shown.say(f"Ray starts with {config.workers} workers")
        start_ray(config.ray.address, workers=config.workers)
        evaluations.begin()
        with _Pump(self, tracker, shown, evaluations) as pump:
            self._fit(pump, tracker.run_id)
        last = Checkpoints(config.run_url).latest()
        assert last is not None, "a training that ends has committed"
        evaluations.finish()
        results = evaluations.results(last.nimg)
        registered = self._register(last, tracker, results, shown)
        first = evaluations.measurements.first()
        result = Result(
            run_url=config.run_url,
            checkpoint_url=last.url,
            checkpoint_digest=last.digest,
            nimg=last.nimg,
            metrics={f"metric/{result.name}": result.value for result in results},
            first_metrics={
                f"metric/{a.name}": a.value for a in first for b in results if comparable(a, b)
            },
            fingerprints={f"metric/{result.name}": result.fingerprint_digest for result in results},
            model=registered,
            alias=config.registry.alias,
            tracking_uri=tracker.config.uri,
            tracking_run_id=tracker.run_id,
        )
        result.write()
        self._report(tracker, shown)
        return result

    def _report(self, tracker: Tracker, shown: Display) -> None:
        """Leave a page that shows the run; a page that cannot be made ends no training."""
        tracker.flush()
        try:
            artifacts = report.make(self.config.run_url)
        except Exception as err:
            logger.debug("no report", exc_info=True)
            shown.say(f"no report: {err}; try python -m pipeline.report {self.config.run_url}")
            return
        for name, content in artifacts.items():
            tracker.log_file(name, content)
        shown.say(f"report    {storage.join(self.config.run_url, report.NAME)}")

    def _fit(self, pump: "_Pump", tracking_run_id: str) -> None:
        """Run the group of workers to the end of the training."""
        config = self.config
        payload = {
            "config": configs.to_dict(config),
            "mailbox": pump.box,
            "tracking_run_id": tracking_run_id,
        }
        use_gpu = cluster.use_gpus(
            config, gpus=cluster.resource("GPU"), cpus=cluster.resource("CPU")
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

    def _register(
        self,
        last: CommittedCheckpoint,
        tracker: Tracker,
        results: Sequence[MetricResult],
        shown: Display,
    ) -> str:
        """Put the last generator into the registry, once; NAME/VERSION."""
        config = self.config
        record = read_record(config.run_url)
        if record.get("registered_digest") == last.digest:
            return str(record["registered"])
        tracker.flush()
        metrics = {result.name: result.as_value() for result in results}
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
        update_record(config.run_url, registered=model, registered_digest=last.digest)
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


def open_tracker(config: TrainConfig, uri: str) -> Tracker:
    """The MLflow run of this training: a new one, or the one it has had before.

    A server that is away costs a restart nothing but a delay, as it does a training.

    Raises:
        TrackingError: The server of a new run does not answer.
    """
    record = read_record(config.run_url)
    return Tracker.open(
        dataclasses.replace(config.tracking, uri=uri),
        run_id=record.get("tracking_run_id"),
        spool=local_folder(config) / "tracking-spool",
        run_name=config.name,
        patient=record.get("tracking_uri") == uri,
    )
