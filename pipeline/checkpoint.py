"""Checkpoints of a run: written beside the training, visible once they are whole.

    RUN_URL/checkpoints/000-000000064000/G.safetensors   one file per group of tensors
    RUN_URL/checkpoints/000-000000064000/state.json      everything that is no tensor
    RUN_URL/checkpoints/000-000000064000/commit.json     the marker, written last

The folder's name is attempt and nimg. A checkpoint is what its marker names: a folder without one
does not exist for readers, a file that differs from it is damaged. Equal state gives equal bytes,
so the digest in the marker is a fingerprint of the state.

    checkpoints = Checkpoints("s3://bucket/runs/faces")
    checkpoints.save(state.tensors(), state.scalars(), nimg=64000, attempt=0)  # returns at once
    checkpoint, tensors, scalars = checkpoints.load_latest()

One process of a run saves; any number may read.
"""

import hashlib
import json
import logging
import re
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from data_prep import storage
from data_prep.manifest import DigestError

logger = logging.getLogger(__name__)

FORMAT = 1
MARKER = "commit.json"
STATE = "state.json"
SUFFIX = ".safetensors"

_FOLDER = re.compile(r"(\d{3,})-(\d{12,})")
_GROUP = re.compile(r"[A-Za-z0-9_]+")
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which checkpoints are kept, and how many may be on their way."""

    keep_last: int = 3
    """Newest checkpoints kept; at least 1, 2 or more survive damage to the newest."""
    keep_every_kimg: float = 0
    """Besides, the first one after every so many thousands of images; 0 for none."""
    in_flight: int = 2
    """Checkpoints in memory and on their way at a time; one more save waits."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"keep_last is {self.keep_last}; keep at least 1 checkpoint")
        if self.keep_every_kimg < 0:
            raise ValueError(
                f"keep_every_kimg is {self.keep_every_kimg}; choose 0 (none) or a positive number"
            )
        if self.in_flight < 1:
            raise ValueError(f"in_flight is {self.in_flight}; allow at least 1")


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


LoadedCheckpoint = tuple[CommittedCheckpoint, dict[str, Tensor], dict[str, Any]]


