"""Files by URL: local folders and object stores alike, through fsspec, with retries.

Any fsspec URL works (`folder/x`, `file:///x`, `s3://bucket/x`, `memory://x`, `https://host/x`).
Options of a store come from the environment alone; for S3 these are AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION, as s3fs reads them. An authority of
one's own is trusted for https by SSL_CERT_FILE, for S3 by AWS_CA_BUNDLE.

What is transient (silence, resets, 5xx, short bodies) is tried again, here and nowhere below; what
is not (missing, forbidden, disk full) fails at once. S3 credentials that are refused are looked up
anew, as `~/.aws/credentials`, a `credential_process` or the node may have renewed them; those in
AWS_* variables cannot change. Every failure is a `StorageError` with the URL. `check_reachable`
finds out at the start of a program.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from data_prep import failures, local_files
from data_prep.stores import (
    HTTP_SCHEMES,
    STALL_S,
    is_s3,
    open_store,
    renew_credentials,
    s3_endpoint,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE_BYTES = 16 * 2**20


class StorageError(OSError):
    """An object could not be read or written; the message names its URL."""


class MissingError(StorageError, FileNotFoundError):
    """There is no object at this URL."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and how patiently a call is repeated."""

    attempts: int = 8
    """Calls in all, the first one included."""
    first_wait_s: float = 0.25
    """Seconds before the second call; doubled for each further one."""
    longest_wait_s: float = 15.0
    """Upper bound of one wait in seconds."""
    stall_s: float = STALL_S
    """Seconds without a byte after which a call has failed."""

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait after failed call number `attempt` (from 0), with jitter."""
        wait_s: float = min(self.first_wait_s * 2.0**attempt, self.longest_wait_s)
        return wait_s * SystemRandom().uniform(0.5, 1.0)


@dataclass(frozen=True)
class Found:
    """What a listing says about an object."""

    size: int
    """Bytes."""
    version: str
    """ETag, or else the time of change; empty if the store gives neither."""


RETRY = Retry()
"""The usual patience: half a minute with a store that refuses, minutes with one that hangs."""

is_temporary = local_files.is_temporary


def join(url: str, *parts: str) -> str:
    """`url` with path components appended."""
    if not url:
        raise ValueError("the URL of a folder is empty; name it, or write . for the one you are in")
    return "/".join([url.rstrip("/") if url != "/" else "", *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Whether `url` names a file of this machine."""
    return isinstance(open_store(url)[0], LocalFileSystem)


def local_path(url: str) -> Path:
    """The path of a local URL."""
    fs, path = open_store(url)
    if not isinstance(fs, LocalFileSystem):
        raise ValueError(f"{url} is no local file")
    return Path(path)


def read_bytes(url: str, *, size: int | None = None, retry: Retry = RETRY) -> bytes:
    """The whole object; another length than `size` counts as a failed call."""

    def call(fs: Any, path: str) -> bytes:
        content: bytes = fs.cat_file(path)
        _check_length(len(content), size)
        return content

    return _retried("read", url, call, retry)


def read_range(url: str, start: int, length: int, *, retry: Retry = RETRY) -> bytes:
    """`length` bytes from offset `start`; never fewer."""
    if length == 0:
        return b""

    def call(fs: Any, path: str) -> bytes:
        content: bytes = fs.cat_file(path, start=start, end=start + length)
        _check_length(len(content), length)
        return content

    return _retried(f"read bytes {start} to {start + length - 1} of", url, call, retry)


def write_atomic(url: str, content: bytes, *, retry: Retry = RETRY) -> None:
    """Make `content` appear at `url` as a whole or not at all."""

    def call(fs: Any, path: str) -> None:
        if isinstance(fs, LocalFileSystem):
            with local_files.replacing(Path(path)) as temporary:
                temporary.write_bytes(content)
        else:
            fs.pipe_file(path, content)

    _retried("write", url, call, retry)


