"""Writes of a run that go on beside the training: in order, few at a time, tried until they work.

    uploads = Uploads(limit=2, patience_s=3600)
    if uploads.room(timeout_s=10):
        future = uploads.submit(write, "checkpoint 000-000000064000")

A store that is away costs nothing but the memory of what waits for it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from data_prep import storage

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE = storage.Retry(first_wait_s=1.0)
"""Between the tries of one write, each of which has repeated its calls for half a minute."""


class Uploads:
    """One thread's queue of writes (see the head of this file)."""

    def __init__(self, *, limit: int, patience_s: float) -> None:
        """Nothing is started before there is something to write.

        Args:
            limit: Writes under way or waiting at a time.
            patience_s: Seconds after which a write that fails is given up.
        """
        self._limit = limit
        self._patience_s = patience_s
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[Any]] = deque()
        self._abandoned = threading.Event()

    def room(self, *, timeout_s: float | None) -> bool:
        """Wait until one more may be given; whether it may. None waits for as long as it takes."""
        pending = [future for future in self._pending if not future.done()]
        excess = len(pending) - self._limit + 1
        return excess <= 0 or not wait(pending[:excess], timeout_s).not_done

    def submit(self, write: Callable[[], T], what: str) -> Future[T]:
        """Have `write` called until it raises no StorageError; `what` is for messages."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        future = self._pool.submit(self._persist, write, what)
        self._pending = deque(each for each in self._pending if not each.done())
        self._pending.append(future)
        return future

    def finish(self) -> None:
        """Return once all is written; raises what the last write raised, if it was given up."""
        last = self._pending[-1] if self._pending else None
        wait(self._pending)
        self._pending.clear()
        if last is not None:
            last.result()

    def abandon(self) -> None:
        """Try nothing again; what has begun ends or fails by itself."""
        self._abandoned.set()

    def _persist(self, write: Callable[[], T], what: str) -> T:
        begun_s, failures = time.monotonic(), 0
        while True:
            try:
                result = write()
            except storage.StorageError as err:
                wait_s = _PAUSE.wait_s(failures)
                failures += 1
                spent_s = time.monotonic() - begun_s
                if spent_s + wait_s > self._patience_s or self._abandoned.wait(wait_s):
                    raise
                logger.warning(
                    "%s is not written yet (%s); training goes on, and it is tried again until %g "
                    "s have passed",
                    what,
                    err,
                    self._patience_s,
                )
            else:
                if failures:
                    logger.warning("%s is written after %d failures", what, failures)
                return result
