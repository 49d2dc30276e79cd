"""DCGAN's generator and discriminator (Radford et al. 2016).

All convolutions have stride 2 and, as in the authors' Torch code, 4x4 kernels (Figure 1 has 5x5);
batch normalization stands everywhere but at G's output and D's input. Weights are N(0, 0.02) and
there are no biases beside those of the normalization.

Legend: n images, c h w, H W twice h w, i o features in and out, l layers, d label components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, linear, relu

from stylegan.batch_norm import BatchNorm
from stylegan.layers import normal
from stylegan.networks import interface
from stylegan.networks.fixed_size import FixedSizeConfig, UniformLatents
from stylegan.networks.interface import (
    accepted,
    check_images,
    check_noise,
    check_ws,
    only_full_size,
)

_INITIAL_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class _Sizes(FixedSizeConfig):
    """Of both networks."""

    width: int = 64
    """Feature maps at a side of r pixels: width * resolution / r, at most `max_width`."""
    max_width: int = 1024
    """Most feature maps of any layer; with these, 64 px are the network of Figure 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("width", 1)
        self._at_least("max_width", 1)

    @property
    def sides(self) -> list[int]:
        """Width and height of the features in pixels, from the coarsest to the finest."""
        sides = [self.resolution // 2]
        while sides[0] % 2 == 0 and sides[0] >= 8:
            sides.insert(0, sides[0] // 2)
        return sides

    @property
    def widths(self) -> list[int]:
        """Feature maps at these sides."""
        return [min(self.width * self.resolution // side, self.max_width) for side in self.sides]

    def _check_resolution(self) -> None:
        if self.resolution < 8 or self.resolution % 2:
            raise ValueError(
                f"resolution is {self.resolution}; DCGAN doubles a side of a few pixels: choose "
                "8, 10, 12, ..., best 4 to 7 times a power of two such as 64"
            )


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(interface.GeneratorConfig, _Sizes):
    """Size of G (Radford et al. 2016, Figure 1)."""

    kind: Literal["dcgan"] = "dcgan"
    """The paper."""
    z_size: int = 100
    """Components of a latent z."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(interface.DiscriminatorConfig, _Sizes):
    """Size of D, the mirror of G."""

    kind: Literal["dcgan"] = "dcgan"
    """The paper."""

    @property
    def batch_statistics(self) -> bool:
        """Both networks normalize over the whole minibatch."""
        return True


class _Weight(nn.Module):
    """A weight N(0, 0.02); the first axis is that of the input in `UpConv`, of the output else."""

    def __init__(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(_INITIAL_STD * normal(shape, rng))


class Linear(_Weight):
    """A dense layer; `shape` is [o i]."""

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return linear(x, self.weight)


class UpConv(_Weight):
    """A transposed convolution; `shape` is [i o 4 4]."""

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o H W"]:
        return conv_transpose2d(x, self.weight, stride=2, padding=1)


class DownConv(_Weight):
    """A strided convolution; `shape` is [o i 4 4]."""

    def forward(self, x: Float[Tensor, "n i H W"]) -> Float[Tensor, "n o h w"]:
        return conv2d(x, self.weight, stride=2, padding=1)


class Synthesis(nn.Module):
    """Latents to images."""

    def __init__(self, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        outputs = [*widths[1:], config.channels]
        self.project = Linear((widths[0] * config.sides[0] ** 2, config.z_size), rng)
        self.norms = nn.ModuleList(BatchNorm(width, rng) for width in widths)
        self.convs = nn.ModuleList(
            UpConv((i, o, 4, 4), rng) for i, o in zip(widths, outputs, strict=True)
        )

    def forward(
        self,
        ws: Float[Tensor, "n l z_size"],
        *,
        noise: Sequence[Tensor] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n c h w"]:
        """Images; there is one w, no noise and no lod but 0."""
        only_full_size(self.config, lod)
        check_ws(ws, self.config, lod)
        check_noise(noise, len(ws), self.config, lod)
        side = self.config.sides[0]
        x: Tensor = self.project(ws[:, 0]).unflatten(1, (-1, side, side))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(relu(norm(x)))
        return torch.tanh(x)


class Generator(interface.Generator):
    """DCGAN's G."""

    config: GeneratorConfig
    mapping: UniformLatents
    synthesis: Synthesis

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        self.mapping = UniformLatents(config)
        self.synthesis = Synthesis(config, torch.Generator("cpu").manual_seed(seed))


class Discriminator(interface.Discriminator):
    """DCGAN's D; the logit is the sigmoid's argument."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        widths = config.widths[::-1]
        inputs = [config.channels, *widths[:-1]]
        self.convs = nn.ModuleList(
            DownConv((o, i, 4, 4), rng) for i, o in zip(inputs, widths, strict=True)
        )
        self.norms = nn.ModuleList(BatchNorm(width, rng) for width in widths[1:])
        self.dense = Linear((1, widths[-1] * config.sides[0] ** 2), rng)

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Float[Tensor, "n d"] | None = None,
        lod: float = 0.0,
        *,
        dropout: Tensor | None = None,
    ) -> Float[Tensor, "n 1"]:
        """Logits; there are no labels, no lod but 0 and no dropout."""
        only_full_size(self.config, lod)
        check_images(images, self.config.resolution, self.config)
        accepted(labels, len(images), self.config)
        first, *convs = self.convs
        x: Tensor = leaky_relu(first(images), 0.2)
        for conv, norm in zip(convs, self.norms, strict=True):
            x = leaky_relu(norm(conv(x)), 0.2)
        logits: Tensor = self.dense(x.flatten(1))
        return logits