def upload(path: Path, url: str, *, move: bool = False, retry: Retry = RETRY) -> None:
    """Make the local file `path` appear at `url` as a whole or not at all.

    Args:
        path: A file of this machine.
        url: Where it goes.
        move: `path` is not needed afterwards; it is gone on return.
        retry: Patience.
    """
    size = path.stat().st_size

    def call(fs: Any, target: str) -> None:
        if isinstance(fs, LocalFileSystem):
            local_files.place(path, Path(target), move=move)
            return
        fs.put_file(str(path), target)
        _check_length(int(fs.info(target)["size"]), size)

    _retried("write", url, call, retry)
    if move:
        path.unlink(missing_ok=True)


def download(url: str, path: Path, *, retry: Retry = RETRY) -> None:
    """Make the object at `url` appear as the local file `path` as a whole or not at all."""

    def call(fs: Any, source: str) -> None:
        size = fs.info(source)["size"]
        with local_files.replacing(path) as temporary:
            fs.get_file(source, str(temporary))
            _check_length(temporary.stat().st_size, size)

    _retried("read", url, call, retry)


def exists(url: str, *, retry: Retry = RETRY) -> bool:
    """Whether there is an object or a folder at `url`; a failing store raises."""
    try:
        _retried("look up", url, lambda fs, path: fs.info(path), retry)
    except MissingError:
        return False
    return True


def size_bytes(url: str, *, retry: Retry = RETRY) -> int:
    """Length of the object at `url`."""
    size = _retried("look up", url, lambda fs, path: fs.info(path), retry)["size"]
    if size is None:
        raise StorageError(f"cannot read {url} in parts: the server does not say its length")
    return int(size)


def sha256(url: str, *, retry: Retry = RETRY) -> str:
    """Hexadecimal SHA-256 of the object at `url`, read in pieces."""
    digest = hashlib.sha256()
    size = size_bytes(url, retry=retry)
    for start in range(0, size, _PIECE_BYTES):
        digest.update(read_range(url, start, min(_PIECE_BYTES, size - start), retry=retry))
    return digest.hexdigest()


def listdir(url: str, *, retry: Retry = RETRY) -> list[str]:
    """Sorted names of the objects and folders directly below `url`; none if it does not exist."""

    def call(fs: Any, path: str) -> list[str]:
        folder = path.rstrip("/")
        paths = (str(name).rstrip("/") for name in fs.ls(path, detail=False))
        return sorted(name.rsplit("/", 1)[-1] for name in paths if name != folder)

    try:
        return _retried("list", url, call, retry)
    except MissingError:
        return []


def is_folder(url: str, *, retry: Retry = RETRY) -> bool:
    """Whether `url` names a folder; on web servers those URLs do that end in a slash.

    Raises:
        MissingError: It names nothing.
    """
    if url.startswith(HTTP_SCHEMES):
        return url.endswith("/")
    kind = _retried("look up", url, lambda fs, path: fs.info(path), retry)["type"]
    return bool(kind == "directory")


def find(url: str, *, retry: Retry = RETRY) -> dict[str, Found]:
    """All objects below `url` by their paths from there, sorted."""

    def call(fs: Any, path: str) -> dict[str, dict[str, Any]]:
        root = path.rstrip("/") + "/"
        found = fs.find(path, detail=True)
        # Some stores keep empty objects with the names of folders.
        return {
            str(name).removeprefix(root): info
            for name, info in sorted(found.items())
            if not str(name).endswith("/") and info.get("type") != "directory"
        }

    def complete(name: str, info: dict[str, Any]) -> dict[str, Any]:
        # Web servers list names alone.
        if info.get("size") is not None:
            return info
        return dict(_retried("look up", join(url, name), lambda fs, path: fs.info(path), retry))

    listed = {
        name: complete(name, info) for name, info in _retried("list", url, call, retry).items()
    }
    return {
        name: Found(
            int(info.get("size") or 0),
            str(info.get("ETag") or info.get("LastModified") or info.get("mtime") or ""),
        )
        for name, info in listed.items()
    }


