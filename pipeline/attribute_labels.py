"""Attributes of a data set's images: what its labels say, and which images are held out.

    labels = AttributeLabels.read(url, Manifest.load(url))
    has = labels.has("smiling")
    split = split_samples(has, seed=0)

Every class is an attribute, which its images have and no others; every number of a vector is one,
which images with the larger of its two values have.

Legend: n images.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import Labels, Manifest, ShardIndex, folder_url

_HELD_OUT = 10
"""One image of so many decides when to stop, and as many tell how good the classifier is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributeLabels:
    """The labels of all images."""

    url: str
    """Of the data set."""
    names: tuple[str, ...]
    """Those of the labels; their numbers where they have none."""
    values: NDArray[np.float32]
    """Classes [n], or vectors [n, numbers]."""

    @classmethod
    def read(cls, url: str, manifest: Manifest) -> "AttributeLabels":
        """Read them from the indices of all shards.

        Raises:
            DigestError: An index is not the one that was written.
            ValueError: The data set has no labels.
        """
        if manifest.labels is None:
            raise ValueError(
                f"{url} has no labels; make it again by `python -m data_prep shard … --labels "
                f"folder`, or with a table of attributes"
            )
        base, resolution = folder_url(url), manifest.resolution
        rows: list[NDArray[np.float32]] = []
        for number in range(manifest.num_shards):
            index = ShardIndex.load(base, resolution, number, manifest)
            if index.labels is None or len(index.labels) != len(index):
                raise ValueError(
                    f"shard {number} of {url} has images without labels; run `python -m data_prep "
                    f"check {url}`, and make it again"
                )
            rows.append(np.array(index.labels, np.float32))
        return cls(url=url, names=_names(manifest.labels), values=np.concatenate(rows))

    @property
    def usual(self) -> Sequence[str]:
        """All attributes; of two classes the second alone, because the first is its opposite."""
        return self.names[1:] if self.values.ndim == 1 and len(self.names) == 2 else self.names

    def has(self, name: str) -> NDArray[np.bool_]:
        """Whether each image has the attribute, [n].

        Raises:
            ValueError: There is no such attribute, or it has not two values.
        """
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            raise ValueError(
                f"{self.url} has no attribute {name!r}"
                f"{f'; did you mean {near[0]}?' if near else ''}; choose from "
                f"{', '.join(self.names[:50])}"
            )
        place = self.names.index(name)
        column = self.values == place if self.values.ndim == 1 else self.values[:, place]
        found = len(np.unique(column))
        if found != 2:
            raise ValueError(
                f"attribute {name} of {self.url} has {found} value{'s' * (found > 1)} in its "
                f"{len(column)} images, but a classifier tells two apart; leave it out with "
                f"--attribute for the others"
            )
        has: NDArray[np.bool_] = column == column.max()
        return has


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Sample numbers, each in one of three parts."""

    train: NDArray[np.int64]
    stop: NDArray[np.int64]
    """Held out to decide when to stop."""
    test: NDArray[np.int64]
    """Held out to tell how good the classifier is."""


def split_samples(has: NDArray[np.bool_], *, seed: int, name: str = "") -> Split:
    """Hold out a tenth twice, keyed by the seed, of the images that have and of those that do not.

    Raises:
        ValueError: There are too few of either.
    """
    rng = np.random.RandomState(seed)
    parts: list[list[NDArray[np.int64]]] = [[], [], []]
    for answer, what in ((True, "with"), (False, "without")):
        members = rng.permutation(np.flatnonzero(has == answer))
        tenth = len(members) // _HELD_OUT
        if not tenth:
            raise ValueError(
                f"{len(members)} images are {what} attribute {name}; at least {_HELD_OUT} must be, "
                f"because a tenth is held out twice: leave it out or add images"
            )
        for part, own in zip(parts, np.split(members, [-2 * tenth, -tenth]), strict=True):
            part.append(own)
    train, stop, test = (np.sort(np.concatenate(part)) for part in parts)
    return Split(train=train, stop=stop, test=test)


def _names(labels: Labels) -> tuple[str, ...]:
    return labels.names or tuple(map(str, range(labels.size)))
