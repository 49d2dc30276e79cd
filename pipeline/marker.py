"""The commit marker of a checkpoint: it makes a folder a checkpoint and vouches for its files.

    commit.json    format, attempt, nimg, SHA-256 and length of every file, and a digest of all that

Whoever knows the digest knows every byte of the state.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep import storage
from data_prep.manifest import DigestError

FORMAT = 1
MARKER = "commit.json"
SUFFIX = ".safetensors"

_DAMAGE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class CommittedFile:
    """One file as the marker knows it."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CommittedCheckpoint:
    """A checkpoint whose marker has been read."""

    url: str
    """Its folder."""
    nimg: int
    attempt: int
    digest: str
    """SHA-256 of the marker without this entry: a fingerprint of the whole state."""
    files: Mapping[str, CommittedFile]
    """By name, e.g. G.safetensors."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of tensors it holds, e.g. G, D, Gs."""
        return tuple(
            name.removesuffix(SUFFIX) for name in sorted(self.files) if name.endswith(SUFFIX)
        )

    @property
    def age(self) -> tuple[int, int]:
        """What checkpoints of a run are in order by."""
        return self.attempt, self.nimg


def write_file(url: str, name: str, content: bytes) -> CommittedFile:
    """Write one file of a checkpoint."""
    storage.write_atomic(storage.join(url, name), content)
    return CommittedFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def write_marker(
    url: str, *, attempt: int, nimg: int, files: Mapping[str, CommittedFile]
) -> CommittedCheckpoint:
    """Make the folder `url`, whose files are all there, a checkpoint."""
    marker = {
        "format": FORMAT,
        "attempt": attempt,
        "nimg": nimg,
        "files": {name: vars(file) for name, file in sorted(files.items())},
    }
    digest = _digest(marker)
    content = json.dumps({**marker, "digest": digest}, indent=1).encode() + b"\n"
    storage.write_atomic(storage.join(url, MARKER), content)
    return CommittedCheckpoint(url=url, nimg=nimg, attempt=attempt, digest=digest, files=files)


def read_marker(url: str) -> CommittedCheckpoint:
    """The committed checkpoint in the folder `url`.

    Raises:
        MissingError: Nothing was committed there.
        DigestError: The marker is damaged.
    """
    marker_url = storage.join(url, MARKER)
    content = storage.read_bytes(marker_url)
    try:
        marker = json.loads(content)
        digest = marker.pop("digest")
        if digest != _digest(marker) or marker["format"] != FORMAT:
            raise ValueError(f"digest {_digest(marker)}, format {marker['format']}")
        return CommittedCheckpoint(
            url=url.rstrip("/"),
            nimg=marker["nimg"],
            attempt=marker["attempt"],
            digest=digest,
            files={name: CommittedFile(**file) for name, file in marker["files"].items()},
        )
    except _DAMAGE as err:
        raise DigestError(f"{marker_url} is no commit marker of format {FORMAT}: {err!r}") from err


def read_file(checkpoint: CommittedCheckpoint, name: str) -> bytes:
    """One file of a checkpoint, verified.

    Raises:
        DigestError: It is not the one that was committed, or it is missing.
    """
    url, expected = storage.join(checkpoint.url, name), checkpoint.files[name]
    try:
        content = storage.read_bytes(url)
    except storage.MissingError as err:
        raise DigestError(f"{url} is missing, but {MARKER} beside it names it") from err
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected.sha256:
        raise DigestError(
            f"{url} is damaged: its {len(content)} bytes have SHA-256 {digest}, "
            f"{MARKER} says {expected.bytes} bytes with {expected.sha256}"
        )
    return content


def _digest(marker: Mapping[str, Any]) -> str:
    canonical = json.dumps(marker, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
