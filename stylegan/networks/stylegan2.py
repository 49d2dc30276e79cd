"""StyleGAN2's generator and discriminator (Karras et al. 2020).

Images and features pass from size to size in one of the ways of Figure 7: `skip` sums the images
of all sizes, `residual` adds features past each block, `plain` has neither, and `growing` fades
sizes in as StyleGAN does (configurations B to D). Blocks are named by their side:
`synthesis.blocks.8.conv0.weight`.

Legend: n images, c h w, H W twice h w, i o features in and out, l layers, d label components.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.convolution import convolve
from stylegan.layers import (
    HE_GAIN,
    Activation,
    Conv,
    Equalized,
    Linear,
    activate,
    append_minibatch_stddev,
    normal,
)
from stylegan.modulation import ModulatedConv
from stylegan.networks import interface
from stylegan.networks.growing import GrowingConfig, GrowingDiscriminatorConfig
from stylegan.networks.interface import (
    accepted,
    check_images,
    check_noise,
    check_ws,
    parameters,
)
from stylegan.networks.mapping import Mapping, MappingConfig
from stylegan.resample import Fir, blocky_up, box_down

Architecture = Literal["skip", "residual", "plain", "growing"]

_HALF_VARIANCE = math.sqrt(0.5)
"""Of each of the two paths that a residual block adds."""


@dataclass(frozen=True, kw_only=True)
class _Switches(GrowingConfig):
    """Of both networks."""

    fmap_base: int = 16384
    """Feature maps at a side of r pixels: 2 * fmap_base / r, at most `fmap_max`; in configurations
    A to E 8192."""
    architecture: Architecture = "skip"
    """`skip`, `residual`, `plain` or `growing`."""
    fir: Sequence[int] = (1, 3, 3, 1)
    """Taps of the low-pass filter of each resampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "fir", tuple(self.fir))  # YAML and JSON give lists
        if len(self.fir) < 2 or sum(self.fir) == 0 or self.fir != self.fir[::-1]:
            raise ValueError(
                f"{self.name}.fir is {list(self.fir)}; it must be 2 taps or more, symmetric and "
                "not of sum 0: choose [1, 3, 3, 1]"
            )

    @property
    def grows(self) -> bool:
        """Whether lods above 0 exist."""
        return self.architecture == "growing"

    def rgb_sides(self, lod: float | None = None) -> list[int]:
        """Sides of the RGB heads: those that take part at `lod`, or all that there are."""
        every = self.architecture == "skip" or (lod is None and self.grows)
        return self.resolutions(lod or 0.0) if every else self.heads(lod or 0.0)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(MappingConfig, _Switches):
    """Size and switches of G (Karras et al. 2020, Sections 2.2 and 4.1)."""

    kind: Literal["stylegan2"] = "stylegan2"
    """The paper."""

    def layers(self, lod: float = 0.0) -> int:
        """Rows of `ws` that images of `lod` depend on; heads count as layers."""
        return 2 * len(self.resolutions(lod))

    def noise_sides(self, lod: float = 0.0) -> tuple[int, ...]:
        """Side in pixels of each noise input of `lod`: one at 4 px, then two of each size."""
        return tuple(side for side in self.resolutions(lod) for _ in range(2))[1:]


class SynthesisLayer(ModulatedConv):
    """Modulated 3x3 convolution, noise, bias and activation."""

    def __init__(
        self,
        shape: tuple[int, ...],
        config: GeneratorConfig,
        rng: torch.Generator,
        *,
        fir: Fir | None = None,
        gain: float = HE_GAIN,
    ) -> None:
        """`gain`: of the activation; it is positive and so may stand before it."""
        super().__init__(shape, w_size=config.w_size, rng=rng, fir=fir)
        self.activation: Activation = config.activation
        self.gain = gain
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Float[Tensor, "n i _ _"],
        w: Float[Tensor, "n w_size"],
        noise: Float[Tensor, "_ 1 h w"],
    ) -> Float[Tensor, "n o h w"]:
        y = self.convolve(x, w, gain=self.gain)
        strength = self.noise_strength * self.gain
        return activate(torch.addcmul(y, noise.to(y.dtype), strength.to(y.dtype)), self.activation)


class ToRgb(ModulatedConv):
    """Features to colours; a sum of images is too fine for half precision."""

    def __init__(self, side: int, config: GeneratorConfig, rng: torch.Generator) -> None:
        shape = (config.channels, config.fmaps(side), 1, 1)
        super().__init__(shape, w_size=config.w_size, rng=rng, demodulate=False)

    def forward(
        self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n w_size"]
    ) -> Float[Tensor, "n c h w"]:
        return self.convolve(x, w).to(self.weight.dtype)


