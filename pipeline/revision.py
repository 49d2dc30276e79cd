"""Which revision of this code runs."""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_prep", "pipeline", "stylegan")
_SUFFIXES = (".py", ".yaml")
_TIMEOUT_S = 10


def code_revision(root: Path = ROOT) -> str:
    """Commit of the git repository that holds this code, with `-dirty` if files differ.

    Without one, as in a submitted job (Ray uploads no .git), the digest of the code itself.
    """
    # Installed into another project's folder, the code is not part of that project.
    if _git(root, "ls-files", "--error-unmatch", "pipeline/revision.py") is None:
        return content_digest(root)
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return content_digest(root)
    return f"{commit}-dirty" if changes else commit


def content_digest(root: Path = ROOT) -> str:
    """`sha256:` of the code and presets of the packages, wherever they lie."""
    digest = hashlib.sha256()
    files = (path for name in PACKAGES for path in (root / name).rglob("*"))
    for path in sorted(path for path in files if path.suffix in _SUFFIXES):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"


def _git(folder: Path, *args: str) -> str | None:
    command = ["git", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip()
