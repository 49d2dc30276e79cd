"""A client of MLflow: the server is asked first, its telemetry is off, its chatter is muted."""

import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_PROBES = 2
_PROBE_S = 5.0
_QUIET = (
    "alembic",
    "mlflow.store.db.utils",
    "mlflow.system_metrics",
    "mlflow.pyfunc",
    "mlflow.store.model_registry",
)

# Retries are ours: MLflow's own 7 with 120 s each would hold a thread for minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}

# The same call will meet these errors again.
_LASTING = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}


class TrackingError(OSError):
    """MLflow cannot be used; the message names the server and what to do."""


def check_uri(uri: str) -> None:
    """Refuse what is no tracking URI of MLflow."""
    scheme, separator, _ = uri.partition("://")
    if not (separator or uri == "databricks") or scheme.partition("+")[0] not in _SCHEMES:
        raise ValueError(
            f"tracking.uri is {uri!r}; choose http://HOST:PORT of an MLflow server, or "
            f"sqlite:////FOLDER/mlflow.db for a file (MLflow keeps no runs in plain folders)"
        )


def connect(uri: str, *, create: bool = True) -> "MlflowClient":
    """A client of the tracking server at `uri`, which has answered.

    Args:
        uri: Tracking URI.
        create: Make the file of a SQLite URI if there is none; False for who only reads.

    Raises:
        TrackingError: It does not answer within 10 seconds, or does not serve us.
        ValueError: This is no tracking URI.
    """
    check_uri(uri)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    local = uri.startswith("sqlite:///")
    if local and not create and not _sqlite_file(uri).is_file():
        raise TrackingError(
            f"MLflow's file {_sqlite_file(uri).absolute()} does not exist; correct {uri}, or name "
            f"the mlflow.db of a run's folder"
        )
    try:
        if local:
            sqlite_folder(uri).mkdir(parents=True, exist_ok=True)
        client = make_client(uri)
        client.search_experiments(max_results=1)
    except Exception as err:
        raise TrackingError(
            f"MLflow at {uri} cannot be used: {first_line(err)}; check tracking.uri"
        ) from err
    return client


def make_client(uri: str) -> "MlflowClient":
    """A client of a server that need not be there."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def sqlite_folder(uri: str) -> Path:
    """Folder of the file of a SQLite URI."""
    return _sqlite_file(uri).parent


@contextmanager
def asking(uri: str, what: str) -> Iterator[None]:
    """Turn what a call of MLflow raises into a `TrackingError`.

    Args:
        uri: Of the server.
        what: What it is asked to do, for the message.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as err:  # its own, those of its artifact stores, of databases, of connections
        raise TrackingError(
            f"MLflow at {uri} failed to {what}: {first_line(err)}; see to it and run the same "
            f"command again"
        ) from err


def is_lasting(err: Exception) -> bool:
    """Whether the same call will fail again, so that there is no use in waiting."""
    return getattr(err, "error_code", None) in _LASTING


def first_line(err: Exception) -> str:
    """What an error says, in one line."""
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0][:300]}" if lines else type(err).__name__


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _probe(uri: str) -> None:
    for attempt in range(_PROBES):
        try:
            # The scheme was checked: http or https.
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_S):  # noqa: S310
                return
        except urllib.error.HTTPError:
            return  # somebody is there; whether it is MLflow, the client will say
        except OSError as err:
            if attempt == _PROBES - 1:
                raise TrackingError(
                    f"no MLflow server answers at {uri} ({getattr(err, 'reason', err)}, "
                    f"{_PROBES} attempts); start it, or set tracking.uri to its address or to "
                    f"sqlite:////FOLDER/mlflow.db"
                ) from err
            time.sleep(1)
