"""What an error of a store means: whether it is one, whether it may pass, what was refused."""

import errno

_LASTING = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
_LASTING_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}
_WORTH_REPEATING = {408, 425, 429}
"""HTTP statuses below 500 that may pass."""
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_NETWORK_PACKAGES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "requests", "urllib3"}


def real_error(err: Exception) -> Exception:
    """The error itself: fsspec calls a web server that does not answer a missing file."""
    cause = err.__cause__
    if not isinstance(err, FileNotFoundError) or not isinstance(cause, Exception):
        return err
    no_answer = isinstance(cause, TimeoutError | ConnectionError)
    if no_answer or type(cause).__module__.startswith("aiohttp."):
        return err if getattr(cause, "status", None) in {404, 410} else cause
    return err


def is_missing_object(err: Exception) -> bool:
    """Whether the store answers and only the object is not there."""
    return isinstance(err, FileNotFoundError) and "bucket" not in str(err).lower()


def is_storage_failure(err: Exception) -> bool:
    """Whether it comes from a store or the way there, and not from the program."""
    # s3fs translates most errors to OSError, but those of the connection keep their own class.
    packages = {cls.__module__.partition(".")[0] for cls in type(err).__mro__}
    return isinstance(err, OSError) or not packages.isdisjoint(_NETWORK_PACKAGES)


def is_transient(err: Exception) -> bool:
    """Whether a storage failure may pass."""
    if _s3_code(err) in _EXPIRED:
        return True  # whoever renews them may be late
    if "CERTIFICATE_VERIFY_FAILED" in str(err):
        return False
    if not isinstance(err, OSError):
        status = getattr(err, "status", 500)
        passes = status >= 500 or status in _WORTH_REPEATING
        return passes and "Credentials" not in type(err).__name__
    return not isinstance(err, _LASTING) and err.errno not in _LASTING_ERRNO


def is_refusal(err: Exception) -> bool:
    """Whether S3 may have meant the credentials: HEAD has no more than the status 400 or 403."""
    return _s3_code(err) in _EXPIRED | {"400"} or isinstance(err, PermissionError)


def _s3_code(err: Exception) -> str:
    response = getattr(err.__cause__, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) else ""
