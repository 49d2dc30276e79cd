"""Joining a Ray cluster or starting a local Ray, for the sharding job and for trainings alike.

    ray_start.prepare()                        # before `ray` is imported
    ray_start.start_ray("auto", workers=4)

Nothing here imports Ray before it is wanted.
"""

import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the driver of a submitted job."""

ROOT = Path(__file__).resolve().parents[1]
"""Of this repository: what workers import."""

_ANSWER_S = 20.0
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def joins_cluster() -> bool:
    """Whether this process belongs to a cluster that somebody else has started."""
    return JOB_VARIABLE in os.environ or "RAY_ADDRESS" in os.environ


def prepare() -> None:
    """Set in the environment what is not set yet; Ray reads it once, when it is imported.

    No usage statistics; a Ray of our own on loopback, with a token. The token lives in this process
    and its children alone, and no file is left behind that later clusters would enforce.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if joins_cluster():
        return
    # Without it Ray takes an address that others reach, even where it is told 127.0.0.1.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def absolute(what: str, url: str) -> str:
    """A path that does not depend on the working directory, or the URL as it is.

    Raises:
        ValueError: `what`, a relative path, lies in the folder of a submitted job.
    """
    if not url or "://" in url:
        return url
    path = Path(url).expanduser()
    if JOB_VARIABLE in os.environ and not path.is_absolute():
        raise ValueError(
            f"{what} is {url}, relative to a submitted job's folder, which Ray deletes; give an "
            f"absolute path that all nodes see, or a URL"
        )
    return str(path.absolute())


def start_ray(address: str, *, workers: int) -> None:
    """Join the cluster of this job, of RAY_ADDRESS or at `address`, or start a local one.

    A local one has a CPU for each worker even where there are fewer cores, because waiting for
    cores that do not come would be the worse surprise.

    Raises:
        ConnectionError: Nobody answers at the address, or a local Ray does not start.
    """
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local" or (address == "auto" and not joins_cluster()):
        try:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, workers),
                include_dashboard=False,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
                **options,
            )
        except Exception as err:  # Ray raises no class of its own
            reason = str(err).strip().partition("\n")[0]
            raise ConnectionError(
                f"Ray did not start on this machine ({reason}); free processors, memory or disk "
                f"space and run the same command again"
            ) from err
        return
    _check_answers(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    if '"working_dir"' not in os.environ.get(JOB_VARIABLE, ""):
        options["runtime_env"] = {"working_dir": str(ROOT), "excludes": ["/tests/"]}
    ray.init(address=None if address == "auto" else address, **options)


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # Ray knows by itself where the cluster of this machine is
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as err:
        raise ConnectionError(f"nobody answers at {address}: {err}") from err
