"""Files by URL: local folders and object stores alike, through fsspec, with retries.

Any fsspec URL works (`folder/x`, `file:///x`, `s3://bucket/x`, `memory://x`, `https://host/x`).
Options of a store come from the environment alone; for S3 these are AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION, as s3fs reads them. An authority of
one's own is trusted for https by SSL_CERT_FILE, for S3 by AWS_CA_BUNDLE.

File systems are looked up at every call in fsspec's own cache, which is per process, so a forked
process gets its own. What is transient (silence, resets, 5xx, short bodies) is tried again, here
and nowhere below; what is not (missing, forbidden, disk full) fails at once. S3 credentials that
are refused are looked up anew, as `~/.aws/credentials`, a `credential_process` or the node may have
renewed them; those in AWS_* variables cannot change. Every failure is a `StorageError` with the
URL. `check_reachable` finds out at the start of a program.
"""

import errno
import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LASTING = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
_LASTING_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}
_CONNECT_S = 5.0
_WORTH_REPEATING = {408, 425, 429}
"""HTTP statuses below 500 that may pass."""
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_NETWORK_PACKAGES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "requests", "urllib3"}
_PIECE_BYTES = 16 * 2**20
_TEMPORARY = ".tmp"
_S3_SCHEMES = ("s3://", "s3a://")
_HTTP_SCHEMES = ("http://", "https://")


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
    stall_s: float = 15.0
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


