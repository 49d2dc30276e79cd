"""Which sample is shown at which position of a run: arithmetic, nothing is stored.

    order = SampleOrder(70_000, seed=0)
    order.samples_at(np.arange(32))  # sample numbers of the first minibatch

Positions count images shown since the run began; epoch = position // samples, and every epoch shows
every sample exactly once, in another order. A sample number is a function of (seed, epoch, place in
the epoch) alone, so a worker computes its own slice, and a resumed run needs no more than nimg.

An epoch is shuffled twice. Blocks of `block` consecutive sample numbers are permuted as wholes;
then the epoch is cut into windows of `window` blocks, and the places inside each window are
permuted. The block that is shorter than the others stands at a place drawn for each epoch, and so
does the window that is, so no sample is bound to the end.

Why 64 and 256: up to 16,384 samples an epoch is one window, so small data sets are mixed as a
whole; larger ones mix 256 blocks from anywhere at a time, other ones in each epoch. Inside a window
a process needs the indices of at most 256 shards (14 MB in memory at 1,024 samples each), and reads
each of them for 64 samples, not for one: 1.6 KB of index per image. All samples of a block are
shown within one window or two, so what is fetched at its first sample (its shard at small levels)
is used while it is still in the cache. Larger blocks would read less of the index but mix worse
where neighbours are alike, as in a folder for each class.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 64
"""Consecutive samples that are permuted together."""
WINDOW: Final = 256
"""Blocks among whose samples the order is uniform."""

# What a key is for; part of what a seed means, like all constants below.
_BLOCKS, _SHORT_BLOCK, _PLACES, _SHORT_WINDOW = 1, 2, 3, 4

_ROUNDS, _ROUNDS_IF_SMALL = 6, 24
_SMALL = 256
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE, _27, _30, _31, _32 = (np.uint64(number) for number in (1, 27, 30, 31, 32))

_Words = NDArray[np.uint64]


class SampleOrder:
    """The order of the samples of one data set in one run (see the head of this file)."""

    def __init__(self, samples: int, seed: int, *, block: int = BLOCK, window: int = WINDOW):
        """Costs nothing, whatever the number of samples.

        Args:
            samples: Number of samples of the data set.
            seed: Of the run.
            block: Consecutive samples that are permuted together.
            window: Blocks among whose samples places are permuted.
        """
        for name, value in {"samples": samples, "block": block, "window": window}.items():
            if value < 1:
                raise ValueError(f"{name} of the data order is {value}; it must be at least 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; choose from 0 to 2^64 - 1")
        self.samples = samples
        self.seed = seed
        self.block = block
        self.window = window
        self._seed_word = _mixed(np.array([seed], np.uint64))

    def samples_at(self, positions: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Sample numbers at these positions of the run, in their order."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError(f"position {positions.min()} of the run; positions begin at 0")
        epochs, places = np.divmod(positions, self.samples)
        places = self._inside_windows(epochs, places)
        # A single window is uniform already.
        one_window = self.samples <= self.block * self.window
        return places if one_window else self._inside_blocks(epochs, places)

    def _inside_windows(
        self, epochs: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Permute the places inside each window of an epoch."""
        size = self.block * self.window
        short_at = self._drawn(_SHORT_WINDOW, epochs, self.samples // size + 1)
        windows, begins, sizes = _cut(places, size, self.samples % size, short_at)
        keys = self._keys(_PLACES, epochs, windows)
        return begins + _permuted(places - begins, sizes, keys)

    def _inside_blocks(
        self, epochs: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Permute the blocks of an epoch: the sample at each place."""
        full, short = divmod(self.samples, self.block)
        short_at = self._drawn(_SHORT_BLOCK, epochs, full + 1)
        slots, begins, sizes = _cut(places, self.block, short, short_at)
        # The short block is the last one of the data set; the others are permuted without it.
        blocks = np.full_like(slots, full)
        whole = sizes == self.block
        ranks = slots - (slots > short_at) if short else slots
        keys = self._keys(_BLOCKS, epochs[whole], np.zeros_like(epochs[whole]))
        blocks[whole] = _permuted(ranks[whole], np.full_like(ranks[whole], full), keys)
        return blocks * self.block + (places - begins)

    def _keys(self, purpose: int, epochs: NDArray[np.int64], item: NDArray[np.int64]) -> _Words:
        word = _mixed(self._seed_word + epochs.astype(np.uint64) * _STEP + np.uint64(purpose))
        return _mixed(word + item.astype(np.uint64) * _STEP)

    def _drawn(self, purpose: int, epochs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """A number below `count` for each epoch."""
        keys = self._keys(purpose, epochs, np.zeros_like(epochs))
        # 63 bits modulo a number of blocks: the bias is below 2^-25 for any that could exist.
        return (keys >> np.uint64(1)).astype(np.int64) % count


def _cut(
    places: NDArray[np.int64], size: int, short: int, short_at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Piece, its first place and its size, where pieces of `size` lie around a `short` one.

    With `short` 0 there is no short one.
    """
    if short == 0:
        pieces = places // size
        return pieces, pieces * size, np.full_like(places, size)
    begin_short = short_at * size
    after = places >= begin_short + short
    inside = (places >= begin_short) & ~after
    pieces = (places - after * short) // size + after
    return pieces, pieces * size - after * (size - short), np.where(inside, short, size)


def _permuted(
    values: NDArray[np.int64], sizes: NDArray[np.int64], keys: _Words
) -> NDArray[np.int64]:
    """Each value under the permutation of [0, size) with its key.

    A Feistel network (Luby and Rackoff 1988) over a rectangle hardly larger than the size; what
    falls outside goes through it again until it falls inside (Black and Rogaway 2002).
    """
    result = np.empty_like(values)
    # Small sets need more rounds until no structure is left.
    for rounds, chosen in ((_ROUNDS, sizes >= _SMALL), (_ROUNDS_IF_SMALL, sizes < _SMALL)):
        if chosen.any():
            result[chosen] = _walked(values[chosen], sizes[chosen], keys[chosen], rounds)
    return result


def _walked(
    values: NDArray[np.int64], sizes: NDArray[np.int64], keys: _Words, rounds: int
) -> NDArray[np.int64]:
    limits = sizes.astype(np.uint64)
    widths = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    heights = (limits + widths - _ONE) // widths
    round_keys = keys + _STEP * np.arange(1, rounds + 1, dtype=np.uint64)[:, None]
    result = _network(values.astype(np.uint64), widths, heights, round_keys)
    outside = np.flatnonzero(result >= limits)
    while outside.size:
        result[outside] = _network(
            result[outside], widths[outside], heights[outside], round_keys[:, outside]
        )
        outside = outside[result[outside] >= limits[outside]]
    return result.astype(np.int64)


def _network(values: _Words, widths: _Words, heights: _Words, round_keys: _Words) -> _Words:
    """One pass over rectangles: row and column are moved by a function of each other, in turn."""
    row, column = np.divmod(values, widths)
    for first, second in zip(round_keys[::2], round_keys[1::2], strict=True):
        row = (row + _hashed(column ^ first)) % heights
        column = (column + _hashed(row ^ second)) % widths
    return row * widths + column


def _hashed(words: _Words) -> _Words:
    """32 bits of each word."""
    words = words * _MIX1
    return (words ^ (words >> _32)) * _MIX2 >> _32


def _mixed(words: _Words) -> _Words:
    """The finalizer of SplitMix64 (Steele et al. 2014): a bijection without visible structure."""
    words = (words ^ (words >> _30)) * _MIX1
    words = (words ^ (words >> _27)) * _MIX2
    return words ^ (words >> _31)
