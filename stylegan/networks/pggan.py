"""Progressive GAN's generator and discriminator (Karras et al. 2018)."""

from dataclasses import dataclass
from typing import Literal

from stylegan.networks import interface
from stylegan.networks.growing import GrowingConfig, GrowingDiscriminatorConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(interface.GeneratorConfig, GrowingConfig):
    """Size of G (Karras et al. 2018, Table 2)."""

    kind: Literal["pggan"] = "pggan"
    """The paper."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(GrowingDiscriminatorConfig):
    """Size of D (Karras et al. 2018, Table 2)."""

    kind: Literal["pggan"] = "pggan"
    """The paper."""
