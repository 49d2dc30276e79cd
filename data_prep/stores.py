"""The stores behind URLs: their clients with time-outs, and S3's with credentials.

File systems are looked up at every call in fsspec's own cache, which is per process, so a forked
process gets its own.
"""

import logging
import os
import threading
import weakref
from typing import Any

from fsspec.core import url_to_fs

logger = logging.getLogger(__name__)

STALL_S = 15.0
"""Seconds without a byte after which a call has failed, where nothing else is said."""
HTTP_SCHEMES = ("http://", "https://")
_S3_SCHEMES = ("s3://", "s3a://")
_CONNECT_S = 5.0


def is_s3(url: str) -> bool:
    """Whether `url` names something in S3."""
    return url.startswith(_S3_SCHEMES)


def s3_endpoint() -> str | None:
    """Where the environment says that S3 is; None for Amazon's, or what AWS's own files say."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def open_store(url: str, *, stall_s: float = STALL_S) -> tuple[Any, str]:
    """The file system of `url`, and the path in it.

    Raises:
        ValueError: No store is known by this name.
    """
    options = _s3_options(stall_s) if is_s3(url) else {}
    if url.startswith(HTTP_SCHEMES):
        options = _http_options(stall_s)
    try:
        fs, path = url_to_fs(url, **options)
    except (ValueError, ImportError) as err:
        raise ValueError(f"{url} names no store that can be used here: {err}") from err
    if is_s3(url):
        fs.retries = 1
        _s3.clients.add(fs)
    return fs, str(path)


def renew_credentials(fs: Any, refused_client: Any) -> None:
    """Have `fs` look up its credentials again, unless another thread has done so."""
    with _s3.renewing:
        if refused_client is None or fs.s3 is refused_client:
            logger.info("credentials were refused and are looked up again")
            fs.connect(refresh=True)


def _s3_options(stall_s: float) -> dict[str, Any]:
    return {
        # Here, so that another endpoint in the environment is another client in fsspec's cache.
        "endpoint_url": s3_endpoint(),
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


class _S3:
    """What a process keeps of S3."""

    def __init__(self) -> None:
        self.clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self.inherited: list[Any] = []
        self.renewing = threading.Lock()

    def begin_child(self) -> None:
        """In a forked process: never let go of the parent's clients.

        Python would close their sockets, and thereby take them from the epoll that the parent still
        waits with.
        """
        self.renewing = threading.Lock()  # another thread of the parent may have held it
        self.inherited.extend(self.clients)
        self.clients.clear()


_s3 = _S3()
os.register_at_fork(after_in_child=_s3.begin_child)
