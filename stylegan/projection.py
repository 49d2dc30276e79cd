"""Images to latents (Karras et al. 2020, Section 5 and Appendix D), for StyleGAN and StyleGAN2.

    found = project(Gs, images, lpips=lpips)         # images uint8 [n c h w]
    again = Gs.synthesis(found.ws, noise=found.noise)

w and the noise inputs of each image are optimized by Adam until G gives an image at a small LPIPS
distance from the target. In the beginning w is perturbed, so that it finds the right valley; the
noise is kept from carrying the picture by a penalty on its autocorrelation. Images of a batch know
nothing of each other: what is drawn is the same for each.

Legend: n images, c h w, l layers, d label components.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stylegan.draws import Draws, Purpose
from stylegan.metrics.lpips import LPIPS
from stylegan.networks.interface import Generator
from stylegan.resample import box_down
from stylegan.sample import to_uint8

Space = Literal["w", "w+"]
Watch = Callable[[int, Tensor], None]
"""Called with each step's number and images, [n c h w] in about [-1, 1]."""

_DISTANCE_PX = 256
_SMALLEST_PX = 8
_CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """How images are projected; the numbers are those of the paper."""

    space: Space = "w"
    """`w`: one w for all layers; `w+`: one for each, which comes nearer and is edited less well."""
    steps: int = 1000
    """Updates of each image."""
    learning_rate: float = 0.1
    """Of Adam, at its highest."""
    ramp_up: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    ramp_down: float = 0.25
    """Share of the steps over which it falls to 0 again, along a cosine."""
    perturbation: float = 0.05
    """Of w at the begin, in its deviations."""
    perturbed: float = 0.75
    """Share of the steps over which the perturbation vanishes."""
    noise_weight: float = 1e5
    """Of the penalty on autocorrelation of the noise."""
    mean_latents: int = 10_000
    """Latents that mean and deviation of w are taken of."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if self.space not in get_args(Space):
            raise ValueError(f"space is {self.space!r}; choose from {', '.join(get_args(Space))}")
        if not 0 <= self.noise_weight < math.inf:
            raise ValueError(
                f"noise_weight of a projection is {self.noise_weight}; choose 0 or more, 1e5 in "
                f"the paper"
            )
        for key in ("learning_rate", "ramp_up", "ramp_down", "perturbation", "perturbed"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"{key} of a projection is {getattr(self, key)}; choose a number from 0 up"
                )
        for key in ("steps", "mean_latents"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} of a projection is {getattr(self, key)}; choose 1 or more")


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """What was found for each image."""

    ws: Float[Tensor, "n l w_size"]
    noise: Sequence[Float[Tensor, "n 1 _ _"]]
    """Of each noise input."""
    images: UInt8[Tensor, "n c h w"]
    """What G makes of them, on the CPU."""
    lpips: Float[Tensor, " n"]
    """Distance of each image from its target, both as bytes."""
    psnr: Float[Tensor, " n"]
    """Peak signal-to-noise ratio, in dB."""


def project(
    Gs: Generator,
    targets: UInt8[Tensor, "n c h w"],
    *,
    lpips: LPIPS,
    config: ProjectionConfig | None = None,
    label: Float[Tensor, "1 d"] | None = None,
    lod: float = 0.0,
    watch: Watch | None = None,
) -> Projection:
    """Latents of images.

    Args:
        Gs: A generator with a mapping network.
        targets: At the native size of `lod`.
        lpips: Perceptual distance; images above 256 px are reduced for it, as in the paper.
        config: How; None = as in the paper.
        label: Of all images, where the network has labels.
        lod: Level of detail of a network that is still growing; 0 = full size.
        watch: Sees every step.

    Raises:
        ValueError: The network has no w, or the images are not of its size.
    """
    config = ProjectionConfig() if config is None else config
    _check(Gs, targets, lod)
    device = Gs.w_avg.device
    draws = Draws(seed=config.seed)
    mean, deviation = latent_statistics(Gs, draws, config.mean_latents, label)
    rows = 1 if config.space == "w" else Gs.layers()
    w = mean.repeat(len(targets), rows, 1).requires_grad_()  # [n, 1 or l, w]
    first = torch.zeros(1, dtype=torch.int64, device=device)
    drawn = draws.noise(Purpose.PROJECTION_NOISE, indices=first, sides=Gs.noise_sides(lod))
    noise = [layer.repeat(len(targets), 1, 1, 1).requires_grad_() for layer in drawn]
    with torch.no_grad():
        wanted = lpips.embed(_view(targets.to(device).float()))
    optimizer = torch.optim.Adam([w, *noise])

    for step in range(config.steps):
        t = step / config.steps
        scale = config.perturbation * deviation * max(0.0, 1 - t / config.perturbed) ** 2
        index = torch.full((1,), step, device=device)
        shift = draws.normal(Purpose.PROJECTION_W, indices=index, count=rows * w.shape[2])
        ws = (w + scale * shift.reshape(1, rows, -1)).expand(-1, Gs.layers(), -1)
        images = Gs.synthesis(ws, noise=noise or None, lod=lod)

        distance = (lpips.embed(_view((images + 1) * (255 / 2))) - wanted).square().sum()
        loss = distance + config.noise_weight * autocorrelation(noise)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * ramp(t, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _normalize(noise)
        if watch is not None:
            watch(step, images.detach())

    return _found(Gs, w, noise, targets, lpips=lpips, lod=lod)


@torch.no_grad()
def latent_statistics(
    Gs: Generator, draws: Draws, count: int, label: Float[Tensor, "1 d"] | None = None
) -> tuple[Float[Tensor, " w_size"], float]:
    """Mean w, and the root of the mean squared distance from it."""
    device, parts = Gs.w_avg.device, []
    for indices in torch.arange(count, device=device).split(_CHUNK):
        z = draws.normal(Purpose.PROJECTION_Z, indices=indices, count=Gs.config.z_size)
        labels = None if label is None else label.to(device).expand(len(z), -1)
        parts.append(Gs.mapping(z, labels))
    w = torch.cat(parts).double()
    mean = w.mean(dim=0)
    return mean.float(), float((w - mean).square().sum(dim=1).mean().sqrt())


def ramp(t: float, config: ProjectionConfig) -> float:
    """Share of the learning rate at t, from 0 at the begin to 1 at the end of the projection."""
    down = min(1.0, (1 - t) / config.ramp_down) if config.ramp_down else 1.0
    up = min(1.0, t / config.ramp_up) if config.ramp_up else 1.0
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


def autocorrelation(noise: Sequence[Float[Tensor, "n 1 _ _"]]) -> Float[Tensor, ""]:
    """Penalty on noise that is not white, at its own size and reduced down to 8 px (Appendix D)."""
    total = torch.zeros((), device=noise[0].device if noise else None)
    for layer in noise:
        while True:
            for axis in (2, 3):
                products = (layer * layer.roll(1, dims=axis)).mean(dim=(1, 2, 3))
                total = total + products.square().sum()
            if layer.shape[2] <= _SMALLEST_PX:
                break
            layer = box_down(layer) * 2  # noqa: PLW2901 (twice the mean of four keeps the variance)
    return total


@torch.no_grad()
def psnr(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each pair in dB; infinite where they are equal."""
    squares = (a.float() - b.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / squares)


