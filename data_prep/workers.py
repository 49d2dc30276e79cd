"""Where and by whom shards are made on one machine: a scratch folder and a pool of processes."""

import contextlib
import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import IO, Protocol, TypeVar

from data_prep import storage

Task = TypeVar("Task")
Result = TypeVar("Result")


class Progress(Protocol):
    """Called after each part of the work."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


class _Numbered(Protocol):
    @property
    def number(self) -> int: ...


NumberedResult = TypeVar("NumberedResult", bound=_Numbered)

_PRELOADED = ["data_prep.shards", "webdataset"]


@contextlib.contextmanager
def workplace(dest: str) -> Iterator[Path]:
    """A locked local folder for files in the making; what a killed run left in it is removed."""
    if storage.is_local(dest):
        work = storage.local_path(dest) / "_work"
    else:
        name = hashlib.sha256(dest.encode()).hexdigest()[:12]
        work = Path(tempfile.gettempdir()) / f"data_prep-{os.getuid()}-{name}"
    ours = storage.is_local(dest) and not work.parent.exists()
    try:
        work.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as err:
        raise ValueError(f"{dest} is no folder; choose another DEST") from err
    except OSError as err:
        raise ValueError(
            f"{dest} cannot be written ({err.strerror}); repair that or choose another DEST"
        ) from err
    with (work / "lock").open("w") as lock:
        if not _locked(lock, work / "lock"):
            raise ValueError(f"another job is writing {dest}; wait for its end")
        scratch = work / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            (work / "lock").unlink(missing_ok=True)
            # Only what is empty goes: receipts stay for the next run.
            with contextlib.suppress(OSError):
                work.rmdir()
                if ours:
                    work.parent.rmdir()


def _locked(lock: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return False
    # A job that just ended may have removed the file that was opened here.
    return path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino


@contextlib.contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that end with this one, however it ends; None stands for this one alone."""
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def unordered(
    executor: ProcessPoolExecutor | None,
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    limit: int,
) -> Iterator[Result]:
    """Results as they come; at most `limit` tasks are taken from `tasks` ahead of them."""
    if executor is None:
        yield from map(function, tasks)
        return
    running: set[Future[Result]] = set()
    for task in tasks:
        running.add(executor.submit(function, task))
        if len(running) >= limit:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def in_order(results: Iterable[NumberedResult]) -> Iterator[NumberedResult]:
    """Results by their numbers from 0, each as soon as those before it are there."""
    waiting: dict[int, NumberedResult] = {}
    wanted = 0
    for result in results:
        waiting[result.number] = result
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1
