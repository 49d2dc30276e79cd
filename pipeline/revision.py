"""Which revision of this code runs."""

import subprocess
from pathlib import Path

UNKNOWN = "unknown"
_TIMEOUT_S = 10


def code_revision(path: Path = Path(__file__)) -> str:
    """Commit of the git repository this code lies in, `-dirty` if files differ; or `unknown`."""
    folder = path.resolve().parent
    # Installed into another project's folder, the code is not part of that project.
    if _git(folder, "ls-files", "--error-unmatch", path.name) is None:
        return UNKNOWN
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return UNKNOWN
    return f"{commit}-dirty" if changes else commit


def _git(folder: Path, *args: str) -> str | None:
    command = ["git", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip()
