"""Perceptual path length (Karras et al. 2019, Section 4.1).

    measure = partial(
        path_lengths,
        mapping=lambda z, labels: G.broadcast(G.mapping(z, labels)),
        synthesis=G.synthesis,
        distance=lpips,
        config=PathConfig(space="w"),
    )
    ppl = perceptual_path_length(torch.cat([measure(z, t) for z, t in batches]))

How far images move, perceptually, for a small step from `t` to `t + epsilon` between two latents.
Latents of pairs are interleaved: rows 0, 2, ... are the first ends and rows 1, 3, ... the second.
`t` is uniform in [0, 1) for full paths (sampling "full") and 0 for their ends ("end").

Legend: n pairs, m = 2 n latents, z w latent sizes, l layers, d label components, c h w.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from stylegan.arguments import check_batch, check_shape
from stylegan.resample import box_down

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images, [n c h w] in [0, 255] and not clamped, to one distance per pair, [n]."""

Space = Literal["z", "w"]
SizeRule = Literal["cropped", "full"]
_DISTANCE_PX = 256


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Along which paths, and what of the images is looked at."""

    space: Space = "w"
    """`z`: along great circles before the mapping network; `w`: along lines behind it."""
    epsilon: float = 1e-4
    """Length of the step, as a share of the path."""
    crop: bool = True
    """Look at the face alone; StyleGAN does so for every data set."""
    size: SizeRule = "cropped"
    """Which size is reduced towards 256 px: `cropped` as in StyleGAN, `full` as in StyleGAN3."""

    def __post_init__(self) -> None:
        for key, choices in {"space": get_args(Space), "size": get_args(SizeRule)}.items():
            if getattr(self, key) not in choices:
                raise ValueError(
                    f"{key} of the path length is {getattr(self, key)!r}; choose from "
                    f"{', '.join(choices)}"
                )
        if not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"epsilon of the path length is {self.epsilon}; choose a number above 0, "
                f"officially 1e-4"
            )


@torch.no_grad()
def path_lengths(
    z: Float[Tensor, "m z"],
    t: Float[Tensor, " n"],
    *,
    mapping: Callable[[Tensor, Tensor | None], Tensor],
    synthesis: Callable[[Tensor], Tensor],
    distance: Distance,
    config: PathConfig,
    labels: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, " n"]:
    """Distance per step, divided by epsilon^2 (Eq. 2 and 3), of each pair.

    Args:
        z: Latents of the pairs, interleaved.
        t: Where on its path each pair is looked at.
        mapping: z and labels to one w per layer, [m l w], without truncation.
        synthesis: Those to images in [-1, 1], with the same noise for both images of a pair, as
            stored noise is.
        distance: Perceptual distance, quadratic in small steps as LPIPS is.
        config: Paths and view.
        labels: One per pair, shared by its two ends.
    """
    check_shape("t", t, ("n",), by="path_lengths", remedy="pass one place for each pair")
    check_shape("z", z, ("m", "z"), by="path_lengths", remedy="pass two latents for each pair")
    if len(z) != 2 * len(t):
        raise ValueError(f"there are {len(z)} latents for {len(t)} pairs; pass two for each pair")
    labels = None if labels is None else labels.repeat_interleave(2, dim=0)
    steps = (t, t + config.epsilon)
    if config.space == "w":
        ws = mapping(z, labels)
        ws = _interleave([lerp(ws[0::2], ws[1::2], s[:, None, None]) for s in steps])
    else:
        ws = mapping(_interleave([slerp(z[0::2], z[1::2], s[:, None]) for s in steps]), labels)
    images = view(synthesis(ws), crop=config.crop, size=config.size)
    return distance(images[0::2], images[1::2]) / config.epsilon**2


def perceptual_path_length(lengths: Float[Tensor, " n"]) -> float:
    """Mean of the lengths without outliers."""
    return float(trim(lengths).double().mean())


def trim(lengths: Float[Tensor, " n"]) -> Float[Tensor, " k"]:
    """The lengths from the 1st percentile to the 99th, both included, in their order.

    Where a percentile falls between two values it is the outer one.

    Raises:
        ValueError: No lengths, or some that are not finite.
    """
    check_shape("lengths", lengths, ("n",), by="trim", remedy="pass one length for each pair")
    bad = int((~lengths.isfinite()).sum())
    if bad or not len(lengths):
        raise ValueError(
            f"{bad} of {len(lengths)} path lengths are not finite; at least one is needed and all "
            f"must be: look at the images and at epsilon"
        )
    ordered, last = lengths.sort().values, len(lengths) - 1
    lower, upper = ordered[last // 100], ordered[math.ceil(99 * last / 100)]
    return lengths[(lengths >= lower) & (lengths <= upper)]


def slerp(
    a: Float[Tensor, "n z"], b: Float[Tensor, "n z"], t: Float[Tensor, "n 1"]
) -> Float[Tensor, "n z"]:
    """Along the great circle from a / |a| to b / |b| (Shoemake 1985); of unit length."""
    check_shape("a", a, ("n", "z"), by="slerp", remedy="pass one latent for each path")
    check_shape("b", b, a.shape, by="slerp", remedy="pass an end for each begin")
    check_shape("t", t, (len(a), 1), by="slerp", remedy="pass one place for each path")
    a, b = normalize(a), normalize(b)
    cosine = (a * b).sum(dim=1, keepdim=True).clamp(-1, 1)
    angle = t * cosine.arccos()
    return normalize(a * angle.cos() + normalize(b - cosine * a) * angle.sin())


def lerp(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """The line a + (b - a) t, for t beyond 1 too."""
    return a + (b - a) * t


def view(
    images: Float[Tensor, "n c h w"], *, crop: bool = True, size: SizeRule = "cropped"
) -> Float[Tensor, "n c _ _"]:
    """What the distance looks at: the face, at about 256 px, from [-1, 1] to [0, 255].

    Args:
        images: Square images.
        crop: With c = h // 8, rows 3 c to 7 c and columns 2 c to 6 c.
        size: The size that is divided by 256 to give the factor of reduction.
    """
    check_batch("images", images, by="view")
    full = images.shape[2]
    if images.shape[3] != full or (crop and full < 8):
        raise ValueError(
            f"images are {full} x {images.shape[3]} px; path lengths take square ones of at least "
            f"8 px"
        )
    if crop:
        c = full // 8
        images = images[:, :, 3 * c : 7 * c, 2 * c : 6 * c]
    factor = max((images.shape[2] if size == "cropped" else full) // _DISTANCE_PX, 1)
    return (box_down(images, factor) + 1) * (255 / 2)


def _interleave(ends: list[Tensor]) -> Tensor:
    return torch.stack(ends, dim=1).flatten(0, 1)
