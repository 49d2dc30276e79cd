"""What the workers say, passed on: to the terminal, to tracking, to the evaluation."""

import io
import logging
import threading

import ray
from PIL import Image

from data_prep import storage
from pipeline import cluster
from pipeline.config import TrainConfig
from pipeline.evaluations import Evaluations
from pipeline.observer import Commit
from pipeline.progress import Display
from pipeline.tracking import Tracker
from pipeline.watchdog import Watchdog

logger = logging.getLogger(__name__)

_POLL_S = 0.5


class Pump:
    """Takes what the workers say and passes it on, in a thread, for the time of a `with`."""

    def __init__(
        self, config: TrainConfig, tracker: Tracker, shown: Display, evaluations: Evaluations
    ) -> None:
        self._tracker = tracker
        self._shown = shown
        self._evaluations = evaluations
        self.box = cluster.mailbox()
        """Where the workers put what they say."""
        self.stopping = threading.Event()
        """Whoever sets it wants the workers to commit and end."""
        self._watchdog = Watchdog(config.watchdog)
        self._failure = ""
        self._taking = threading.Lock()
        self._reading = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="messages", daemon=True)

    def __enter__(self) -> "Pump":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.take()

    def _work(self) -> None:
        told = False
        while not self._ended.wait(_POLL_S):
            self.take()
            if (alarm := self._watchdog.look()) is not None:
                self._shown.say(f"{alarm.message}; the workers start again")
                self.box.order_restart.remote(alarm.group)
            if self.stopping.is_set() and not told:
                told = True
                self._shown.say("the workers commit and stop; a second signal stops them at once")
                self.box.order_stop.remote()

    def take(self) -> None:
        """Pass on what has been said so far."""
        with self._taking:
            self._take()

    def lasting(self) -> str:
        """What a worker has said that no restart will mend; empty if nothing."""
        self.take()
        return self._failure

    def _take(self) -> None:
        try:
            messages = ray.get(self.box.take.remote(), timeout=30)
        except ray.exceptions.RayError as err:
            if self._reading:
                logger.warning("messages of the workers cannot be read: %s; tried again", err)
            self._reading = False
            return
        self._reading = True
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
        elif message.kind == "beat":
            self._watchdog.hear(content)
        elif message.kind == "failed":
            self._failure = content
        else:
            self._shown.say(content)

    def _committed(self, commit: Commit) -> None:
        checkpoint = commit.checkpoint
        self._shown.committed(commit)
        self._tracker.log_checkpoint(checkpoint.url, digest=checkpoint.digest, nimg=checkpoint.nimg)
        grid = Image.open(io.BytesIO(storage.read_bytes(commit.samples_url)))
        self._tracker.log_image(checkpoint.nimg, "samples", grid)
        self._evaluations.offer(checkpoint)
