"""Sections of a configuration that belong to no class of their own."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.names import check_alias, check_name
from stylegan.networks import family


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images are shown."""

    url: str
    """Folder or URL of a data set made by `python -m data_prep shard`."""
    mirror: bool = False
    """Flip a keyed half of the images left to right."""

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("data.url is empty; name the folder or URL of a data set")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """G and D; what both share stands beside them."""

    kind: Literal["gan", "dcgan", "pggan", "stylegan", "stylegan2"] = "stylegan"
    """The paper: gan, dcgan, pggan, stylegan or stylegan2."""
    resolution: int
    """Width and height of the finished generator's images, in pixels."""
    channels: int = 3
    """Of the images; 3 is RGB."""
    label_size: int = 0
    """Length of the labels; 0 is unconditional."""
    G: Annotated[family.GeneratorConfig, Field(discriminator="kind")]
    """Generator."""
    D: Annotated[family.DiscriminatorConfig, Field(discriminator="kind")]
    """Discriminator."""


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where the finished generator is registered."""

    name: str = ""
    """Name of the registered model; empty for the run's name."""
    alias: str = "champion"
    """Alias that moves to a version only if it is better, like for like; empty for none."""
    checkpoint: Literal["last", "best"] = "last"
    """Which one is registered; best: by evaluation.best_by, of those that were measured."""

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name, "registry.name")
        if self.alias:
            check_alias(self.alias, "registry.alias")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How Ray runs the group of workers."""

    address: str = "auto"
    """auto: the cluster of the job or of RAY_ADDRESS, else a local one; local: never another's."""
    max_failures: int = 10
    """Failures without a new checkpoint between them after which the run fails."""
    first_wait_s: float = 1
    """Seconds before the workers start again where Ray has given them up; doubled each time."""
    longest_wait_s: float = 60
    """Upper bound of that."""
    resize_s: float = 60
    """Seconds between looks for more nodes, where `workers` is a range."""

    def __post_init__(self) -> None:
        for name in ("max_failures", "first_wait_s", "longest_wait_s", "resize_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ray.{name} is {getattr(self, name)}; choose 0 or more")

    def pause_s(self, failures: int) -> float:
        """Seconds to wait after so many failures before the last one."""
        return float(min(self.first_wait_s * 2.0**failures, self.longest_wait_s))
