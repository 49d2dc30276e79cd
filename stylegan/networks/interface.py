"""What the step, sampling and evaluation know of every generator and discriminator.

A generator is `mapping` (z and a label to w) and `synthesis` (one w per layer to images); one
without a mapping network passes on z. Networks that do not grow know lod 0 alone.

Legend: n images, c h w, l layers, d label components, k outputs of D,
u dropout numbers.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.arguments import check_floating, check_shape


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
        self._check_types()
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

    def _check_types(self) -> None:
        """See that choices are among those that there are, and that numbers are numbers."""
        config: Any = type(self)
        for key, (allowed, meaning) in _rules(config).items():
            value = getattr(self, key)
            ok = isinstance(value, allowed) if isinstance(allowed, type) else value in allowed
            if not ok and not (allowed is float and isinstance(value, int)):
                raise ValueError(f"{self.name}.{key} is {value!r}; choose {meaning}")

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

    @property
    def w_size(self) -> int:
        """Components of a w."""
        return self.z_size

    def layers(self, lod: float = 0.0) -> int:
        """Rows of `ws` that images of `lod` depend on; 1 where all layers take the same w."""
        return 1

    def noise_sides(self, lod: float = 0.0) -> tuple[int, ...]:
        """Side in pixels of each noise input of `lod`."""
        return ()


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

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("w_avg", torch.zeros(config.w_size))
        self.usual_psi = 0.7 if self.layers() > 1 else 1.0
        self.usual_cutoff = None

    @property
    def has_w(self) -> bool:
        """Whether a w is anything but z."""
        return self.layers() > 1 or any(True for _ in self.mapping.parameters())

    def layers(self, lod: float = 0.0) -> int:
        """Rows of `ws` that images of `lod` depend on; 1 where all layers take the same w."""
        return self.config.layers(lod)

    def noise_sides(self, lod: float = 0.0) -> tuple[int, ...]:
        """Side in pixels of each noise input of `lod`."""
        return self.config.noise_sides(lod)

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        only_full_size(self.config, lod)
        return list(self.parameters())

    def broadcast(self, w: Float[Tensor, "n w_size"]) -> Float[Tensor, "n l w_size"]:
        """The same w for every layer."""
        sizes = ("n", self.config.w_size)
        check_shape("w", w, sizes, by="G", remedy="pass what G.mapping gives")
        return w[:, None].expand(-1, self.layers(), -1)

    def truncate(
        self, ws: Float[Tensor, "n l w_size"], *, psi: float, cutoff: int | None
    ) -> Float[Tensor, "n l w_size"]:
        """Draw the first layers towards the mean w (Karras et al. 2019, Appendix B).

        Args:
            ws: One w per layer.
            psi: 1 = unchanged, 0 = the mean.
            cutoff: How many layers, counted from the coarsest; None = none of them.

        Raises:
            ValueError: `ws` has another shape, or the cutoff is below 0.
        """
        sizes = ("n", "l", self.config.w_size)
        check_shape("ws", ws, sizes, by="G.truncate", remedy="pass what G.broadcast gives")
        if cutoff is not None and cutoff < 0:
            raise ValueError(f"cutoff is {cutoff}; choose 0 or more, or None for no truncation")
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


@functools.cache
def _rules(config: Any) -> Mapping[str, tuple[Any, str]]:
    """Of each field the choices or the type of its numbers, and the same in words."""
    rules: dict[str, tuple[Any, str]] = {}
    for key, hint in get_type_hints(config).items():
        if get_origin(hint) is Literal:
            rules[key] = get_args(hint), f"from {', '.join(map(str, get_args(hint)))}"
        elif hint in _IN_WORDS:
            rules[key] = hint, _IN_WORDS[hint]
    return rules


_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


def check_z(z: Tensor, config: GeneratorConfig) -> None:
    """See that latents are numbers, and of the size that a generator was made for.

    Raises:
        ValueError: They are not.
    """
    remedy = f"pass latents of {config.z_size} components or make G with another z_size"
    check_shape("z", z, ("n", config.z_size), by="G", remedy=remedy)
    check_floating("z", z, by="G", remedy="pass latents such as torch.randn gives")


def check_ws(ws: Tensor, config: GeneratorConfig, lod: float) -> None:
    """See that there is one w for each layer that a lod reaches, or for each of all layers.

    Raises:
        ValueError: There are others.
    """
    least, most = config.layers(lod), config.layers()
    rows = f"{least}" if least == most else f"{least} to {most}"
    remedy = "pass one w for each layer, such as G.broadcast(G.mapping(z)) has them"
    check_shape("ws", ws, ("n", rows, config.w_size), by="G.synthesis", remedy=remedy)
    check_floating("ws", ws, by="G.synthesis", remedy=remedy)
    if not least <= ws.shape[1] <= most:
        raise ValueError(f"ws has {ws.shape[1]} rows, but G.synthesis takes {rows}; {remedy}")


def check_noise(
    noise: Sequence[Tensor] | None, count: int, config: GeneratorConfig, lod: float
) -> None:
    """See that each layer that a lod reaches has noise of its size.

    Args:
        noise: One for each layer, for all images or for each; None = the stored noise.
        count: Of images.
        config: Of the generator.
        lod: Level of detail.

    Raises:
        ValueError: They are too few, too many, or of another size.
    """
    if noise is None:
        return
    sides, most = config.noise_sides(lod), config.noise_sides()
    remedy = "pass noise as G.noise_sides has it, or None for the stored noise"
    if not len(sides) <= len(noise) <= len(most):
        raise ValueError(
            f"noise has {len(noise)} maps, but G.synthesis takes {len(sides)} of sides "
            f"{list(sides)}; {remedy}"
        )
    for number, (layer, side) in enumerate(zip(noise, sides, strict=False)):
        first = 1 if layer.ndim and layer.shape[0] == 1 else count
        sizes = (first, 1, side, side)
        check_shape(f"noise {number}", layer, sizes, by="G.synthesis", remedy=remedy)


def accepted(labels: Tensor | None, count: int, config: NetworkConfig) -> Tensor | None:
    """The labels of so many images or latents; None if the network was made without labels.

    Raises:
        ValueError: They are missing, or of another shape, or more than the network knows.
    """
    if labels is None and not config.label_size:
        return None
    if labels is None:
        raise ValueError(
            f"{config.name} was made for labels of {config.label_size} components and got none; "
            f"pass such labels or make {config.name} with another label_size"
        )
    if not config.label_size:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but {config.name} was made without labels; "
            f"pass None or make {config.name} with another label_size"
        )
    remedy = f"pass one label for each or make {config.name} with another label_size"
    check_shape("labels", labels, (count, config.label_size), by=config.name, remedy=remedy)
    return labels


def check_images(images: Tensor, side: int, config: NetworkConfig) -> None:
    """See that images are what a discriminator takes, and that there are any.

    Raises:
        ValueError: Another size or other channels, bytes, or no image.
    """
    remedy = "pass images of the level floor(lod), channels first"
    check_shape("images", images, ("n", config.channels, side, side), by="D", remedy=remedy)
    check_floating("images", images, by="D", remedy="pass images in [-1, 1]")
    if not images.shape[0]:
        raise ValueError("images are none at all; pass D one or more")


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
