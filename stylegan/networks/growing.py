"""What progressively growing networks have in common: sizes, and the levels that a lod reaches.

At `lod` = k + t images are R / 2**k pixels wide; t > 0 while that level fades in.

Legend: n images, d label components.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stylegan.layers import Activation


@dataclass(frozen=True, kw_only=True)
class GrowingConfig:
    """Size and switches that G and D share (Karras et al. 2018, Appendix A; 2019, Appendix C)."""

    resolution: int
    """Side of full-size images in pixels, a power of two."""
    channels: int = 3
    """Colour channels of the images."""
    label_size: int = 0
    """Components of a label; 0 = no labels."""
    fmap_base: int = 8192
    """Feature maps at a side of r pixels: 2 * fmap_base / r, at most `fmap_max`."""
    fmap_max: int = 512
    """Most feature maps of any layer."""
    activation: Activation = "leaky_relu"
    """`leaky_relu` (slope 0.2) or `relu`."""
    blur: Sequence[int] = (1, 2, 1)
    """Taps of the low-pass filter beside each resampling; [] = no filter."""
    use_wscale: bool = True
    """Equalized learning rate."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blur", tuple(self.blur))  # YAML and JSON give lists
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise ValueError(
                f"resolution is {self.resolution}; it must be a power of two of at least 4: "
                "choose 4, 8, 16, ... and prepare the images at that size"
            )
        for key in ("channels", "fmap_base", "fmap_max"):
            self._at_least(key, 1)
        self._at_least("label_size", 0)
        if self.blur and (sum(self.blur) == 0 or self.blur != self.blur[::-1]):
            raise ValueError(
                f"{self.name}.blur is {list(self.blur)}; taps must be symmetric and not sum to 0: "
                "choose [1, 2, 1], or [] for none"
            )

    @property
    def name(self) -> str:
        """G or D, for messages."""
        return "D" if type(self).__name__.startswith("D") else "G"

    def fmaps(self, resolution: int) -> int:
        """Feature maps of G's layers at `resolution`, and of those of D that take it in."""
        return max(1, min(self.fmap_base * 2 // resolution, self.fmap_max))

    def resolutions(self, lod: float = 0.0) -> list[int]:
        """Sides of the blocks that take part at `lod`, from 4 px up."""
        return [2**r for r in range(2, self._native(lod).bit_length())]

    def heads(self, lod: float) -> list[int]:
        """Sides of the RGB heads that take part at `lod`: two while a level fades in."""
        native = self._native(lod)
        return [native] if lod == int(lod) else [native // 2, native]

    def _native(self, lod: float) -> int:
        highest = int(math.log2(self.resolution)) - 2
        if not 0 <= lod <= highest:
            raise ValueError(
                f"lod is {lod}; networks of {self.resolution} px have 0 (full size) to {highest} "
                "(4 px): make them larger or choose a lod between"
            )
        return self.resolution >> int(lod)

    def _at_least(self, key: str, least: int) -> None:
        if getattr(self, key) < least:
            raise ValueError(f"{self.name}.{key} is {getattr(self, key)}; choose {least} or more")


def required(labels: Float[Tensor, "n d"] | None, config: GrowingConfig) -> Float[Tensor, "n d"]:
    """The labels of a network that was made for them.

    Raises:
        ValueError: There are none.
    """
    if labels is None:
        raise ValueError(
            f"{config.name} was made for labels of {config.label_size} components and got none; "
            f"pass labels or make {config.name} with label_size=0"
        )
    return labels
