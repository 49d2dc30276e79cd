"""What the step, sampling and evaluation know of every generator and discriminator.

A generator is `mapping` (z and a label to w) and `synthesis` (one w per layer to images); one
without a mapping network passes on z. Networks that do not grow know lod 0 alone.

Legend: n images, c h w, l layers, d label components, k outputs of D,
u dropout numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the generator and the discriminator of every paper share."""

    kind: str
    """Name of the paper's module."""
    resolution: int
    """Side of full-size images in pixels; a power of two for networks that grow."""
    channels: int = 3
    """Colour channels of the images."""
    label_size: int = 0
    """Components of a label; 0 = no labels."""

    def __post_init__(self) -> None:
        self._check_resolution()
        self._at_least("channels", 1)
        self._at_least("label_size", 0)

    @property
    def name(self) -> str:
        """G or D, for messages."""
        return "D" if isinstance(self, DiscriminatorConfig) else "G"

    @property
    def grows(self) -> bool:
        """Whether lods above 0 exist."""
        return False

    def _check_resolution(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise ValueError(
                f"resolution is {self.resolution}; it must be a power of two of at least 4: "
                "choose 4, 8, 16, ... and prepare the images at that size"
            )

    def _at_least(self, key: str, least: int) -> None:
        if getattr(self, key) < least:
            raise ValueError(f"{self.name}.{key} is {getattr(self, key)}; choose {least} or more")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(NetworkConfig):
    """What all generators share."""

    z_size: int = 512
    """Components of a latent z."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("z_size", 1)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(NetworkConfig):
    """What all discriminators share."""

    @property
    def group(self) -> int:
        """Images that D looks at together: those of a minibatch-stddev group."""
        return 1

    @property
    def batch_statistics(self) -> bool:
        """Whether D (and G) normalize over the whole minibatch, which then has one part."""
        return False

    @property
    def dropout_size(self) -> int:
        """Numbers in [0, 1) that dropout takes for each image; 0 without dropout."""
        return 0

    @property
    def class_logits(self) -> int:
        """Outputs of D beside the logit: one for each class it tells apart."""
        return 0


class Generator(nn.Module, ABC):
    """z to images, by way of one w per layer."""

    config: GeneratorConfig
    mapping: nn.Module
    synthesis: nn.Module
    w_avg: Tensor
    """Moving mean of w."""
    usual_psi: float
    """Truncation of pictures: 0.7 (Karras et al. 2019, Section 2.1), none without styles, or what
    the file says from which the network was imported."""
    usual_cutoff: int | None
    """Layers that are truncated then; None = all."""

    def __init__(self, config: GeneratorConfig, *, w_size: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("w_avg", torch.zeros(w_size))
        self.usual_psi = 0.7 if self.layers() > 1 else 1.0
        self.usual_cutoff = None

    @abstractmethod
    def layers(self, lod: float = 0.0) -> int:
        """Rows of `ws` that images of `lod` depend on; 1 where all layers take the same w."""

    @abstractmethod
    def noise_sides(self, lod: float = 0.0) -> tuple[int, ...]:
        """Side in pixels of each noise input of `lod`."""

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        only_full_size(self.config, lod)
        return list(self.parameters())

    def broadcast(self, w: Float[Tensor, "n w_size"]) -> Float[Tensor, "n l w_size"]:
        """The same w for every layer."""
        return w[:, None].expand(-1, self.layers(), -1)

    def truncate(
        self, ws: Float[Tensor, "n l w_size"], *, psi: float, cutoff: int | None
    ) -> Float[Tensor, "n l w_size"]:
        """Draw the first layers towards the mean w (Karras et al. 2019, Appendix B).

        Args:
            ws: One w per layer.
            psi: 1 = unchanged, 0 = the mean.
            cutoff: How many layers, counted from the coarsest; None = none of them.
        """
        if cutoff is None or psi == 1:
            return ws
        truncated = torch.lerp(self.w_avg, ws[:, :cutoff], psi)
        return torch.cat([truncated, ws[:, cutoff:]], dim=1)

    def forward(
        self,
        z: Float[Tensor, "n z_size"],
        labels: Float[Tensor, "n d"] | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n c h w"]:
        images: Tensor = self.synthesis(
            self.broadcast(self.mapping(z, labels)), noise=noise, lod=lod
        )
        return images


class Discriminator(nn.Module, ABC):
    """Images at the native size of a lod to logits."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Float[Tensor, "n d"] | None = None,
        lod: float = 0.0,
        *,
        dropout: Float[Tensor, "n u"] | None = None,
    ) -> Float[Tensor, "n k"]:
        """Logits; those after the first are of the image's class, where D tells classes.

        Args:
            images: At the native size of `lod`.
            labels: Of the images, where D takes labels.
            lod: Level of detail; 0 = full resolution.
            dropout: Uniform numbers, `config.dropout_size` an image; None = no dropout.
        """

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in logits of `lod`."""
        only_full_size(self.config, lod)
        return list(self.parameters())


def check_z(z: Float[Tensor, "n z_size"], config: GeneratorConfig) -> None:
    """See that latents are of the size that a generator was made for.

    Raises:
        ValueError: They are not.
    """
    if z.shape[1] != config.z_size:
        raise ValueError(
            f"z has shape {tuple(z.shape)}, but G takes [n, {config.z_size}]; pass latents of "
            f"{config.z_size} components or make G with another z_size"
        )


def required(labels: Float[Tensor, "n d"] | None, config: NetworkConfig) -> Float[Tensor, "n d"]:
    """The labels of a network that was made for them.

    Raises:
        ValueError: There are none, or of another size.
    """
    if labels is None or labels.shape[1] != config.label_size:
        got = "none" if labels is None else f"labels of {labels.shape[1]}"
        raise ValueError(
            f"{config.name} was made for labels of {config.label_size} components and got {got}; "
            f"pass such labels or make {config.name} with another label_size"
        )
    return labels


def check_images(images: Float[Tensor, "n c h w"], side: int, config: NetworkConfig) -> None:
    """See that images are what a discriminator takes.

    Raises:
        ValueError: Another size or other channels.
    """
    expected = (config.channels, side, side)
    if tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"D got images of shape {tuple(images.shape)}, but takes [n, {config.channels}, "
            f"{side}, {side}]; pass images of the level floor(lod), channels first"
        )


def parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Those of all modules."""
    return [parameter for module in modules for parameter in module.parameters()]


def only_full_size(config: NetworkConfig, lod: float) -> None:
    """See that a network that does not grow is asked for full-size images.

    Raises:
        ValueError: It is not.
    """
    if lod:
        raise ValueError(
            f"lod is {lod}, but {config.name} does not grow; choose lod 0, or a network that grows"
        )
