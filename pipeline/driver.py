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
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait

import ray
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
from pipeline.group import fit
from pipeline.marker import CommittedCheckpoint
from pipeline.metric import MetricResult, comparable
from pipeline.minibatches import total_nimg_of
from pipeline.preflight import absolute, claimed, local_folder, preflight, tracking_uri
from pipeline.progress import Display, display
from pipeline.pump import Pump
from pipeline.record import read_record, update_record
from pipeline.result import Result, read_result
from pipeline.revision import code_revision
from pipeline.signals import stopping_by
from pipeline.supervisor import supervise
from pipeline.tracking import Status, Tracker

logger = logging.getLogger(__name__)

_SIGNALS_S = 0.2


class Driver:
    """Runs a configuration to its end (see the head of this file)."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config = absolute(config)
        self.console = console

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
            complete = self._complete()
            status: Status = "FINISHED" if complete else "FAILED"
            try:
                result = self._tracked(tracker, manifest, complete=complete)
                status = "FINISHED"
            except KeyboardInterrupt:
                if not complete:
                    status = "KILLED"
                raise
            finally:
                tracker.finish(status)
                if ray.is_initialized():
                    ray.shutdown()
        return result

    def _complete(self) -> bool:
        """Whether the run has come to its end before: what it was made with stays true."""
        try:
            return read_result(self.config.run_url).nimg >= total_nimg_of(self.config)
        except storage.MissingError:
            return False

    def _tracked(self, tracker: Tracker, manifest: Manifest, *, complete: bool) -> Result:
        config = self.config
        revision = {} if complete else {"code_revision": code_revision()}
        update_record(
            config.run_url, tracking_run_id=tracker.run_id, tracking_uri=tracker.config.uri
        )
        tracker.describe(
            params=configs.to_dict(config),
            tags={
                "data_digest": manifest.digest,
                "config_digest": config.digest,
                **revision,
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
        start_ray(config.ray.address, workers=config.worker_range[1])
        evaluations.begin()
        shown.say(f"Ray is up; {_counted(config.worker_range)} are started")
        with Pump(config, tracker, shown, evaluations) as pump, stopping_by(pump.stopping.set):
            nimg = self._train(pump, shown, tracker.run_id)
        if nimg < total_nimg_of(config):
            raise KeyboardInterrupt
        last = Checkpoints(config.run_url).latest()
        assert last is not None, "a training that ends has committed"
        evaluations.finish()
        chosen = last
        if config.registry.checkpoint == "best":
            chosen = evaluations.measurements.best(Checkpoints(config.run_url).list()) or last
        results = evaluations.results(chosen)
        registered = self._register(chosen, tracker, results, shown)
        first = evaluations.measurements.first()
        result = Result(
            run_url=config.run_url,
            checkpoint_url=chosen.url,
            checkpoint_digest=chosen.digest,
            nimg=chosen.nimg,
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

    def _train(self, pump: Pump, shown: Display, tracking_run_id: str) -> int:
        """Run the group of workers to the end, whatever happens to it; images shown."""
        config = self.config
        payload = {
            "config": configs.to_dict(config),
            "mailbox": pump.box,
            "tracking_run_id": tracking_run_id,
        }
        use_gpu = cluster.use_gpus(
            config, gpus=cluster.resource("GPU"), cpus=cluster.resource("CPU")
        )

        future: Future[int] = Future()

        def work() -> None:
            try:
                future.set_result(
                    supervise(
                        lambda: fit(config, payload, use_gpu=use_gpu), config, pump, say=shown.say
                    )
                )
            except BaseException as err:  # noqa: BLE001 (raised below)
                future.set_exception(err)

        # In a thread, because in the main one Ray would take Ctrl-C for itself.
        threading.Thread(target=work, name="training", daemon=True).start()
        while not wait([future], _SIGNALS_S).done:
            pass
        return future.result()

    def _register(
        self,
        checkpoint: CommittedCheckpoint,
        tracker: Tracker,
        results: Sequence[MetricResult],
        shown: Display,
    ) -> str:
        """Put a generator into the registry, once; NAME/VERSION."""
        config = self.config
        record = read_record(config.run_url)
        if record.get("registered_digest") == checkpoint.digest:
            return str(record["registered"])
        tracker.flush()
        metrics = {result.name: result.as_value() for result in results}
        bundle = from_checkpoint(checkpoint.url, metrics=metrics, code_revision=code_revision())
        name = config.registry.name or config.name
        decisive = config.evaluation.decisive
        registered = registry.register(
            bundle,
            uri=tracker.config.uri,
            run_id=tracker.run_id,
            name=name,
            alias=config.registry.alias,
            decide_by=decisive if decisive in metrics else next(iter(metrics), ""),
        )
        model = f"{name}/{registered.version}"
        shown.say(f"registered {model}; {registered.reason}")
        update_record(config.run_url, registered=model, registered_digest=checkpoint.digest)
        return model


def _counted(worker_range: tuple[int, int]) -> str:
    least, most = worker_range
    return f"{most} worker{'s' * (most > 1)}" if least == most else f"{least} to {most} workers"


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
