"""The first generative adversarial networks (Goodfellow et al. 2014): dense layers alone.

Sizes and rates are those that the authors published for MNIST (mnist.yaml of their code). There the
last bias of G began at the marginals of the data; here every bias begins at 0.

Legend: n images, c h w, i o features in and out, l layers, d label components, u dropout numbers.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from stylegan.arguments import check_shape
from stylegan.networks import interface
from stylegan.networks.fixed_size import FixedSizeConfig, UniformLatents
from stylegan.networks.interface import (
    accepted,
    check_images,
    check_noise,
    check_ws,
    only_full_size,
)


@dataclass(frozen=True, kw_only=True)
class _Sizes(FixedSizeConfig):
    """Of both networks."""

    widths: Sequence[int]
    """Units of each hidden layer."""
    initial_range: float
    """Initial weights are uniform in [-initial_range, initial_range]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))  # YAML and JSON give lists
        if min(self.widths, default=1) < 1:
            raise ValueError(
                f"{self.name}.widths is {list(self.widths)}; a layer has 1 unit or more: choose "
                "for example [240, 240]"
            )
        if not 0 < self.initial_range < math.inf:
            raise ValueError(
                f"{self.name}.initial_range is {self.initial_range}; weights that are all equal "
                "never differ: choose a finite number above 0"
            )

    @property
    def pixels(self) -> int:
        """Numbers in an image."""
        return self.channels * self.resolution**2

    def _check_resolution(self) -> None:
        self._at_least("resolution", 1)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(interface.GeneratorConfig, _Sizes):
    """Size of G (Goodfellow et al. 2014, Section 5)."""

    kind: Literal["gan"] = "gan"
    """The paper."""
    z_size: int = 100
    """Components of a latent z."""
    widths: Sequence[int] = (1200, 1200)
    """Rectified linear units of each hidden layer."""
    initial_range: float = 0.05
    """Initial weights are uniform in [-initial_range, initial_range]."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(interface.DiscriminatorConfig, _Sizes):
    """Size and dropout of D (Goodfellow et al. 2014, Section 5)."""

    kind: Literal["gan"] = "gan"
    """The paper."""
    widths: Sequence[int] = (240, 240)
    """Maxout units of each hidden layer."""
    pieces: int = 5
    """Linear pieces of a maxout unit."""
    initial_range: float = 0.005
    """Initial weights are uniform in [-initial_range, initial_range]."""
    input_dropout: float = 0.2
    """Share of the image's numbers that training drops."""
    dropout: float = 0.5
    """Share of each hidden layer's units that training drops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("pieces", 1)
        for key in ("input_dropout", "dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(
                    f"D.{key} is {getattr(self, key)}; it is a share: choose from 0 (none) to "
                    "below 1"
                )

    @property
    def dropout_sizes(self) -> list[int]:
        """Numbers that dropout takes at the input of each layer, for each image."""
        inputs = self.pixels if self.input_dropout else 0
        return [inputs, *(width if self.dropout else 0 for width in self.widths)]

    @property
    def dropout_size(self) -> int:
        """Numbers in [0, 1) that dropout takes for each image."""
        return sum(self.dropout_sizes)


class Linear(nn.Module):
    """A dense layer; `shape` is [o i]."""

    def __init__(self, shape: tuple[int, int], initial_range: float, rng: torch.Generator) -> None:
        super().__init__()
        uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float32)
        self.weight = nn.Parameter((2 * uniform - 1) * initial_range)
        self.bias = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return linear(x, self.weight, self.bias)


class Maxout(Linear):
    """The largest of some linear pieces (Goodfellow et al. 2013); `shape` is [o i]."""

    def __init__(
        self, shape: tuple[int, int], pieces: int, initial_range: float, rng: torch.Generator
    ) -> None:
        super().__init__((shape[0] * pieces, shape[1]), initial_range, rng)
        self.pieces = pieces

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        pieces: Tensor = super().forward(x)
        return pieces.reshape(len(x), -1, self.pieces).amax(dim=2)


class Synthesis(nn.ModuleList):
    """Latents to images in [-1, 1]; the paper's sigmoid gives [0, 1]."""

    def __init__(self, config: GeneratorConfig, rng: torch.Generator) -> None:
        sizes = [config.z_size, *config.widths, config.pixels]
        super().__init__(
            Linear((o, i), config.initial_range, rng) for i, o in itertools.pairwise(sizes)
        )
        self.config = config

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
        *hidden, last = self
        x = ws[:, 0]
        for layer in hidden:
            x = relu(layer(x))
        side = self.config.resolution
        images: Tensor = 2 * torch.sigmoid(last(x)) - 1
        return images.reshape(len(x), self.config.channels, side, side)


class Generator(interface.Generator):
    """G of rectified linear units."""

    config: GeneratorConfig
    mapping: UniformLatents
    synthesis: Synthesis

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        self.mapping = UniformLatents(config)
        self.synthesis = Synthesis(config, torch.Generator("cpu").manual_seed(seed))


class Discriminator(interface.Discriminator):
    """D of maxout units; the logit is the sigmoid's argument."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__(config)
        rng = torch.Generator("cpu").manual_seed(seed)
        sizes = [config.pixels, *config.widths]
        self.hidden = nn.ModuleList(
            Maxout((o, i), config.pieces, config.initial_range, rng)
            for i, o in itertools.pairwise(sizes)
        )
        self.last = Linear((1, sizes[-1]), config.initial_range, rng)

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Float[Tensor, "n d"] | None = None,
        lod: float = 0.0,
        *,
        dropout: Float[Tensor, "n u"] | None = None,
    ) -> Float[Tensor, "n 1"]:
        """Logits; there are no labels and no lod but 0.

        Args:
            images: At full size.
            labels: None.
            lod: 0.
            dropout: Uniform numbers in [0, 1) for the input of each layer, in their order; a
                number below the rate drops what it stands for, and what remains is scaled up.
                None = nothing is dropped, as outside training.
        """
        only_full_size(self.config, lod)
        check_images(images, self.config.resolution, self.config)
        accepted(labels, len(images), self.config)
        rates = [self.config.input_dropout, *[self.config.dropout] * len(self.hidden)]
        numbers = self._split(dropout, len(images))
        x = images.flatten(1)
        for layer, rate, u in zip([*self.hidden, self.last], rates, numbers, strict=True):
            x = layer(x if u is None else _drop(x, u, rate))
        return x

    def _split(self, dropout: Tensor | None, count: int) -> Sequence[Tensor | None]:
        """The numbers of each layer, None for those without."""
        sizes = self.config.dropout_sizes
        if dropout is None:
            return [None] * len(sizes)
        remedy = "pass config.dropout_size numbers for each image, or None for no dropout"
        check_shape("dropout", dropout, (count, sum(sizes)), by="D", remedy=remedy)
        return [u if u.shape[1] else None for u in dropout.split(sizes, dim=1)]


def _drop(x: Float[Tensor, "n i"], u: Float[Tensor, "n i"], rate: float) -> Float[Tensor, "n i"]:
    return x * ((u >= rate).to(x.dtype) / (1 - rate))
