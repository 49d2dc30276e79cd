"""How a command ends: with one sentence and an exit code, if it cannot do what it was asked."""

import os
import sys
from typing import NoReturn


def fail(code: int, err: Exception | str) -> int:
    """Say what is wrong; the exit code: 1 failed on the way, 2 wrong request."""
    print(f"error: {err}", file=sys.stderr)  # noqa: T201 (a command line prints)
    return code


def leave(code: int) -> NoReturn:
    """End a process that has had a process group, whose threads outlive it.

    One that takes the interpreter's lock while Python ends is unwound through C++, which aborts
    the process after all its work was done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
