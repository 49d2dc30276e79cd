"""StyleGAN's generator and discriminator with progressive growing (Karras et al. 2019).

Both work at the native size of a level: at `lod` = k + t images are R / 2**k pixels wide, and t > 0
fades that level in. Blocks are named by their side: `synthesis.blocks.8.conv0.weight`.

Legend: n images, c h w, l layers, d label components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import (
    HE_GAIN,
    Conv,
    DownConv,
    Linear,
    UpConv,
    activate,
    append_minibatch_stddev,
    instance_norm,
    normal,
    pixel_norm,
)
from stylegan.networks import interface
from stylegan.networks.growing import (
    GrowingConfig,
    GrowingDiscriminator,
    GrowingDiscriminatorConfig,
    GrowingSynthesis,
)
from stylegan.networks.interface import (
    accepted,
    check_noise,
    check_ws,
)
from stylegan.networks.mapping import Mapping, MappingConfig
from stylegan.resample import Blur

_FUSED_FROM_PX = 128


@dataclass(frozen=True, kw_only=True)
class _Switches(GrowingConfig):
    """Of both networks."""

    blur: Sequence[int] = (1, 2, 1)
    """Taps of the low-pass filter beside each resampling; [] = no filter."""
    use_wscale: bool = True
    """Equalized learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blur", tuple(self.blur))  # YAML and JSON give lists
        if self.blur and (sum(self.blur) == 0 or self.blur != self.blur[::-1]):
            raise ValueError(
                f"{self.name}.blur is {list(self.blur)}; taps must be symmetric and not sum to 0: "
                "choose [1, 2, 1], or [] for none"
            )


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(MappingConfig, _Switches):
    """Size and switches of G (Karras et al. 2019, Sections 2 and 3, Tables 1 and 4)."""

    kind: Literal["stylegan"] = "stylegan"
    """The paper."""
    const_input: bool = True
    """A learned 4x4 constant as first layer; off = a dense layer from w."""
    use_styles: bool = True
    """Scale and shift by w in each layer (AdaIN); off = w enters the first layer alone."""
    use_noise: bool = True
    """Noise input in each layer."""
    use_instance_norm: bool = True
    """Normalize each feature map before its style."""
    use_pixel_norm: bool = False
    """Normalize the features of each pixel, as Progressive GAN does."""
    fused_scale: Literal["auto", "always", "never"] = "auto"
    """Which blocks store their first kernel flipped, as official weights do: `auto` from 128 px."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.const_input and not self.use_styles:
            raise ValueError(
                "G.const_input is on and G.use_styles off, so that no latent enters G at all; "
                "set G.const_input=false or G.use_styles=true"
            )

    def layers(self, lod: float = 0.0) -> int:
        """Rows of `ws` that images of `lod` depend on; 1 without styles."""
        return 2 * len(self.resolutions(lod)) if self.use_styles else 1

    def noise_sides(self, lod: float = 0.0) -> tuple[int, ...]:
        """Side in pixels of each noise input of `lod`; none without noise."""
        return tuple(side for side in self.resolutions(lod) for _ in range(2)) * self.use_noise

    def fused(self, resolution: int) -> bool:
        """Whether the block of `resolution` stores its first kernel flipped."""
        if self.fused_scale == "auto":
            return resolution >= _FUSED_FROM_PX
        return self.fused_scale == "always"


class Epilogue(nn.Module):
    """What follows each synthesis convolution: noise, bias, activation, normalization, style."""

    def __init__(self, channels: int, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_strength = nn.Parameter(torch.zeros(channels)) if config.use_noise else None
        self.style = None
        if config.use_styles:
            shape = (2 * channels, config.w_size)
            self.style = Linear(shape, rng=rng, gain=1.0, use_wscale=config.use_wscale)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        w: Float[Tensor, "n w_size"],
        noise: Float[Tensor, "_ 1 h w"] | None,
    ) -> Float[Tensor, "n c h w"]:
        if self.noise_strength is not None:
            assert noise is not None, "a layer with a noise input got none"
            strength = self.noise_strength.to(x.dtype)[:, None, None]
            x = torch.addcmul(x, noise.to(x.dtype), strength)
        x = activate(x + self.bias.to(x.dtype)[:, None, None], self.config.activation)
        if self.config.use_pixel_norm:
            x = pixel_norm(x)
        if self.style is None:
            return instance_norm(x) if self.config.use_instance_norm else x
        scale, shift = (self.style(w).to(x.dtype)).chunk(2, dim=1)
        if self.config.use_instance_norm:
            return instance_norm(x, scale + 1, shift)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None] + 1)


class SynthesisBlock(nn.Module):
    """Two layers at one resolution; the first of 4 px is a constant, or dense."""

    def __init__(
        self, resolution: int, config: GeneratorConfig, blur: Blur | None, rng: torch.Generator
    ) -> None:
        super().__init__()
        o, i, use_wscale = (
            config.fmaps(resolution),
            config.fmaps(resolution // 2),
            config.use_wscale,
        )
        self.blur = blur
        if resolution > 4:
            fused = config.fused(resolution)
            self.conv0 = UpConv((o, i, 3, 3), rng=rng, fused=fused, use_wscale=use_wscale)
        elif config.const_input:
            self.const = nn.Parameter(torch.ones(1, o, 4, 4))
        else:
            shape, gain = (o * 16, config.w_size), HE_GAIN / 4
            self.dense = Linear(shape, rng=rng, gain=gain, use_wscale=use_wscale, bias=False)
        self.epilogue0 = Epilogue(o, config, rng)
        self.conv1 = Conv((o, o, 3, 3), rng=rng, use_wscale=use_wscale, bias=False)
        self.epilogue1 = Epilogue(o, config, rng)

    def forward(
        self,
        x: Float[Tensor, "n i _ _"] | None,
        ws: Sequence[Float[Tensor, "n w_size"]],
        noise: Sequence[Float[Tensor, "_ 1 h w"] | None],
    ) -> Float[Tensor, "n o h w"]:
        y = self._first(ws[0]) if x is None else self.conv0(x)
        if x is not None and self.blur is not None:
            y = self.blur(y)
        y = self.epilogue0(y, ws[0], noise[0])
        features: Tensor = self.epilogue1(self.conv1(y), ws[1], noise[1])
        return features

    def _first(self, w: Float[Tensor, "n w_size"]) -> Tensor:
        if hasattr(self, "const"):
            const: Tensor = self.const
            return const.expand(w.shape[0], -1, -1, -1)
        dense: Tensor = self.dense(w)
        return dense.reshape(w.shape[0], -1, 4, 4)


class Synthesis(GrowingSynthesis):
    """One w per layer to images (Karras et al. 2019, Figure 1b)."""

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__(config)
        blur = Blur(config.blur) if config.blur else None
        for resolution in config.resolutions():
            shape, use_wscale = (config.channels, config.fmaps(resolution), 1, 1), config.use_wscale
            self.blocks[str(resolution)] = SynthesisBlock(resolution, config, blur, rng)
            self.to_rgb[str(resolution)] = Conv(shape, rng=rng, gain=1.0, use_wscale=use_wscale)
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
            ws: One w per layer that `lod` reaches, or per layer; without styles a single one.
            noise: [n 1 h w] per layer that `lod` reaches; None = the stored noise.
            lod: Level of detail; 0 = full resolution.
        """
        check_ws(ws, self.config, lod)
        check_noise(noise, ws.shape[0], self.config, lod)
        resolutions = self.config.resolutions(lod)
        if not self.config.use_noise:
            noise = None
        elif noise is None:
            noise = [self.get_buffer(f"noise{i}") for i in range(2 * len(resolutions))]
        x: Tensor | None = None
        previous: Tensor | None = None
        for index, resolution in enumerate(resolutions):
            layers = (2 * index, 2 * index + 1)
            w = [ws[:, layer if self.config.use_styles else 0] for layer in layers]
            maps = [None if noise is None else noise[layer] for layer in layers]
            previous, x = x, self.blocks[str(resolution)](x, w, maps)
        assert x is not None
        return self.images(previous, x, lod)


