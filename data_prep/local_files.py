"""Local files that appear as a whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".tmp"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary neighbour of `target` that takes its place if nothing was raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}"
    temporary = target.with_name(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def place(path: Path, target: Path, *, move: bool) -> None:
    """Copy or rename a local file to `target`; readers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if move and path.stat().st_dev == target.parent.stat().st_dev:
        path.replace(target)
        return
    with replacing(target) as temporary:
        shutil.copyfile(path, temporary)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one in the making, or what a killed process left of it."""
    return name.startswith(".") and name.endswith(_SUFFIX)
