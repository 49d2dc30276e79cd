"""How well the order of a run mixes a data set, beside a permutation of the whole.

    python -m tests.benchmarks.shuffle_quality

Data sets that are sorted by class are the hard case, as neighbours are alike. Measured over an
epoch, for minibatches: how many classes one holds, how far its mean class number is from the mean
of all (in standard errors: 1 for independent draws), and how alike two in a row are (correlation of
these means: 0). Windows are looked at, too: the part of all classes that one holds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.order import BLOCK, WINDOW, SampleOrder

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Quality:
    """See the head of this file."""

    classes_in_batch: float
    """Mean over all minibatches."""
    batch_spread: float
    """Root mean square distance of minibatch means, in standard errors."""
    batch_correlation: float
    """Of the means of minibatches in a row."""
    classes_in_window: float
    """Mean part over all windows."""
    successors: float
    """Part of the samples that are followed by their successor in the data set, times samples."""


def quality(shown: NDArray[np.int64], classes: int) -> Quality:
    """Of one epoch, shown in this order, of as many samples of each class, sorted by it."""
    labels = shown * classes // len(shown)
    batches = np.sort(labels[: len(labels) // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    means = batches.mean(axis=1) - (classes - 1) / 2
    size = BLOCK * WINDOW
    windows = [np.unique(labels[at : at + size]) for at in range(0, len(labels) - size + 1, size)]
    return Quality(
        classes_in_batch=float((np.diff(batches, axis=1) > 0).sum(axis=1).mean() + 1),
        batch_spread=float(means.std() / np.sqrt((classes**2 - 1) / 12 / BATCH)),
        batch_correlation=float(np.corrcoef(means[:-1], means[1:])[0, 1]),
        classes_in_window=float(np.mean([len(window) / classes for window in windows])),
        successors=float((np.diff(shown) == 1).sum()),
    )


def compare(samples: int, classes: int, *, seed: int = 0) -> tuple[Quality, Quality]:
    """Quality of an epoch in our order, and in that of a permutation of all samples."""
    epoch = np.arange(samples, 2 * samples)
    ours = quality(SampleOrder(samples, seed).samples_at(epoch), classes)
    return ours, quality(np.random.default_rng(seed).permutation(samples), classes)


def main() -> None:
    """Print a table in Markdown."""
    print(
        "| samples, classes | order | classes in a minibatch of 32 | spread | correlation |", end=""
    )
    print(" classes in a window | successors |")
    print("|---|---|---|---|---|---|---|")
    for samples, classes in [(50_000, 10), (126_000, 6), (1_281_167, 1000), (10_000_000, 10_000)]:
        for name, found in zip(("windows", "permutation"), compare(samples, classes), strict=True):
            print(
                f"| {samples:,}, {classes:,} | {name} | {found.classes_in_batch:.2f} | "
                f"{found.batch_spread:.3f} | {found.batch_correlation:+.3f} | "
                f"{found.classes_in_window:.1%} | {found.successors:.0f} |"
            )


if __name__ == "__main__":
    main()
