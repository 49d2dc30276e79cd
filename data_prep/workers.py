"""Where and by whom shards are made: a scratch folder, and executors of tasks.

    with process_pool(8) as executor:
        for result in unordered(executor, function, tasks):
            ...

Processes of this machine are one executor; `data_prep.ray_tasks` has the other, a cluster.
"""

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
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from data_prep import storage

Task = TypeVar("Task")
Result = TypeVar("Result")


class Progress(Protocol):
    """Called after each part of the work."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


class Executor(Protocol):
    """Does tasks, in whatever order."""

    @property
    def at_once(self) -> int:
        """Tasks that may be with it at a time; what bounds the memory of all."""
        ...

    def submit(self, function: Callable[[Task], Result], task: Task, /) -> Any:
        """Begin a task; a handle of it."""
        ...

    def wait(self, running: list[Any], /) -> tuple[list[Any], list[Any]]:
        """Results of at least one of these handles, and the handles that are still running.

        Raises:
            LostWorkersError: Whoever did a task died.
        """
        ...


class LostWorkersError(RuntimeError):
    """Processes that did a task died, again and again where it was repeated."""


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
def process_pool(workers: int | None) -> Iterator[Executor]:
    """Processes that end with this one, however it ends; None: one for each core."""
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield _Here()
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # The server of forks has the environment of its start: that of now goes along.
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(dict(os.environ),)
    )
    try:
        yield _Processes(pool, workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Here:
    """This process alone."""

    at_once = 1

    def submit(self, function: Callable[[Task], Result], task: Task) -> Result:
        return function(task)

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        return running, []


class _Processes:
    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self._pool = pool
        self.at_once = workers + 1

    def submit(self, function: Callable[[Task], Result], task: Task) -> Any:
        return self._pool.submit(function, task)

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        done, left = wait(running, return_when=FIRST_COMPLETED)
        try:
            return [future.result() for future in done], list(left)
        except BrokenProcessPool as err:
            raise LostWorkersError(
                "a worker process died, probably for want of memory; run the same command again "
                "to go on, with fewer --workers"
            ) from err


def _begin_worker(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def unordered(
    executor: Executor, function: Callable[[Task], Result], tasks: Iterable[Task]
) -> Iterator[Result]:
    """Results as they come; tasks are taken no further ahead of them than the executor allows."""
    running: list[Any] = []
    for task in tasks:
        running.append(executor.submit(function, task))
        if len(running) >= executor.at_once:
            done, running = executor.wait(running)
            yield from done
    while running:
        done, running = executor.wait(running)
        yield from done


def in_order(results: Iterable[NumberedResult]) -> Iterator[NumberedResult]:
    """Results by their numbers from 0, each as soon as those before it are there."""
    waiting: dict[int, NumberedResult] = {}
    wanted = 0
    for result in results:
        waiting[result.number] = result
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1
