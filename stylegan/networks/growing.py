"""What progressively growing networks have in common: sizes, levels, and how levels fade.

At `lod` = k + t images are R / 2**k pixels wide; t > 0 while that level fades in (Karras et al.
2018, Figure 2). G fades images, D features.

Legend: n images, c h w, i features in, k outputs of D.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import Activation, activate
from stylegan.networks.interface import (
    Discriminator,
    DiscriminatorConfig,
    NetworkConfig,
    check_images,
    parameters,
)
from stylegan.resample import blocky_up, box_down


@dataclass(frozen=True, kw_only=True)
class GrowingConfig(NetworkConfig):
    """Size and switches that G and D share (Karras et al. 2018, Appendix A; 2019, Appendix C)."""

    fmap_base: int = 8192
    """Feature maps at a side of r pixels: 2 * fmap_base / r, at most `fmap_max`."""
    fmap_max: int = 512
    """Most feature maps of any layer."""
    activation: Activation = "leaky_relu"
    """`leaky_relu` (slope 0.2) or `relu`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("fmap_base", 1)
        self._at_least("fmap_max", 1)

    @property
    def grows(self) -> bool:
        """Whether lods above 0 exist."""
        return True

    def fmaps(self, resolution: int) -> int:
        """Feature maps of G's layers at `resolution`, and of those of D that take it in."""
        return max(1, min(self.fmap_base * 2 // resolution, self.fmap_max))

    def resolutions(self, lod: float = 0.0) -> list[int]:
        """Sides of the blocks that take part at `lod`, from 4 px up."""
        return [2**r for r in range(2, self.side(lod).bit_length())]

    def heads(self, lod: float) -> list[int]:
        """Sides of the RGB heads that take part at `lod`: two while a level fades in."""
        side = self.side(lod)
        return [side] if lod == int(lod) else [side // 2, side]

    def side(self, lod: float) -> int:
        """Width and height of images at `lod`, in pixels.

        Raises:
            ValueError: The networks have no such lod.
        """
        highest = int(math.log2(self.resolution)) - 2 if self.grows else 0
        if not 0 <= lod <= highest:
            raise ValueError(
                f"lod is {lod}; networks of {self.resolution} px have 0 (full size) to {highest}: "
                "make them larger or choose a lod between"
                if self.grows
                else f"lod is {lod}, but {self.name} does not grow; choose lod 0"
            )
        return self.resolution >> int(lod)


@dataclass(frozen=True, kw_only=True)
class GrowingDiscriminatorConfig(DiscriminatorConfig, GrowingConfig):
    """Minibatch stddev beside the size (Karras et al. 2018, Section 3)."""

    mbstd_group: int = 4
    """Images per minibatch-stddev group; 0 or 1 = none."""
    mbstd_features: int = 1
    """Feature maps of minibatch stddev."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("mbstd_group", 0)
        self._at_least("mbstd_features", 1)
        if self.fmaps(4) % self.mbstd_features:
            raise ValueError(
                f"D.mbstd_features is {self.mbstd_features}; it must divide the {self.fmaps(4)} "
                "feature maps of the 4 px layer: choose 1"
            )

    @property
    def group(self) -> int:
        """Images that D looks at together."""
        return max(self.mbstd_group, 1)


class GrowingSynthesis(nn.Module):
    """The blocks and RGB heads of a G, by their side in pixels; subclasses make them."""

    config: GrowingConfig

    def __init__(self, config: GrowingConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleDict()
        self.to_rgb = nn.ModuleDict()

    def images(
        self, previous: Float[Tensor, "n _ *_s"] | None, x: Float[Tensor, "n i h w"], lod: float
    ) -> Float[Tensor, "n c h w"]:
        """Images of the features of the last two blocks that `lod` reaches."""
        *coarse, fine = self.config.heads(lod)
        images: Tensor = self.to_rgb[str(fine)](x)
        if coarse:
            enlarged = blocky_up(self.to_rgb[str(coarse[0])](previous))
            images = torch.lerp(images, enlarged, lod - int(lod))
        return images

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        blocks = [self.blocks[str(side)] for side in self.config.resolutions(lod)]
        heads = [self.to_rgb[str(side)] for side in self.config.heads(lod)]
        return parameters([*blocks, *heads])


class GrowingDiscriminator(Discriminator):
    """The RGB heads and blocks of a D, by their side, and its tail; subclasses make them."""

    config: GrowingDiscriminatorConfig
    tail: nn.Module

    def __init__(self, config: GrowingDiscriminatorConfig) -> None:
        super().__init__(config)
        self.from_rgb = nn.ModuleDict()
        self.blocks = nn.ModuleDict()

    def outputs(self, images: Float[Tensor, "n c h w"], lod: float) -> Float[Tensor, "n k"]:
        """What the tail says of images at the native size of `lod`."""
        *coarse, fine = self.config.heads(lod)
        check_images(images, fine, self.config)
        x = self._from_rgb(images, fine)
        for resolution in reversed(self.config.resolutions(lod)[1:]):
            x = self.blocks[str(resolution)](x)
            if coarse and resolution == fine:
                x = torch.lerp(x, self._from_rgb(box_down(images), coarse[0]), lod - int(lod))
        outputs: Tensor = self.tail(x)
        return outputs

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in logits of `lod`."""
        heads = [self.from_rgb[str(side)] for side in self.config.heads(lod)]
        blocks = [self.blocks[str(side)] for side in self.config.resolutions(lod)[1:]]
        return parameters([*heads, *blocks, self.tail])

    def _from_rgb(self, images: Tensor, resolution: int) -> Tensor:
        return activate(self.from_rgb[str(resolution)](images), self.config.activation)
