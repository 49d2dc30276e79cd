"""Progressive GAN's generator and discriminator (Karras et al. 2018).

Both work at the native size of a level, as StyleGAN's do, whose D this one is but for its filter.
With labels G takes them beside z, and D tells the classes of images (Odena et al. 2017).

Legend: n images, c h w, l layers, i o features in and out, d label components, k outputs of D.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import HE_GAIN, Conv, Linear, UpConv, activate, pixel_norm
from stylegan.networks import interface, stylegan
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
    check_z,
)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(interface.GeneratorConfig, GrowingConfig):
    """Size of G (Karras et al. 2018, Table 2)."""

    kind: Literal["pggan"] = "pggan"
    """The paper."""

    @property
    def w_size(self) -> int:
        """Features that enter the first layer: z and the label."""
        return self.z_size + self.label_size


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(GrowingDiscriminatorConfig):
    """Size of D (Karras et al. 2018, Table 2)."""

    kind: Literal["pggan"] = "pggan"
    """The paper."""

    @property
    def class_logits(self) -> int:
        """Outputs of D beside the logit: one for each class."""
        return self.label_size


class NormalizedLatents(nn.Module):
    """z and the label, scaled to unit mean square."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, z: Float[Tensor, "n z_size"], labels: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "n w_size"]:
        check_z(z, self.config)
        known = accepted(labels, len(z), self.config)
        if known is not None:
            z = torch.cat([z, known.to(z.dtype)], dim=1)
        return pixel_norm(z)


class SynthesisBlock(nn.Module):
    """Two layers at one resolution, each with bias, activation and pixel normalization."""

    def __init__(self, resolution: int, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__()
        o, i = config.fmaps(resolution), config.fmaps(resolution // 2)
        self.activation = config.activation
        if resolution > 4:
            self.conv0 = UpConv((o, i, 3, 3), rng=rng, fused=True)
        else:
            self.dense = Linear((o * 16, config.w_size), rng=rng, gain=HE_GAIN / 4, bias=False)
        self.bias0 = nn.Parameter(torch.zeros(o))
        self.conv1 = Conv((o, o, 3, 3), rng=rng)

    def forward(self, x: Float[Tensor, "n i *s"]) -> Float[Tensor, "n o h w"]:
        y: Tensor = self.conv0(x) if x.ndim == 4 else self.dense(x).unflatten(1, (-1, 4, 4))
        y = pixel_norm(activate(y + self.bias0.to(y.dtype)[:, None, None], self.activation))
        return pixel_norm(activate(self.conv1(y), self.activation))


class Synthesis(GrowingSynthesis):
    """Latents to images (Karras et al. 2018, Table 2)."""

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__(config)
        for resolution in config.resolutions():
            shape = (config.channels, config.fmaps(resolution), 1, 1)
            self.blocks[str(resolution)] = SynthesisBlock(resolution, config, rng)
            self.to_rgb[str(resolution)] = Conv(shape, rng=rng, gain=1.0)

    def forward(
        self,
        ws: Float[Tensor, "n l w_size"],
        *,
        noise: Sequence[Tensor] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n c h w"]:
        """Images at the native size of `lod`; there is one w and no noise."""
        check_ws(ws, self.config, lod)
        check_noise(noise, len(ws), self.config, lod)
        previous = x = ws[:, 0]
        for resolution in self.config.resolutions(lod):
            previous, x = x, self.blocks[str(resolution)](x)
        return self.images(previous, x, lod)


class Generator(interface.Generator):
    """Progressive GAN's G."""

    config: GeneratorConfig
    mapping: NormalizedLatents
    synthesis: Synthesis

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        self.mapping = NormalizedLatents(config)
        self.synthesis = Synthesis(config, torch.Generator("cpu").manual_seed(seed))

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        return self.synthesis.active_parameters(lod)


class Discriminator(GrowingDiscriminator):
    """Progressive GAN's D: images at the native size of `lod` to a logit, and one a class."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        like = _like_stylegan(config)
        for resolution in config.resolutions():
            shape = (config.fmaps(resolution), config.channels, 1, 1)
            self.from_rgb[str(resolution)] = Conv(shape, rng=rng)
            if resolution > 4:
                block = stylegan.DiscriminatorBlock(resolution, like, None, rng)
                self.blocks[str(resolution)] = block
        self.tail = stylegan.DiscriminatorTail(like, rng)

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Float[Tensor, "n d"] | None = None,
        lod: float = 0.0,
        *,
        dropout: Tensor | None = None,
    ) -> Float[Tensor, "n k"]:
        """Logits, the first of being real, the others of the classes.

        D does not look at the labels, and there is no dropout.
        """
        logits = self.outputs(images, lod)
        if labels is not None:
            accepted(labels, len(images), self.config)
        return logits


def _like_stylegan(config: DiscriminatorConfig) -> stylegan.DiscriminatorConfig:
    """StyleGAN's D of the same size; its outputs are as many as its label has components."""
    return stylegan.DiscriminatorConfig(
        resolution=config.resolution,
        channels=config.channels,
        label_size=1 + config.class_logits,
        fmap_base=config.fmap_base,
        fmap_max=config.fmap_max,
        activation=config.activation,
        mbstd_group=config.mbstd_group,
        mbstd_features=config.mbstd_features,
        blur=(),
    )
