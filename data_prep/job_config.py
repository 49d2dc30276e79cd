"""What the sharding job is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import ray_start
from data_prep.images import ImageConfig
from data_prep.labels import check_labels_option
from data_prep.pyramid import level_sizes


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What to shard, where to, and how."""

    source: str | Path | Sequence[str | Path]
    """Path or URL of a folder, an archive or another form (see `data_prep.sources`), or several."""
    dest: str
    """URL of the data set's folder."""
    image: ImageConfig
    name: str = ""
    """Name of the data set; the last component of `dest` if empty, or the one it has."""
    samples_per_shard: int = 0
    """0: 1024 up to 256 px, 256 above."""
    workers: int | None = 1
    """Processes, or tasks of a cluster at a time; None: as many as there are CPUs."""
    ray: str = ""
    """Address of the Ray cluster whose tasks make the shards; empty: processes of this machine."""
    include: str = ""
    """Pattern that the names of images match; all if empty."""
    labels: str = "none"
    """none, folder, source or the URL of a table (see `data_prep.labels`)."""
    landmarks: str = ""
    """For the crop face: URL of ffhq-dataset-v2.json or of {path: 68 points}."""
    max_bad: int = 0
    """Images that may be left out."""

    def __post_init__(self) -> None:
        _check_dest(self.dest)
        dest = ray_start.absolute("DEST", self.dest)
        if self.ray:  # tasks of a cluster have other working directories
            sources = tuple(ray_start.absolute("SOURCE", url) for url in self.sources)
            object.__setattr__(self, "source", sources)
            object.__setattr__(self, "dest", dest)
        check_labels_option(self.labels)
        level_sizes(*self.image.size)
        if (self.image.crop == "face") != bool(self.landmarks or self.image.face_model):
            raise ValueError(
                "--crop face needs --landmarks or --face-model, and they are for it alone; "
                "give all or none"
            )
        if self.samples_per_shard == 0:
            usual = 1024 if self.image.resolution <= 256 else 256
            object.__setattr__(self, "samples_per_shard", usual)
        least = 1 if self.workers is None else self.workers
        if self.samples_per_shard < 1 or least < 1 or self.max_bad < 0:
            raise ValueError(
                f"samples per shard ({self.samples_per_shard}) and workers ({self.workers}) must "
                f"be at least 1, max-bad ({self.max_bad}) at least 0"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths and URLs of all sources."""
        each = [self.source] if isinstance(self.source, str | Path) else self.source
        return tuple(map(str, each))

    @property
    def shown(self) -> str:
        """The sources, for messages."""
        return ", ".join(self.sources)

    def parameters(self) -> dict[str, Any]:
        """What the data set's bytes follow from, but for the images."""
        return {
            **self.image.options(),
            "samples-per-shard": self.samples_per_shard,
            "labels": self.labels if self.labels in ("none", "folder", "source") else "table",
            **({"landmarks": "table"} if self.landmarks else {}),
        }


def _check_dest(dest: str) -> None:
    if not dest.strip():
        raise ValueError("DEST is empty; name a folder or a URL such as s3://bucket/pictures")
    if dest.startswith("memory://"):
        raise ValueError(f"DEST {dest} would be gone with this process; choose a folder or a store")
    if dest.endswith(".json"):
        raise ValueError(f"DEST {dest} is to be a folder; choose a name that ends otherwise")