def join(url: str, *parts: str) -> str:
    """`url` with path components appended."""
    if not url:
        raise ValueError("the URL of a folder is empty; name it, or write . for the one you are in")
    return "/".join([url.rstrip("/") if url != "/" else "", *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Whether `url` names a file of this machine."""
    return isinstance(_filesystem(url)[0], LocalFileSystem)


def local_path(url: str) -> Path:
    """The path of a local URL."""
    fs, path = _filesystem(url)
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
            with _replacing(Path(path)) as temporary:
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
            _place(path, Path(target), move=move)
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
        with _replacing(path) as temporary:
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
    if url.startswith(("http://", "https://")):
        return url.endswith("/")
    kind = _retried("look up", url, lambda fs, path: fs.info(path), retry)["type"]
    return bool(kind == "directory")


def find(url: str, *, retry: Retry = RETRY) -> dict[str, Found]:
    """All objects below `url` by their paths from there, sorted."""

    def call(fs: Any, path: str) -> dict[str, dict[str, Any]]:
        root = path.rstrip("/") + "/"
        found = fs.find(path, detail=True)
        return {str(name).removeprefix(root): info for name, info in sorted(found.items())}

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


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one in the making, or what a killed process left of it."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


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
    answer: list[Exception] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                fs, path = _filesystem(url)
                fs.info(f"{path.rstrip('/')}/manifest.json")  # a bucket alone would not be asked
            except Exception as err:  # noqa: BLE001 (whatever it is, it is told below)
                answer[:] = [_real(err)]
                if _is_storage_failure(answer[0]) and _is_transient(answer[0]):
                    ended.wait(1.0)
                    continue
            ended.set()

    # A thread, because a store that hangs cannot be interrupted.
    threading.Thread(target=ask, daemon=True).start()
    in_time = ended.wait(patience_s)
    ended.set()
    err = answer[0] if answer else None if in_time else TimeoutError("no answer")
    if err is not None and not _is_missing_object(err):
        raise _unreachable(url, err, patience_s=None if in_time else patience_s) from err


def _unreachable(url: str, err: Exception, *, patience_s: float | None) -> StorageError:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    s3 = url.startswith(_S3_SCHEMES)
    store = f"{url} at {endpoint or 'Amazon S3'}" if s3 else url
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


def _filesystem(url: str, *, stall_s: float = RETRY.stall_s) -> tuple[Any, str]:
    s3 = url.startswith(_S3_SCHEMES)
    options = _s3_options(stall_s) if s3 else {}
    if url.startswith(_HTTP_SCHEMES):
        options = _http_options(stall_s)
    try:
        fs, path = url_to_fs(url, **options)
    except (ValueError, ImportError) as err:
        raise ValueError(f"{url} names no store that can be used here: {err}") from err
    if s3:
        fs.retries = 1
        _clients.add(fs)
    return fs, str(path)


def _s3_options(stall_s: float) -> dict[str, Any]:
    return {
        # A cached listing would hide what other machines have written since.
        "use_listings_cache": False,
        "config_kwargs": {
            # Repeating below and above would multiply: 5 x 5 x 8 calls with a store that hangs.
            "retries": {"total_max_attempts": 1},
            "connect_timeout": min(_CONNECT_S, stall_s),
            "read_timeout": stall_s,
        },
    }


def _http_options(stall_s: float) -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # No limit for a call as a whole: a large file may take its time, as long as it comes.
    timeout = ClientTimeout(total=None, sock_connect=min(_CONNECT_S, stall_s), sock_read=stall_s)
    return {"client_kwargs": {"timeout": timeout}}


_clients: "weakref.WeakSet[Any]" = weakref.WeakSet()
_inherited: list[Any] = []
_renewing = threading.Lock()


def _begin_child() -> None:
    """In a forked process: never let go of the parent's clients.

    Python would close their sockets, and thereby take them from the epoll that the parent still
    waits with.
    """
    global _renewing  # noqa: PLW0603 (another thread of the parent may have held it)
    _renewing = threading.Lock()
    _inherited.extend(_clients)
    _clients.clear()


os.register_at_fork(after_in_child=_begin_child)


def _retried(action: str, url: str, call: Callable[[Any, str], T], retry: Retry) -> T:
    attempt, renewed = 0, False
    while True:
        try:
            fs, path = _filesystem(url, stall_s=retry.stall_s)
            client = getattr(fs, "_s3", None)
            return call(fs, path)
        except Exception as caught:
            err = _real(caught)
            if isinstance(err, FileNotFoundError):
                raise MissingError(f"cannot {action} {url}: there is no such object") from err
            attempt += 1
            if not _is_storage_failure(err):
                raise
            lasting = not _is_transient(err)
            if url.startswith(_S3_SCHEMES) and _is_refusal(err) and attempt < retry.attempts:
                _renew_credentials(fs, client)
                lasting, renewed = lasting and renewed, True
            if attempt >= retry.attempts or lasting:
                tries = f" ({attempt} attempts)" if attempt > 1 else ""
                raise StorageError(
                    f"cannot {action} {url}: {type(err).__name__}: {err}{tries}"
                ) from err
            wait_s = retry.wait_s(attempt - 1)
            logger.warning("cannot %s %s: %s; again in %.1f s", action, url, err, wait_s)
            time.sleep(wait_s)


def _renew_credentials(fs: Any, refused_client: Any) -> None:
    """Have `fs` look up its credentials again, unless another thread has done so."""
    with _renewing:
        if refused_client is None or fs.s3 is refused_client:
            logger.info("credentials were refused and are looked up again")
            fs.connect(refresh=True)


def _real(err: Exception) -> Exception:
    """The error itself: fsspec calls a web server that does not answer a missing file."""
    cause = err.__cause__
    if not isinstance(err, FileNotFoundError) or not isinstance(cause, Exception):
        return err
    no_answer = isinstance(cause, TimeoutError | ConnectionError)
    if no_answer or type(cause).__module__.startswith("aiohttp."):
        return err if getattr(cause, "status", None) in {404, 410} else cause
    return err


def _is_missing_object(err: Exception) -> bool:
    return isinstance(err, FileNotFoundError) and "bucket" not in str(err).lower()


def _is_storage_failure(err: Exception) -> bool:
    # s3fs translates most errors to OSError, but those of the connection keep their own class.
    packages = {cls.__module__.partition(".")[0] for cls in type(err).__mro__}
    return isinstance(err, OSError) or not packages.isdisjoint(_NETWORK_PACKAGES)


def _is_transient(err: Exception) -> bool:
    if _s3_code(err) in _EXPIRED:
        return True  # whoever renews them may be late
    if "CERTIFICATE_VERIFY_FAILED" in str(err):
        return False
    if not isinstance(err, OSError):
        status = getattr(err, "status", 500)
        passes = status >= 500 or status in _WORTH_REPEATING
        return passes and "Credentials" not in type(err).__name__
    return not isinstance(err, _LASTING) and err.errno not in _LASTING_ERRNO


def _is_refusal(err: Exception) -> bool:
    """Whether S3 may have meant the credentials: HEAD has no more than the status 400 or 403."""
    return _s3_code(err) in _EXPIRED | {"400"} or isinstance(err, PermissionError)


def _s3_code(err: Exception) -> str:
    response = getattr(err.__cause__, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) else ""


def _check_length(got: int, expected: int | None) -> None:
    if expected is not None and got != expected:
        raise OSError(f"got {got} bytes instead of {expected}")


def _place(path: Path, target: Path, *, move: bool) -> None:
    """Copy or rename a local file to `target`; readers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if move and path.stat().st_dev == target.parent.stat().st_dev:
        path.replace(target)
        return
    with _replacing(target) as temporary:
        shutil.copyfile(path, temporary)


class _replacing:  # noqa: N801 (used like a function)
    """A temporary neighbour of `target` that takes its place if nothing was raised."""

    def __init__(self, target: Path):
        self.target = target
        self.temporary = target.with_name(
            f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}"
        )

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            _flush(self.temporary)
            self.temporary.replace(self.target)
        else:
            self.temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
