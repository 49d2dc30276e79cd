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

A store that is away does not stop the training: what is on its way is tried again and again, and
saves that find no room meanwhile are left out. Only the last one has to succeed.

One process of a run saves; any number may read.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from data_prep import storage
from data_prep.manifest import DigestError
from pipeline.marker import (
    MARKER,
    SUFFIX,
    CommittedCheckpoint,
    CommittedFile,
    read_file,
    read_marker,
    write_file,
    write_marker,
)
from pipeline.uploads import Uploads

logger = logging.getLogger(__name__)

STATE = "state.json"

_FOLDER = re.compile(r"(\d{3,})-(\d{12,})")
_GROUP = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which checkpoints are kept, and how many may be on their way."""

    keep_last: int = 3
    """Newest checkpoints kept; at least 1, 2 or more survive damage to the newest."""
    keep_every_kimg: float = 0
    """Besides, the first one after every so many thousands of images; 0 for none."""
    in_flight: int = 2
    """Checkpoints in memory and on their way at a time."""
    wait_s: float = 10
    """Seconds that a save waits for room among them before it is left out."""
    patience_s: float = 3600
    """Seconds for which a store may be away before the run fails."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"keep_last is {self.keep_last}; keep at least 1 checkpoint")
        if not self.keep_every_kimg >= 0:
            raise ValueError(
                f"keep_every_kimg is {self.keep_every_kimg}; choose 0 (none) or a positive number"
            )
        if self.in_flight < 1:
            raise ValueError(f"in_flight is {self.in_flight}; allow at least 1")
        for name in ("wait_s", "patience_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; choose 0 or more seconds")


LoadedCheckpoint = tuple[CommittedCheckpoint, dict[str, Tensor], dict[str, Any]]
Keep = Callable[[Sequence[CommittedCheckpoint]], Iterable[CommittedCheckpoint]]


class Checkpoints:
    """The checkpoints of the run at `run_url` (see the head of this file)."""

    def __init__(
        self,
        run_url: str,
        *,
        config: CheckpointConfig | None = None,
        keep: Keep = lambda checkpoints: (),
    ):
        """Open the folder, which need not exist.

        Args:
            run_url: Of the run.
            config: For who saves.
            keep: Of all checkpoints, newest last, those that are kept besides.
        """
        self.url = storage.join(run_url, "checkpoints")
        self.config = config or CheckpointConfig()
        self._keep = keep
        self._uploads = Uploads(limit=self.config.in_flight, patience_s=self.config.patience_s)

    def save(
        self,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, Any],
        *,
        nimg: int,
        attempt: int,
        beside: Mapping[str, bytes] | None = None,
        must: bool = False,
    ) -> Future[CommittedCheckpoint] | None:
        """Copy the state to host memory and commit it in the background.

        Args:
            tensors: By dotted name; the part before the first dot is the group and so the file.
            scalars: What JSON can hold.
            nimg: Images shown.
            attempt: Rollbacks so far.
            beside: Contents by URL that are written before the marker.
            must: Wait for room for as long as it takes.

        Returns:
            What becomes the committed checkpoint, or None if too many are on their way: a store
            that is away or slow must not stop the training.
        """
        state = _state_json(scalars)
        folder = f"{attempt:03d}-{nimg:012d}"
        if not self._uploads.room(timeout_s=None if must else self.config.wait_s):
            logger.warning(
                "checkpoint %s is left out: %d are on their way to %s, which is away or slow",
                folder,
                self.config.in_flight,
                self.url,
            )
            return None
        groups = _host_copy(tensors)

        def commit() -> CommittedCheckpoint:
            return self._commit(folder, groups, state.encode(), beside or {})

        return self._uploads.submit(commit, f"checkpoint {folder}")

    def wait(self) -> None:
        """Return once all saves are committed; raises what the last one raised if it was not."""
        self._uploads.finish()

    def abandon(self) -> None:
        """The training has failed: what is not committed by now need not be."""
        self._uploads.abandon()

    def retain(self) -> None:
        """Delete what need not be kept any more; every save does."""
        newest = self.latest()
        if newest is not None:
            self._retain(newest)

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
        return max(self.list(), key=lambda checkpoint: checkpoint.age, default=None)

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
            content = read_file(checkpoint, group + SUFFIX)
            try:
                loaded = safetensors.torch.load(content)
            except safetensors.SafetensorError as err:
                url = storage.join(checkpoint.url, group + SUFFIX)
                raise DigestError(f"{url} is no safetensors file: {err}") from err
            tensors.update({f"{group}.{name}": tensor for name, tensor in loaded.items()})
        scalars: dict[str, Any] = json.loads(read_file(checkpoint, STATE))
        return tensors, scalars

    def _folders(self) -> Sequence[str]:
        return sorted(filter(_FOLDER.fullmatch, storage.listdir(self.url)), key=_parse)

    def _commit(
        self,
        folder: str,
        groups: Mapping[str, dict[str, Tensor]],
        state: bytes,
        beside: Mapping[str, bytes],
    ) -> CommittedCheckpoint:
        url = storage.join(self.url, folder)
        there = _intact(url, groups, state)
        if there is not None:
            return there
        self._remove(url)  # what a save that was killed, or damaged later, has left

        # Files, one in memory at a time.
        for other, content in beside.items():
            storage.write_atomic(other, content)
        files: dict[str, CommittedFile] = {}
        for group in sorted(groups):
            content = safetensors.torch.save(groups[group])
            files[group + SUFFIX] = write_file(url, group + SUFFIX, content)
            del content
        files[STATE] = write_file(url, STATE, state)

        # The marker makes it exist.
        attempt, nimg = _parse(folder)
        checkpoint = write_marker(url, attempt=attempt, nimg=nimg, files=files)
        self._retain(checkpoint)
        return checkpoint

    def _retain(self, newest: CommittedCheckpoint) -> None:
        """Delete what is older and not kept, and older folders that were never committed."""
        try:
            kept = {newest.url, *(checkpoint.url for checkpoint in self._kept())}
            for name in self._folders():
                url = storage.join(self.url, name)
                if _parse(name) < newest.age and url not in kept:
                    self._remove(url)
        except storage.StorageError as err:
            logger.warning("old checkpoints not deleted, tried again at the next save: %s", err)

    def _kept(self) -> Sequence[CommittedCheckpoint]:
        checkpoints = self.list()
        kept = [*checkpoints[-self.config.keep_last :], *self._keep(checkpoints)]
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
            if read_file(there, group + SUFFIX) != safetensors.torch.save(groups[group]):
                return None
        return there if read_file(there, STATE) == state else None
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


def _parse(folder: str) -> tuple[int, int]:
    """Attempt and nimg of a folder's name."""
    attempt, _, nimg = folder.partition("-")
    return int(attempt), int(nimg)
