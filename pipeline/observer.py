"""What a training tells whoever watches it."""

from dataclasses import dataclass
from typing import Protocol

from pipeline.marker import CommittedCheckpoint


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What is reported now and then."""

    nimg: int
    total_nimg: int
    lod: float
    resolution: int
    batch: int
    images_per_s: float
    """Over all workers, since the last tick."""
    metrics: dict[str, float]
    """By the names that tracking shows, such as loss/D."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A checkpoint that has become visible."""

    checkpoint: CommittedCheckpoint
    lod: float
    samples_url: str
    """A grid of Gs' images as PNG."""


class Observer(Protocol):
    """Is told by rank 0 what happens; must return at once."""

    def began(self, nimg: int, url: str) -> None:
        """Training begins at `nimg`; `url` is the checkpoint it goes on from, or empty."""
        ...

    def tick(self, tick: Tick) -> None:
        """Progress."""
        ...

    def committed(self, commit: Commit) -> None:
        """A checkpoint is visible."""
        ...