class SynthesisBlock(nn.Module):
    """Two layers at one resolution; in place of the first, 4 px has a constant."""

    def __init__(
        self, resolution: int, config: GeneratorConfig, fir: Fir, rng: torch.Generator
    ) -> None:
        super().__init__()
        o, i = config.fmaps(resolution), config.fmaps(resolution // 2)
        gain = HE_GAIN
        self.skip = None
        if resolution == 4:
            self.const = nn.Parameter(normal((1, o, 4, 4), rng))
        else:
            self.conv0 = SynthesisLayer((o, i, 3, 3), config, rng, fir=fir)
            if config.architecture == "residual":
                self.skip = Conv((o, i, 1, 1), rng=rng, gain=_HALF_VARIANCE, bias=False)
                gain *= _HALF_VARIANCE
        self.conv1 = SynthesisLayer((o, o, 3, 3), config, rng, gain=gain)
        self.fir = fir

    def forward(
        self,
        x: Float[Tensor, "n i _ _"] | None,
        ws: Float[Tensor, "n l w_size"],
        noise: Sequence[Float[Tensor, "_ 1 h w"]],
    ) -> Float[Tensor, "n o h w"]:
        if x is None:
            y = self.const.expand(ws.shape[0], -1, -1, -1)
        else:
            y = self.conv0(x, ws[:, 0], noise[0])
        features: Tensor = self.conv1(y, ws[:, -1], noise[-1])
        return features if self.skip is None else features + self.fir.up(self.skip(x))


class Synthesis(nn.Module):
    """One w per layer to images (Karras et al. 2020, Figures 2 and 7)."""

    def __init__(self, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.fir = Fir(config.fir)
        self.blocks = nn.ModuleDict()
        self.to_rgb = nn.ModuleDict()
        for side in config.resolutions():
            self.blocks[str(side)] = SynthesisBlock(side, config, self.fir, rng)
            if side in config.rgb_sides():
                self.to_rgb[str(side)] = ToRgb(side, config, rng)
        for layer, side in enumerate(config.noise_sides()):
            self.register_buffer(f"noise{layer}", normal((1, 1, side, side), rng))

    def forward(
        self,
        ws: Float[Tensor, "n l w_size"],
        *,
        noise: Sequence[Tensor] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n c h w"]:
        """Images at the native size of `lod`.

        Args:
            ws: One w per layer; heads count as layers.
            noise: [n 1 h w] per layer but heads that `lod` reaches; None = the stored noise.
            lod: Level of detail; 0 = full resolution.
        """
        check_ws(ws, self.config, lod)
        check_noise(noise, ws.shape[0], self.config, lod)
        if noise is None:
            noise = [self.get_buffer(f"noise{i}") for i in range(len(self.config.noise_sides()))]
        shown = self.config.rgb_sides(lod)
        x: Tensor | None = None
        images: Tensor | None = None
        for index, side in enumerate(self.config.resolutions(lod)):
            first, head = max(2 * index - 1, 0), 2 * index + 1
            x = self.blocks[str(side)](x, ws[:, first:head], noise[first:head])
            if side in shown:
                rgb = self.to_rgb[str(side)](x, ws[:, head])
                images = rgb if images is None else self._join(images, rgb, lod)
        assert images is not None
        return images

    def _join(
        self, coarse: Float[Tensor, "n c h w"], fine: Float[Tensor, "n c H W"], lod: float
    ) -> Float[Tensor, "n c H W"]:
        if self.config.grows:
            return torch.lerp(fine, blocky_up(coarse), lod - int(lod))
        return self.fir.up(coarse) + fine


class Generator(interface.Generator):
    """StyleGAN2's G."""

    config: GeneratorConfig
    mapping: Mapping
    synthesis: Synthesis

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        self.mapping = Mapping(config, rng, gain=1.0, activation_gain=HE_GAIN)
        self.synthesis = Synthesis(config, rng)

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        blocks = [self.synthesis.blocks[str(side)] for side in self.config.resolutions(lod)]
        heads = [self.synthesis.to_rgb[str(side)] for side in self.config.rgb_sides(lod)]
        return parameters([self.mapping, *blocks, *heads])


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(_Switches, GrowingDiscriminatorConfig):
    """Size and switches of D (Karras et al. 2020, Section 4.1)."""

    kind: Literal["stylegan2"] = "stylegan2"
    """The paper."""
    architecture: Architecture = "residual"
    """`skip`, `residual`, `plain` or `growing`."""


class DiscriminatorLayer(Equalized):
    """Convolution, bias and activation; `shape` is [o i k k], and `fir` halves the size."""

    def __init__(
        self,
        shape: tuple[int, ...],
        config: DiscriminatorConfig,
        rng: torch.Generator,
        *,
        fir: Fir | None = None,
        gain: float = HE_GAIN,
    ) -> None:
        """`gain`: of the activation; it is positive and so may stand before it."""
        super().__init__(shape, rng=rng, gain=1.0)
        self.activation: Activation = config.activation
        self.fir = fir
        self.gain = gain

    def forward(self, x: Float[Tensor, "n i _ _"]) -> Float[Tensor, "n o _ _"]:
        assert self.bias is not None
        weight, bias = self.weight * (self.scale * self.gain), self.bias * self.gain
        if self.fir is None:
            y = convolve(x, weight, bias, padding=weight.shape[-1] // 2)
        else:
            y = convolve(self.fir.before_down_conv(x), weight, bias, stride=2)
        return activate(y, self.activation)


class DiscriminatorBlock(nn.Module):
    """Features at one resolution to features at half of it."""

    def __init__(
        self, resolution: int, config: DiscriminatorConfig, fir: Fir, rng: torch.Generator
    ) -> None:
        super().__init__()
        i, o = config.fmaps(resolution), config.fmaps(resolution // 2)
        gain = HE_GAIN
        self.skip = None
        self.conv0 = DiscriminatorLayer((i, i, 3, 3), config, rng)
        if config.architecture == "residual":
            self.skip = Conv((o, i, 1, 1), rng=rng, gain=_HALF_VARIANCE, bias=False)
            gain *= _HALF_VARIANCE
        self.conv1 = DiscriminatorLayer((o, i, 3, 3), config, rng, fir=fir, gain=gain)
        self.fir = fir

    def forward(self, x: Float[Tensor, "n i H W"]) -> Float[Tensor, "n o h w"]:
        features: Tensor = self.conv1(self.conv0(x))
        return features if self.skip is None else features + self.skip(self.fir.down(x))


class DiscriminatorTail(nn.Module):
    """Features at 4 px to outputs, one for each label component."""

    def __init__(self, config: DiscriminatorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        fmaps, hidden, outputs = config.fmaps(4), config.fmaps(2), max(config.label_size, 1)
        extra = config.mbstd_features if config.mbstd_group > 1 else 0
        self.conv = DiscriminatorLayer((fmaps, fmaps + extra, 3, 3), config, rng)
        self.dense0 = Linear((hidden, fmaps * 16), rng=rng, gain=1.0)
        self.dense1 = Linear((outputs, hidden), rng=rng, gain=1.0)

    def forward(self, x: Float[Tensor, "n i 4 4"]) -> Float[Tensor, "n o"]:
        group, features = self.config.mbstd_group, self.config.mbstd_features
        if group > 1:
            x = append_minibatch_stddev(x, group=group, features=features)
        x = self.dense0(self.conv(x).flatten(1))
        outputs: Tensor = self.dense1(activate(x, self.config.activation, gain=HE_GAIN))
        return outputs


class Discriminator(interface.Discriminator):
    """StyleGAN2's D: images at the native size of `lod` to logits."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        self.fir = Fir(config.fir)
        self.from_rgb = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for side in config.resolutions():
            if side in config.rgb_sides():
                shape = (config.fmaps(side), config.channels, 1, 1)
                self.from_rgb[str(side)] = DiscriminatorLayer(shape, config, rng)
            if side > 4:
                self.blocks[str(side)] = DiscriminatorBlock(side, config, self.fir, rng)
        self.tail = DiscriminatorTail(config, rng)

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Float[Tensor, "n d"] | None = None,
        lod: float = 0.0,
        *,
        dropout: Tensor | None = None,
    ) -> Float[Tensor, "n 1"]:
        """Logits; there is no dropout."""
        fine, *coarse = reversed(self.config.rgb_sides(lod))
        check_images(images, fine, self.config)
        weights = accepted(labels, len(images), self.config)
        x: Tensor = self.from_rgb[str(fine)](images)
        for side in reversed(self.config.resolutions(lod)[1:]):
            x = self.blocks[str(side)](x)
            if side // 2 in coarse:
                images = box_down(images) if self.config.grows else self.fir.down(images)
                x = self._join(x, self.from_rgb[str(side // 2)](images), lod)

        outputs: Tensor = self.tail(x)
        if weights is None:
            return outputs
        return (outputs * weights.to(outputs.dtype)).sum(dim=1, keepdim=True)

    def _join(
        self, fine: Float[Tensor, "n i h w"], coarse: Float[Tensor, "n i h w"], lod: float
    ) -> Float[Tensor, "n i h w"]:
        if self.config.grows:
            return torch.lerp(fine, coarse, lod - int(lod))
        return fine + coarse

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in logits of `lod`."""
        heads = [self.from_rgb[str(side)] for side in self.config.rgb_sides(lod)]
        blocks = [self.blocks[str(side)] for side in self.config.resolutions(lod)[1:]]
        return parameters([*heads, *blocks, self.tail])
