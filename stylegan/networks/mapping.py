"""The mapping network, from z and a label to w (Karras et al. 2019, Section 2).

Legend: n images, d label components.
"""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import Activation, Linear, activate, normal, pixel_norm
from stylegan.networks.growing import GrowingConfig, required


@dataclass(frozen=True, kw_only=True)
class MappingConfig(GrowingConfig):
    """Size of z and w, and of what lies between."""

    z_size: int = 512
    """Components of a latent z."""
    w_size: int = 512
    """Components of an intermediate latent w."""
    mapping_layers: int = 8
    """Dense layers from z to w; 0 = w is the normalized z."""
    mapping_width: int = 512
    """Features of the hidden mapping layers."""
    mapping_lr_multiplier: float = 0.01
    """Learning rate of the mapping network relative to the rest."""
    mapping_activation: Activation = "leaky_relu"
    """Activation of the mapping network, its last layer included."""
    normalize_z: bool = True
    """Scale z (with the embedded label) to unit mean square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("z_size", "w_size", "mapping_width"):
            self._at_least(key, 1)
        self._at_least("mapping_layers", 0)
        if self.mapping_lr_multiplier <= 0:
            raise ValueError(
                f"G.mapping_lr_multiplier is {self.mapping_lr_multiplier}; it must be above 0: "
                "choose 0.01 as the paper does, or 1"
            )
        if self.mapping_layers == 0 and self.w_size != self.mapping_input:
            raise ValueError(
                f"G.w_size is {self.w_size}, but without mapping layers w is what enters them; "
                f"choose G.w_size={self.mapping_input} or G.mapping_layers of 1 or more"
            )

    @property
    def mapping_input(self) -> int:
        """Features that enter the mapping network: z and the embedded label."""
        return self.z_size * (2 if self.label_size else 1)


class Mapping(nn.ModuleList):
    """z and a label to w."""

    def __init__(self, config: MappingConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        sizes = [config.mapping_input, *[config.mapping_width] * (config.mapping_layers - 1)]
        sizes = [*sizes[: config.mapping_layers], config.w_size]
        for i, o in itertools.pairwise(sizes):
            layer = Linear(
                (o, i),
                rng=rng,
                lr_multiplier=config.mapping_lr_multiplier,
                use_wscale=config.use_wscale,
            )
            self.append(layer)
        if config.label_size:
            self.label_weight = nn.Parameter(normal((config.label_size, config.z_size), rng))

    def forward(
        self, z: Float[Tensor, "n z_size"], labels: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "n w_size"]:
        x = z
        if self.config.label_size:
            embedded = required(labels, self.config).to(z.dtype) @ self.label_weight
            x = torch.cat([x, embedded], dim=1)
        if self.config.normalize_z:
            x = pixel_norm(x)
        for layer in self:
            x = activate(layer(x), self.config.mapping_activation)
        return x
