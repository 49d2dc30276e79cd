"""What the first networks have in common: one size, no labels, no mapping network.

Legend: n images, d label components.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.networks import interface
from stylegan.networks.interface import NetworkConfig, accepted, check_z


@dataclass(frozen=True, kw_only=True)
class FixedSizeConfig(NetworkConfig):
    """Networks that neither grow nor know labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_size:
            raise ValueError(
                f"{self.name}.label_size is {self.label_size}, but networks of kind {self.kind} "
                "know no labels; set label_size=0 or choose kind pggan, stylegan or stylegan2"
            )


class UniformLatents(nn.Module):
    """Normal z to components that are uniform in [-1, 1], through their distribution function."""

    def __init__(self, config: interface.GeneratorConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, z: Float[Tensor, "n z_size"], labels: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "n z_size"]:
        check_z(z, self.config)
        accepted(labels, len(z), self.config)
        return torch.erf(z * math.sqrt(0.5))
