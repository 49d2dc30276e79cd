"""How a command ends that cannot do what it was asked: one sentence and an exit code."""

import sys


def fail(code: int, err: Exception | str) -> int:
    """Say what is wrong; the exit code: 1 failed on the way, 2 wrong request."""
    print(f"error: {err}", file=sys.stderr)  # noqa: T201 (a command line prints)
    return code
