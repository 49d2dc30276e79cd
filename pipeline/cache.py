"""A bounded folder of verified copies, shared by the processes of a node.

    CACHE/files/<sha256>         whole shards and their indices
    CACHE/samples/ab/abcdef…     single images, by the digest in their shard's index
    CACHE/locks/00 … 63          empty; held only while a file is fetched

Names are digests of the content, so runs and data sets share a folder. Files appear by rename;
what was used longest ago is deleted first. The locks are the kernel's and die with their process.
A full disk ends caching, not the run.
"""

import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from data_prep import storage
from data_prep.manifest import DigestError

logger = logging.getLogger(__name__)

_LOCKS = 64
_PIECE_BYTES = 16 * 2**20
_STALE_S = 3600.0
"""Age at which a temporary file belongs to nobody."""


class DiskCache:
    """The cache in `folder`, at most `max_bytes` long over all processes of the node.

    With 0 nothing is written.
    """

    def __init__(self, folder: Path, *, max_bytes: int, retry: storage.Retry = storage.RETRY):
        self.folder = folder.expanduser()
        self.max_bytes = max_bytes
        self.retry = retry
        self._usable = max_bytes > 0
        self._lock = threading.Lock()
        self._unseen_bytes = max_bytes  # so that the first write looks at what is there

    def fetch(self, url: str, *, sha256: str, size: int) -> Path | None:
        """A local copy of the object at `url`, fetched once per node; None if there is no room.

        Raises:
            DigestError: It is not the object with this digest.
            StorageError: It cannot be read.
        """
        path = self.folder / "files" / sha256
        try:
            if _touch(path, size):
                return path
            # What is longer than half would push out all else, and itself.
            if not self._usable or size > self.max_bytes // 2:
                return None
            with self._one_process(sha256):
                if not _touch(path, size):
                    if path.exists():
                        logger.warning("copy of %s is cut short, fetched again", url)
                    self._download(url, path, sha256=sha256, size=size)
            self._count(size)
        except storage.StorageError:
            raise
        except OSError as err:
            self._give_up(err)
            return None
        return path

    def get(self, name: str) -> bytes | None:
        """The sample stored under this digest, unverified."""
        path = self._sample_path(name)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """Store a sample under its digest."""
        if not self._usable:
            return
        path = self._sample_path(name)
        try:
            with _replacing(path) as temporary:
                temporary.write_bytes(content)
            self._count(len(content))
        except OSError as err:
            self._give_up(err)

    def drop(self, name: str) -> None:
        """Forget a file or sample, because it is damaged."""
        try:
            for path in (self.folder / "files" / name, self._sample_path(name)):
                path.unlink(missing_ok=True)
        except OSError as err:
            self._give_up(err)

    def _download(self, url: str, path: Path, *, sha256: str, size: int) -> None:
        real_size = storage.size_bytes(url, retry=self.retry)
        if real_size != size:
            raise DigestError(f"{url} has {real_size} bytes, the manifest says {size}")
        for last in (False, True):  # once more, because the transfer may be at fault
            with _replacing(path) as temporary:
                digest = hashlib.sha256()
                with temporary.open("wb") as file:
                    for start in range(0, size, _PIECE_BYTES):
                        length = min(_PIECE_BYTES, size - start)
                        piece = storage.read_range(url, start, length, retry=self.retry)
                        digest.update(piece)
                        file.write(piece)
                if digest.hexdigest() == sha256:
                    return
                temporary.unlink()
            if last:
                raise DigestError(
                    f"{url} was altered: its SHA-256 is {digest.hexdigest()}, "
                    f"the manifest says {sha256}"
                )
            logger.warning("%s arrived altered: fetched again", url)

    @contextmanager
    def _one_process(self, name: str) -> Iterator[None]:
        path = self.folder / "locks" / f"{zlib.crc32(name.encode()) % _LOCKS:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sample_path(self, name: str) -> Path:
        return self.folder / "samples" / name[:2] / name

    def _give_up(self, err: OSError) -> None:
        if self._usable:
            self._usable = False
            logger.warning("no longer caching in %s: %s", self.folder, err)

    def _count(self, added_bytes: int) -> None:
        """Delete from time to time; between two looks every process adds little."""
        with self._lock:
            self._unseen_bytes += added_bytes
            if self._unseen_bytes < self.max_bytes // 64:
                return
            self._unseen_bytes = 0
        self._evict()

    def _evict(self) -> None:
        """Delete what was used longest ago; takes 40 bytes of memory for each file."""
        used_ns, sizes = array("q"), array("q")
        for entry, status in self._all_files():
            if entry.name.startswith(".") and time.time() - status.st_mtime > _STALE_S:
                Path(entry.path).unlink(missing_ok=True)
            else:
                used_ns.append(status.st_mtime_ns)
                sizes.append(status.st_size)
        total_bytes = sum(sizes)
        if total_bytes <= self.max_bytes * 7 // 8:
            return
        last_ns = _last_to_go(used_ns, sizes, total_bytes - self.max_bytes * 3 // 4)
        for entry, status in self._all_files():
            if status.st_mtime_ns <= last_ns:
                Path(entry.path).unlink(missing_ok=True)

    def _all_files(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """Of this cache alone: the folder may hold other things, which are not ours to delete."""
        folders = [str(self.folder / part) for part in ("files", "samples")]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                            continue
                        with suppress(FileNotFoundError):  # another process was faster
                            yield entry, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _last_to_go(used_ns: "array[int]", sizes: "array[int]", surplus_bytes: int) -> int:
    """When the youngest file was used of the oldest ones that together exceed the surplus."""
    times = np.frombuffer(used_ns, np.int64)
    oldest = np.argsort(times, kind="stable")
    freed = np.cumsum(np.frombuffer(sizes, np.int64)[oldest])
    return int(times[oldest[np.searchsorted(freed, surplus_bytes)]])


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` if it is still there at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _touch(path: Path, size: int) -> bool:
    """Whether `path` is there with this size; marks it as used."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
