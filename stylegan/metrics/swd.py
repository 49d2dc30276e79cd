"""Sliced Wasserstein distance of patches of Laplacian pyramids (Karras et al. 2018, Section 5).

    rng = np.random.RandomState(0)
    reals, fakes = (patches(images, rng, levels=num_levels(1024)) for images in (reals, fakes))
    distances = swd(reals, fakes, rng)  # one per level, times 1000 in the paper

Draws come from NumPy's legacy generator, whose stream is frozen, in the order of the official code.
Patches of several minibatches are concatenated level by level.

Legend: n images, c h w; H W half of h w, p patches, s side of a patch, e components of one,
r directions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, pad

from stylegan.arguments import check_batch, check_shape

PATCHES = 128
"""Patches of each image and level."""
SIDE = 7
"""Their width and height in pixels."""
REPEATS = 4
"""How often directions are drawn."""
DIRECTIONS = 128
"""Directions drawn at a time."""
_LEAST_PX = 16
_REMEDY = "pass what `patches` gives of as many reals as fakes"
_TAPS = (1, 4, 6, 4, 1)


def num_levels(resolution: int) -> int:
    """Levels of the pyramid from `resolution` down to 16 px."""
    return max(resolution // _LEAST_PX, 1).bit_length()


def swd(
    reals: Sequence[Float[Tensor, "p c s s"]],
    fakes: Sequence[Float[Tensor, "p c s s"]],
    rng: np.random.RandomState,
    *,
    repeats: int = REPEATS,
    directions: int = DIRECTIONS,
) -> list[float]:
    """Distance at each level, the finest first.

    Args:
        reals: Patches of real images, level by level.
        fakes: As many of generated ones.
        rng: Directions are drawn from it.
        repeats: See `REPEATS`.
        directions: See `DIRECTIONS`.
    """
    if len(reals) != len(fakes):
        raise ValueError(
            f"reals have {len(reals)} levels and fakes {len(fakes)}; pass patches of the same "
            f"levels"
        )
    distances = []
    for real, fake in zip(reals, fakes, strict=True):
        check_shape("a level of reals", real, ("p", "c", "s", "s"), by="swd", remedy=_REMEDY)
        check_shape("a level of fakes", fake, real.shape, by="swd", remedy=_REMEDY)
        a, b = normalize(real), normalize(fake)
        parts = [
            sliced_wasserstein(a, b, draw_directions(rng, a.shape[1], directions).to(a.device))
            for _ in range(repeats)
        ]
        distances.append(sum(parts) / repeats)
    return distances


def patches(
    images: UInt8[Tensor, "n c h w"],
    rng: np.random.RandomState,
    *,
    levels: int,
    count: int = PATCHES,
    side: int = SIDE,
) -> list[Float32[Tensor, "_ c s s"]]:
    """Patches around random pixels of each level of the images' pyramids.

    Args:
        images: Of one minibatch.
        rng: Places are drawn from it.
        levels: See `num_levels`.
        count: Patches per image and level.
        side: Their odd side in pixels.
    """
    check_batch("images", images, by="patches")
    return [_cut(level, rng, count, side) for level in laplacian_pyramid(images.float(), levels)]


def laplacian_pyramid(
    images: Float32[Tensor, "n c h w"], levels: int
) -> list[Float32[Tensor, "n c _ _"]]:
    """What each level adds to the next coarser one, and that of the coarsest itself.

    (Burt and Adelson 1983.)
    """
    pyramid = []
    for _ in range(levels - 1):
        coarse = _filter(images)[:, :, ::2, ::2]
        pyramid.append(images - _enlarge(coarse))
        images = coarse
    return [*pyramid, images]


def normalize(values: Float[Tensor, "p c s s"]) -> Float[Tensor, "p e"]:
    """Patches as vectors, each colour channel with mean 0 and variance 1 over all patches.

    Raises:
        ValueError: A channel that is the same everywhere.
    """
    # Accumulated in float64: there may be 2 million patches.
    mean = values.mean(dim=(0, 2, 3), keepdim=True, dtype=torch.float64).to(values)
    centred = values - mean
    variance = centred.square().mean(dim=(0, 2, 3), keepdim=True, dtype=torch.float64)
    if (variance == 0).any():
        raise ValueError(
            f"a colour channel is the same in all {len(values)} patches; look at the images"
        )
    return (centred / variance.sqrt().to(values)).flatten(1)


def draw_directions(rng: np.random.RandomState, size: int, count: int) -> Float32[Tensor, "e r"]:
    """Random unit vectors, one per column."""
    vectors = rng.randn(size, count)
    return torch.from_numpy((vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32))


def sliced_wasserstein(
    a: Float[Tensor, "p e"], b: Float[Tensor, "p e"], directions: Float[Tensor, "e r"]
) -> float:
    """Mean over directions of the 1-Wasserstein distance of projections (Rabin et al. 2011)."""
    x, y = ((z @ directions).sort(dim=0).values for z in (a, b))
    return float((x - y).abs().mean(dtype=torch.float64))


def _cut(images: Tensor, rng: np.random.RandomState, count: int, side: int) -> Tensor:
    n, c, h, w = images.shape
    half = side // 2
    if min(h, w) < side or side % 2 == 0:
        raise ValueError(
            f"patches of {side} px do not fit into a level of {h} x {w} px; choose an odd side and "
            f"fewer levels"
        )
    columns, rows = (
        torch.from_numpy(rng.randint(half, extent - half, size=n * count)) for extent in (w, h)
    )
    offsets = torch.arange(-half, half + 1)
    image = torch.arange(n).repeat_interleave(count)
    # [p, 1, s, 1] and [p, 1, 1, s]: a patch lies on its side, as the official directions see it.
    x = columns[:, None, None, None] + offsets[:, None]
    y = rows[:, None, None, None] + offsets
    return images[image[:, None, None, None], torch.arange(c)[:, None, None], y, x]


def _filter(x: Tensor) -> Tensor:
    """The binomial filter of 5 x 5 taps, mirrored at the border without repeating it."""
    line = torch.tensor(_TAPS, dtype=x.dtype, device=x.device) / sum(_TAPS)
    maps = pad(x, (2, 2, 2, 2), mode="reflect").flatten(0, 1)[:, None]  # [n c, 1, h + 4, w + 4]
    return conv2d(conv2d(maps, line[:, None][None, None]), line[None, None, None]).reshape(x.shape)


def _enlarge(x: Tensor) -> Tensor:
    """Twice the size: zeros between the pixels, then the filter with a gain of 4."""
    n, c, h, w = x.shape
    sparse = x.new_zeros(n, c, 2 * h, 2 * w)
    sparse[:, :, ::2, ::2] = x
    return 4 * _filter(sparse)