class Checkpoints:
    """The checkpoints of the run at `run_url` (see the head of this file)."""

    def __init__(self, run_url: str, *, config: CheckpointConfig | None = None):
        self.url = storage.join(run_url, "checkpoints")
        self.config = config or CheckpointConfig()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[CommittedCheckpoint]] = deque()

    def save(
        self,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, Any],
        *,
        nimg: int,
        attempt: int,
    ) -> Future[CommittedCheckpoint]:
        """Copy the state to host memory and commit it in the background.

        Args:
            tensors: By dotted name; the part before the first dot is the group and so the file.
            scalars: What JSON can hold.
            nimg: Images shown.
            attempt: Rollbacks so far.

        Returns:
            What becomes the committed checkpoint; an error also surfaces at the next `save` or
            `wait`.

        Raises:
            StorageError: An earlier save failed; the run goes on if the caller does.
        """
        self._settle(limit=self.config.in_flight - 1)
        state = _state_json(scalars)
        groups = _host_copy(tensors)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        folder = f"{attempt:03d}-{nimg:012d}"
        future = self._pool.submit(self._commit, folder, groups, state.encode())
        self._pending.append(future)
        return future

    def wait(self) -> None:
        """Return once all saves are committed; raises what the first failed one raised."""
        self._settle(limit=0)

    def list(self) -> list[CommittedCheckpoint]:
        """Committed checkpoints, newest last: by attempt, then by nimg."""
        checkpoints = []
        for name in self._folders():
            url = storage.join(self.url, name)
            try:
                checkpoints.append(read_marker(url))
            except storage.MissingError:
                logger.debug("%s is not committed", url)
            except DigestError as err:
                logger.warning("checkpoint %s left out: %s", url, err)
        return checkpoints

    def latest(self) -> CommittedCheckpoint | None:
        """The newest committed checkpoint; its files are not looked at."""
        return max(self.list(), key=_age, default=None)

    def load_latest(self, names: Collection[str] | None = None) -> LoadedCheckpoint | None:
        """The newest checkpoint that is whole; None if nothing was ever committed.

        A damaged one is passed over with a warning. The arguments are those of `load`.

        Raises:
            DigestError: There are checkpoints, but all are damaged.
            StorageError: The store failed, which says nothing about the checkpoint.
        """
        damaged: DigestError | None = None
        for name in reversed(self._folders()):
            url = storage.join(self.url, name)
            try:
                checkpoint = read_marker(url)
                return checkpoint, *self.load(checkpoint, names)
            except storage.MissingError:
                logger.debug("%s is not committed", url)
            except DigestError as err:
                damaged = err
                logger.warning(
                    "checkpoint %s is damaged (%s): falling back to the one before it", url, err
                )
        if damaged is not None:
            raise DigestError(
                f"every checkpoint under {self.url} is damaged; restore one, or start anew under "
                f"another run URL; the oldest: {damaged}"
            ) from damaged
        return None

    @staticmethod
    def load(
        checkpoint: CommittedCheckpoint | str, names: Collection[str] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read and verify tensors and scalars of one checkpoint.

        Args:
            checkpoint: A committed one, or the URL of its folder.
            names: Groups to read (e.g. {"Gs"}); None for all.

        Raises:
            DigestError: A file is not the one that was committed; names its URL.
            MissingError: Nothing was committed at this URL.
        """
        if isinstance(checkpoint, str):
            checkpoint = read_marker(checkpoint)
        unknown = set(names or ()) - set(checkpoint.groups)
        if unknown:
            raise ValueError(
                f"{checkpoint.url} has no tensors {', '.join(sorted(unknown))}; "
                f"choose from {', '.join(checkpoint.groups)}"
            )
        tensors: dict[str, Tensor] = {}
        for group in checkpoint.groups:
            if names is not None and group not in names:
                continue
            content = _read_file(checkpoint, group + SUFFIX)
            try:
                loaded = safetensors.torch.load(content)
            except safetensors.SafetensorError as err:
                url = storage.join(checkpoint.url, group + SUFFIX)
                raise DigestError(f"{url} is no safetensors file: {err}") from err
            tensors.update({f"{group}.{name}": tensor for name, tensor in loaded.items()})
        scalars: dict[str, Any] = json.loads(_read_file(checkpoint, STATE))
        return tensors, scalars

    def _settle(self, *, limit: int) -> None:
        """Wait until at most `limit` saves are pending; raise what a finished one raised."""
        while self._pending and (len(self._pending) > limit or self._pending[0].done()):
            self._pending.popleft().result()

    def _folders(self) -> Sequence[str]:
        return sorted(filter(_FOLDER.fullmatch, storage.listdir(self.url)), key=_parse)

    def _commit(
        self, folder: str, groups: dict[str, dict[str, Tensor]], state: bytes
    ) -> CommittedCheckpoint:
        url = storage.join(self.url, folder)
        there = _intact(url, groups, state)
        if there is not None:
            return there
        self._remove(url)  # what a save that was killed, or damaged later, has left

        # Files, one in memory at a time.
        files: dict[str, CommittedFile] = {}
        for group in sorted(groups):
            content = safetensors.torch.save(groups.pop(group))
            files[group + SUFFIX] = _write_file(url, group + SUFFIX, content)
            del content
        files[STATE] = _write_file(url, STATE, state)

        # The marker makes it exist.
        attempt, nimg = _parse(folder)
        marker = {
            "format": FORMAT,
            "attempt": attempt,
            "nimg": nimg,
            "files": {name: vars(file) for name, file in sorted(files.items())},
        }
        digest = _digest(marker)
        content = json.dumps({**marker, "digest": digest}, indent=1).encode() + b"\n"
        storage.write_atomic(storage.join(url, MARKER), content)

        self._retain(folder)
        return CommittedCheckpoint(url=url, nimg=nimg, attempt=attempt, digest=digest, files=files)

    def _retain(self, newest: str) -> None:
        """Delete what is not kept, and older folders that were never committed."""
        try:
            committed = {storage.join(self.url, newest), *(kept.url for kept in self._kept())}
            for name in self._folders():
                url = storage.join(self.url, name)
                if _parse(name) < _parse(newest) and url not in committed:
                    self._remove(url)
        except storage.StorageError as err:
            logger.warning("old checkpoints not deleted, tried again at the next save: %s", err)

    def _kept(self) -> Sequence[CommittedCheckpoint]:
        checkpoints = self.list()
        kept = [*checkpoints[-self.config.keep_last :]]
        if self.config.keep_every_kimg:
            period_nimg = self.config.keep_every_kimg * 1000
            first: dict[tuple[int, int], CommittedCheckpoint] = {}
            for checkpoint in checkpoints:
                period = int(checkpoint.nimg // period_nimg)
                if period > 0:
                    first.setdefault((checkpoint.attempt, period), checkpoint)
            kept.extend(first.values())
        return kept

    @staticmethod
    def _remove(url: str) -> None:
        # Marker first: a reader never sees a checkpoint with files missing.
        names = storage.listdir(url)
        for name in sorted(names, key=lambda name: name != MARKER):
            storage.delete(storage.join(url, name))
        if storage.is_local(url) and storage.exists(url):
            storage.delete(url, recursive=True)


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


def _intact(
    url: str, groups: Mapping[str, dict[str, Tensor]], state: bytes
) -> CommittedCheckpoint | None:
    """The checkpoint at `url`, if it is whole and holds this very state.

    A run that is stopped right after it was resumed saves what it has loaded; writing it anew would
    put the only good copy at risk.
    """
    try:
        there = read_marker(url)
        if {*there.files} != {STATE, *(group + SUFFIX for group in groups)}:
            return None
        for group in sorted(groups):
            if _read_file(there, group + SUFFIX) != safetensors.torch.save(groups[group]):
                return None
        return there if _read_file(there, STATE) == state else None
    except (storage.MissingError, DigestError):
        return None


def _state_json(scalars: Mapping[str, Any]) -> str:
    try:
        return json.dumps(scalars, sort_keys=True, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as err:
        raise ValueError(
            f"the scalars of a checkpoint ({', '.join(sorted(scalars))}) must be JSON without NaN "
            f"and infinity: {err}"
        ) from err


def _host_copy(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Copies in host memory, by group and name inside the group."""
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name in sorted(tensors):
        group, dot, inner = name.partition(".")
        if not dot or not inner or not _GROUP.fullmatch(group):
            raise ValueError(
                f"tensor {name!r} belongs to no group; name it GROUP.NAME, as in G.const"
            )
        groups[group][inner] = (
            tensors[name]
            .detach()
            .to("cpu", copy=True, memory_format=torch.contiguous_format)
            .contiguous()
        )
    return dict(groups)


def _write_file(url: str, name: str, content: bytes) -> CommittedFile:
    storage.write_atomic(storage.join(url, name), content)
    return CommittedFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _read_file(checkpoint: CommittedCheckpoint, name: str) -> bytes:
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


def _parse(folder: str) -> tuple[int, int]:
    """Attempt and nimg of a folder's name."""
    attempt, _, nimg = folder.partition("-")
    return int(attempt), int(nimg)


def _age(checkpoint: CommittedCheckpoint) -> tuple[int, int]:
    return checkpoint.attempt, checkpoint.nimg
