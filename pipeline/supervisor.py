"""Starts the group of workers again where Ray Train does not: after what may get better.

    supervise(lambda: fit(config, payload), config, pump, say=print)

Ray's controller restarts a group whose workers or nodes have died. It gives up if it dies itself,
if the store fails it, or if the workers failed too often; then the failure is judged here. What
cannot get better (a wrong request, a bug, damaged data) ends the run at once. A store that is away
is waited for. All else is tried again, with growing pauses, until there have been too many failures
without a new checkpoint between them. Either way one sentence says which it was.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import ray.exceptions
import ray.train
from ray.train import ControllerError, WorkerGroupError

from data_prep import storage
from pipeline import cluster
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.minibatches import total_nimg_of

MAY_PASS = (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError)
"""What `fit` raises for reasons outside of it; everything else is a bug or a wrong request."""

_LOOK_S = 5.0
_PAUSE_S = 1.0


class TrainingFailedError(RuntimeError):
    """The group of workers failed for good; the message says why and what can be done."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a failure was."""

    reason: str
    """One sentence without its full stop."""
    lasting: bool = False
    """Starting again would not mend it."""
    store: bool = False
    """A store did not answer."""


class Workers(Protocol):
    """What `supervise` wants to know of the workers."""

    @property
    def stopping(self) -> threading.Event:
        """Set if they shall end before the training does."""
        ...

    def lasting(self) -> str:
        """What one has said that no restart will mend; empty if nothing."""
        ...


def supervise(
    fit: Callable[[], int], config: TrainConfig, workers: Workers, *, say: Callable[[str], None]
) -> int:
    """Call `fit` until the training is at its end, or shall stop; images shown.

    Args:
        fit: Runs the group of workers, from the newest checkpoint on; images shown.
        config: Of the run.
        workers: What they say.
        say: Is told of every failure.

    Raises:
        TrainingFailedError: It cannot get better, or has not for too long.
    """
    failures = 0
    while True:
        before = _newest(config)
        try:
            nimg = fit()
        except MAY_PASS as err:
            verdict = judge(err)
            _refuse_lasting(verdict, workers, err)
            if verdict.store and _store_was_away(config, verdict.reason, say):
                continue
            # Ray's own restarts have all failed by the time it reports the workers.
            failures += config.ray.max_failures if isinstance(err, WorkerGroupError) else 1
            if _newest(config) != before:
                failures = 1
            if failures >= max(config.ray.max_failures, 1):
                raise TrainingFailedError(
                    f"{verdict.reason}; {config.ray.max_failures} failures (ray.max_failures) "
                    f"without a new checkpoint between them are too many: run the same command "
                    f"again to go on from the last one"
                ) from err
            wait_s = config.ray.pause_s(failures - 1)
            say(f"{verdict.reason}; that may pass: the workers start again in {wait_s:.0f} s")
            workers.stopping.wait(wait_s)
        else:
            if nimg >= total_nimg_of(config) or workers.stopping.is_set():
                return nimg
            say("a node is taken away: the workers have committed and start again without it")


def _refuse_lasting(verdict: Verdict, workers: Workers, err: Exception) -> None:
    """Raise where trying again would not help, or is not wanted."""
    if message := workers.lasting():
        raise TrainingFailedError(message) from err
    if verdict.lasting:
        raise TrainingFailedError(f"{verdict.reason}; starting again would not mend that") from err
    if workers.stopping.is_set():
        raise KeyboardInterrupt from err


def judge(err: BaseException) -> Verdict:
    """Tell what may get better from what cannot."""
    causes = list(_causes(err))
    for cause in causes:
        if isinstance(cause, cluster.LASTING):
            return Verdict(reason=_sentence(cause), lasting=True)
    for cause in causes:
        if isinstance(cause, ray.exceptions.RayError):
            continue
        if isinstance(cause, OSError):
            return Verdict(reason=f"a store failed: {_sentence(cause)}", store=True)
    if isinstance(err, WorkerGroupError):
        return Verdict(reason=f"the workers failed: {_sentence(causes[-1])}")
    if isinstance(err, ray.exceptions.RayActorError):
        return Verdict(reason="the controller of the workers died")
    return Verdict(reason=f"the workers could not be run: {_sentence(causes[-1])}")


def _causes(err: BaseException) -> Iterator[BaseException]:
    """The error and what it reports of, the innermost last."""
    yield err
    inner: list[BaseException | None] = []
    if isinstance(err, WorkerGroupError):
        inner = [err.worker_failures[rank] for rank in sorted(err.worker_failures)]
    elif isinstance(err, ControllerError):
        inner = [err.controller_failure]
    else:
        inner = [getattr(err, "cause", None), err.__cause__]
    for each in inner:
        if isinstance(each, BaseException) and each is not err:
            yield from _causes(each)


def _sentence(err: BaseException) -> str:
    text = str(err).strip()
    last = text.splitlines()[-1].strip() if text else ""
    first = text.splitlines()[0].strip() if text else ""
    shown = first if isinstance(err, (*cluster.LASTING, OSError)) else last
    return f"{type(err).__name__}: {shown}".rstrip(": .")


def _newest(config: TrainConfig) -> str:
    """URL of the newest checkpoint; empty if there is none, or nobody can tell."""
    try:
        latest = Checkpoints(config.run_url).latest()
    except storage.StorageError:
        return ""
    return latest.url if latest else ""


def _store_was_away(config: TrainConfig, reason: str, say: Callable[[str], None]) -> bool:
    """Wait for the stores of the run; whether they had to be waited for.

    Raises:
        TrainingFailedError: One did not answer for `checkpoint.patience_s`.
    """
    begun_s, told = time.monotonic(), False
    while True:
        try:
            for url in (config.run_url, config.data.url):
                storage.check_reachable(url, patience_s=_LOOK_S)
        except storage.StorageError as err:
            if time.monotonic() - begun_s > config.checkpoint.patience_s:
                raise TrainingFailedError(
                    f"{err}; it was waited for {config.checkpoint.patience_s:g} s "
                    f"(checkpoint.patience_s): run the same command again once it answers"
                ) from err
            if not told:
                say(f"{reason}; that may pass: the training goes on when the store answers")
            told = True
            time.sleep(_PAUSE_S)
        else:
            if told:
                say(f"the store answers again, after {time.monotonic() - begun_s:.0f} s")
            return told