class Generator(interface.Generator):
    """StyleGAN's G."""

    config: GeneratorConfig
    mapping: Mapping
    synthesis: Synthesis

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        self.mapping = Mapping(config, rng, use_wscale=config.use_wscale)
        self.synthesis = Synthesis(config, rng)

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        return [*self.mapping.parameters(), *self.synthesis.active_parameters(lod)]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(GrowingDiscriminatorConfig, _Switches):
    """Size and switches of D (Karras et al. 2018, Appendix A; 2019, Appendix C)."""

    kind: Literal["stylegan"] = "stylegan"
    """The paper."""


class DiscriminatorBlock(nn.Module):
    """Features at one resolution to features at half of it."""

    def __init__(
        self, resolution: int, config: DiscriminatorConfig, blur: Blur | None, rng: torch.Generator
    ) -> None:
        super().__init__()
        i, o = config.fmaps(resolution), config.fmaps(resolution // 2)
        self.activation = config.activation
        self.conv0 = Conv((i, i, 3, 3), rng=rng, use_wscale=config.use_wscale)
        self.blur = blur
        self.conv1 = DownConv((o, i, 3, 3), rng=rng, use_wscale=config.use_wscale)

    def forward(self, x: Float[Tensor, "n i H W"]) -> Float[Tensor, "n o h w"]:
        x = activate(self.conv0(x), self.activation)
        if self.blur is not None:
            x = self.blur(x)
        return activate(self.conv1(x), self.activation)


class DiscriminatorTail(nn.Module):
    """Features at 4 px to outputs, one for each label component."""

    def __init__(self, config: DiscriminatorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        fmaps, use_wscale = config.fmaps(4), config.use_wscale
        hidden, outputs = config.fmaps(2), max(config.label_size, 1)
        extra = config.mbstd_features if config.mbstd_group > 1 else 0
        self.conv = Conv((fmaps, fmaps + extra, 3, 3), rng=rng, use_wscale=use_wscale)
        self.dense0 = Linear((hidden, fmaps * 16), rng=rng, use_wscale=use_wscale)
        self.dense1 = Linear((outputs, hidden), rng=rng, gain=1.0, use_wscale=use_wscale)

    def forward(self, x: Float[Tensor, "n i 4 4"]) -> Float[Tensor, "n o"]:
        group, features = self.config.mbstd_group, self.config.mbstd_features
        if group > 1:
            x = append_minibatch_stddev(x, group=group, features=features)
        x = activate(self.conv(x), self.config.activation)
        x = activate(self.dense0(x.flatten(1)), self.config.activation)
        outputs: Tensor = self.dense1(x)
        return outputs


class Discriminator(GrowingDiscriminator):
    """StyleGAN's D: images at the native size of `lod` to logits."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        blur = Blur(config.blur) if config.blur else None
        for resolution in config.resolutions():
            shape = (config.fmaps(resolution), config.channels, 1, 1)
            self.from_rgb[str(resolution)] = Conv(shape, rng=rng, use_wscale=config.use_wscale)
            if resolution > 4:
                self.blocks[str(resolution)] = DiscriminatorBlock(resolution, config, blur, rng)
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
        outputs = self.outputs(images, lod)
        weights = accepted(labels, len(images), self.config)
        if weights is None:
            return outputs
        return (outputs * weights.to(outputs.dtype)).sum(dim=1, keepdim=True)