def delete(url: str, *, recursive: bool = False, retry: Retry = RETRY) -> None:
    """Remove the object at `url`, or all below it; what is not there is no error."""
    try:
        _retried("delete", url, lambda fs, path: fs.rm(path, recursive=recursive), retry)
    except MissingError:
        logger.debug("%s was not there to delete", url)


def check_reachable(url: str, *, patience_s: float = 10.0) -> None:
    """Make sure that the store of `url` answers; whether there is something is not asked.

    For the start of a program: it does not wait for minutes as reads and writes do.

    Raises:
        StorageError: It does not answer in time, or refuses; names the store and the remedy.
        ValueError: No store is known by this name.
    """
    if is_local(url):
        return
    failure: Exception | None = TimeoutError("no answer")
    ended = threading.Event()

    def ask() -> None:
        nonlocal failure
        while not ended.is_set():
            try:
                fs, path = open_store(url)
                fs.info(f"{path.rstrip('/')}/manifest.json")  # a bucket alone would not be asked
                failure = None
            except Exception as err:  # noqa: BLE001 (no one above: check_reachable raises it)
                failure = failures.real_error(err)
                if failures.is_storage_failure(failure) and failures.is_transient(failure):
                    ended.wait(1.0)
                    continue
            ended.set()

    # A thread, because a store that hangs cannot be interrupted.
    threading.Thread(target=ask, daemon=True).start()
    in_time = ended.wait(patience_s)
    ended.set()
    err = failure
    if err is not None and not failures.is_missing_object(err):
        raise _unreachable(url, err, patience_s=None if in_time else patience_s) from err


def _unreachable(url: str, err: Exception, *, patience_s: float | None) -> StorageError:
    s3 = is_s3(url)
    store = f"{url} at {s3_endpoint() or 'Amazon S3'}" if s3 else url
    reason = f"{type(err).__name__}: {err}"
    if isinstance(err, FileNotFoundError):
        return MissingError(f"there is no bucket for {store} ({reason}); create it")
    if isinstance(err, PermissionError) or "Credentials" in type(err).__name__:
        remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if s3 else "check the rights"
        return StorageError(
            f"the store refuses {store} with these credentials ({reason}); {remedy}"
        )
    waited = "" if patience_s is None else f" in {patience_s:.0f} s"
    remedy = "check AWS_ENDPOINT_URL and the network" if s3 else "check the URL and the network"
    return StorageError(f"the store of {store} cannot be reached{waited} ({reason}); {remedy}")


def _retried(action: str, url: str, call: Callable[[Any, str], T], retry: Retry) -> T:
    attempt, renewed = 0, False
    while True:
        try:
            fs, path = open_store(url, stall_s=retry.stall_s)
            client = getattr(fs, "_s3", None)
            return call(fs, path)
        except Exception as caught:
            err = failures.real_error(caught)
            if isinstance(err, FileNotFoundError):
                raise MissingError(f"cannot {action} {url}: there is no such object") from err
            attempt += 1
            if not failures.is_storage_failure(err):
                raise
            lasting = not failures.is_transient(err)
            if is_s3(url) and failures.is_refusal(err) and attempt < retry.attempts:
                renew_credentials(fs, client)
                lasting, renewed = lasting and renewed, True
            if attempt >= retry.attempts or lasting:
                tries = f" ({attempt} attempts)" if attempt > 1 else ""
                raise StorageError(
                    f"cannot {action} {url}: {type(err).__name__}: {err}{tries}"
                ) from err
            wait_s = retry.wait_s(attempt - 1)
            logger.warning("cannot %s %s: %s; again in %.1f s", action, url, err, wait_s)
            time.sleep(wait_s)


def _check_length(got: int, expected: int | None) -> None:
    if expected is not None and got != expected:
        raise OSError(f"got {got} bytes instead of {expected}")
