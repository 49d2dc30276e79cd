"""The mapping network, from z and a label to w (Karras et al. 2019, Section 2).

Legend: n images, d label components.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import HE_GAIN, Activation, Linear, activate, normal, pixel_norm
from stylegan.networks.interface import GeneratorConfig, accepted, check_z


@dataclass(frozen=True, kw_only=True)
class MappingConfig(GeneratorConfig):
    """Size of z and w, and of what lies between."""

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
        for key in ("w_size", "mapping_width"):
            self._at_least(key, 1)
        self._at_least("mapping_layers", 0)
        if not 0 < self.mapping_lr_multiplier < math.inf:
            raise ValueError(
                f"G.mapping_lr_multiplier is {self.mapping_lr_multiplier}; it must be finite "
                "and above 0: choose 0.01 as the paper does, or 1"
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

    def __init__(
        self,
        config: MappingConfig,
        rng: torch.Generator,
        *,
        gain: float = HE_GAIN,
        activation_gain: float = 1.0,
        use_wscale: bool = True,
    ) -> None:
        """Where He's factor stands: in the weights (`gain`), or behind each activation."""
        super().__init__()
        self.config = config
        self.activation_gain = activation_gain
        sizes = [config.mapping_input, *[config.mapping_width] * (config.mapping_layers - 1)]
        sizes = [*sizes[: config.mapping_layers], config.w_size]
        for i, o in itertools.pairwise(sizes):
            layer = Linear(
                (o, i),
                rng=rng,
                gain=gain,
                lr_multiplier=config.mapping_lr_multiplier,
                use_wscale=use_wscale,
            )
            self.append(layer)
        if config.label_size:
            self.label_weight = nn.Parameter(normal((config.label_size, config.z_size), rng))

    def forward(
        self, z: Float[Tensor, "n z_size"], labels: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "n w_size"]:
        check_z(z, self.config)
        x, known = z, accepted(labels, z.shape[0], self.config)
        if known is not None:
            x = torch.cat([x, known.to(z.dtype) @ self.label_weight], dim=1)
        if self.config.normalize_z:
            x = pixel_norm(x)
        for layer in self:
            x = activate(layer(x), self.config.mapping_activation, gain=self.activation_gain)
        return x
