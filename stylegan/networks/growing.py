"""What progressively growing networks have in common: sizes, and the levels that a lod reaches.

At `lod` = k + t images are R / 2**k pixels wide; t > 0 while that level fades in.
"""

import math
from dataclasses import dataclass

from stylegan.layers import Activation
from stylegan.networks.interface import DiscriminatorConfig, NetworkConfig


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
