"""What Ray reads from the environment; to be set before `ray` is imported, which reads it once."""

import os
import secrets

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the driver of a submitted job."""

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
    """Set what is not set yet: no usage statistics; a Ray of our own on loopback, with a token.

    The token lives in this process and its children alone, and no file is left behind that later
    clusters would enforce.
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
