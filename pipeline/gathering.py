"""What tasks of an evaluation give, in global order: kept row by row, or only summed up.

    gathered = Gathered(key, count=300, sums=(300,), table=False)
    gathered.add(rows, start=0)

Sums take the same memory for any number of images. Rows lie in a file that goes with the process
(below TMPDIR), of which the system holds in memory what it likes.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.feature_cache import FeatureCache
from pipeline.tasks import Features, Outputs
from stylegan.metrics.features import StreamedMoments


class Gathered:
    """One output of all tasks."""

    def __init__(
        self, key: Mapping[str, Any], *, count: int, table: bool, sums: Iterable[int] = ()
    ) -> None:
        """Begin with nothing.

        Args:
            key: What the output is, for what is kept of it.
            count: Images.
            table: Whether all rows are wanted.
            sums: Numbers of images whose moments are wanted.
        """
        self.key, self.count, self.has_table = key, count, table
        self.sums = {number: StreamedMoments(number) for number in sorted(set(sums))}
        self._table: Features | None = None

    def add(self, rows: Features, *, start: int) -> None:
        """Take the rows of images start, start + 1, ..."""
        for sums in self.sums.values():
            sums.add(torch.from_numpy(rows), start=start)
        if self.has_table:
            if self._table is None:
                self._table = on_disk((self.count, *rows.shape[1:]))
            self._table[start : start + len(rows)] = rows

    def take(self, table: Features) -> None:
        """Take all rows at once, and hold them where they are."""
        for sums in self.sums.values():
            for start in range(0, sums.count, sums.BLOCK):
                sums.add(torch.from_numpy(table[start : start + sums.BLOCK]), start=start)
        self._table = table

    def rows(self) -> Tensor:
        """All of them."""
        assert self._table is not None
        return torch.from_numpy(self._table)

    def store(self, cache: FeatureCache) -> None:
        """Keep all of it for later evaluations."""
        if self._table is not None:
            cache.put(self.key, self._table)
        else:
            for key, sums in self.states({}):
                if (state := sums.state()) is not None:
                    cache.put(key, state.numpy())

    def recall(self, cache: FeatureCache) -> bool:
        """Whether all of it was kept, and is here now."""
        if not self.has_table and all(
            _restore(cache, key, sums) and sums.done == sums.count for key, sums in self.states({})
        ):
            return True
        table = cache.get(self.key)
        if table is None or len(table) != self.count:
            return False
        self.take(table)
        return True

    def states(self, facts: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], StreamedMoments]]:
        """Keys under which sums are kept."""
        for number, sums in self.sums.items():
            yield {**self.key, **facts, "sums of": number}, sums


class Progress:
    """What an evaluation that was stopped goes on from: rows of tasks, or sums alone."""

    SAVE_EVERY_S = 10.0
    """Between states of the sums that are kept."""

    def __init__(
        self, cache: FeatureCache | None, outputs: Sequence[Gathered], facts: Mapping[str, Any]
    ) -> None:
        """Restore the sums, if sums are all that is wanted.

        Args:
            cache: Where it is kept; None for nowhere.
            outputs: What is gathered.
            facts: What the last bits of rows depend on beside the outputs' keys.
        """
        self._cache, self._outputs, self._facts = cache, outputs, facts
        self._by_rows = any(one.has_table for one in outputs)
        self._keys: list[Mapping[str, Any]] = []
        self._saved_s, self._is_saved = time.monotonic(), True
        self._states = [state for one in outputs for state in one.states(facts)]
        if cache and not self._by_rows:
            for key, sums in self._states:
                if _restore(cache, key, sums):
                    self._keys.append(key)

    def has(self, piece: Sequence[range]) -> bool:
        """Whether the images of a task are in all sums already."""
        if self._by_rows:
            return False
        return all(sums.done >= min(piece[-1].stop, sums.count) for _, sums in self._states)

    def recall(self, piece: Sequence[range]) -> Outputs | None:
        """Rows of a task that were kept."""
        if not self._cache or not self._by_rows:
            return None
        rows, keys = [], [self._part_key(one, piece) for one in self._outputs]
        for key in keys:
            array = self._cache.get(key)
            if array is None or len(array) != sum(map(len, piece)):
                return None
            rows.append(array)
        self._keys += keys
        return tuple(rows)

    def keep(self, piece: Sequence[range], rows: Outputs) -> None:
        """What a task gave has been gathered."""
        self._is_saved = False
        if self._cache and self._by_rows:
            for one, array in zip(self._outputs, rows, strict=True):
                self._keys.append(self._part_key(one, piece))
                self._cache.put(self._keys[-1], array)
        elif time.monotonic() - self._saved_s >= self.SAVE_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Keep the sums as they are."""
        if self._cache and not self._by_rows and not self._is_saved:
            for key, sums in self._states:
                if (state := sums.state()) is not None:
                    self._cache.put(key, state.numpy())
                    self._keys.append(key)
        self._saved_s, self._is_saved = time.monotonic(), True

    def forget(self) -> None:
        """It is not needed any more."""
        if self._cache:
            for key in {self._cache.entry_url(key): key for key in self._keys}.values():
                self._cache.delete(key)
        self._keys = []

    def _part_key(self, one: Gathered, piece: Sequence[range]) -> dict[str, Any]:
        return {**one.key, **self._facts, "images": [piece[0].start, piece[-1].stop]}


def _restore(cache: FeatureCache, key: Mapping[str, Any], sums: StreamedMoments) -> bool:
    state = cache.get(key)
    if state is None:
        return False
    sums.restore(torch.from_numpy(np.array(state)))
    return True


def on_disk(shape: tuple[int, ...]) -> Features:
    """An array in a file without a name."""
    with tempfile.TemporaryFile(prefix="rows-") as file:
        table: Features = np.memmap(file, np.float32, "w+", shape=shape)
    return table