@torch.no_grad()
def _found(
    Gs: Generator,
    w: Tensor,
    noise: Sequence[Tensor],
    targets: Tensor,
    *,
    lpips: LPIPS,
    lod: float,
) -> Projection:
    ws = w.detach().expand(-1, Gs.layers(), -1)
    fixed = [layer.detach() for layer in noise]
    images = to_uint8(Gs.synthesis(ws, noise=fixed or None, lod=lod))
    targets = targets.to(images.device)
    distance = lpips(_view(images.float()), _view(targets.float()))
    return Projection(
        ws=ws,
        noise=fixed,
        images=images.cpu(),
        lpips=distance.cpu(),
        psnr=psnr(images, targets).cpu(),
    )


@torch.no_grad()
def _normalize(noise: Sequence[Tensor]) -> None:
    """Every map back to mean 0 and variance 1."""
    for layer in noise:
        layer -= layer.mean(dim=(2, 3), keepdim=True)  # noqa: PLW2901 (in place)
        layer *= layer.square().mean(dim=(2, 3), keepdim=True).rsqrt()  # noqa: PLW2901


def _view(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
    """Images as the distance looks at them: at most 256 px."""
    return box_down(images, max(images.shape[2] // _DISTANCE_PX, 1))


def _check(Gs: Generator, targets: Tensor, lod: float) -> None:
    if not Gs.has_w:
        raise ValueError(
            f"images are projected to w, and a network of kind {Gs.config.kind} has none; take one "
            f"of kind stylegan or stylegan2"
        )
    side = Gs.config.resolution >> int(lod)
    if targets.shape[1:] != (Gs.config.channels, side, side) or not len(targets):
        raise ValueError(
            f"images are {tuple(targets.shape)}, but the network makes [n, {Gs.config.channels}, "
            f"{side}, {side}]; crop and resize them, or project one or more"
        )
