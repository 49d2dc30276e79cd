"""From one full level to all levels of a sample, 4 px to full, and their bytes.

box, the rule of the official multi-resolution data sets (Karras et al. 2018): each level is the
2x2 mean of the UNROUNDED float32 level above it, then rounded half to even and clipped.
lanczos: each level is the full one resized by Pillow.
Axes: h w c; values 0 to 255.
"""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.images import FullLevel, ImageConfig

SMALLEST_PX = 4
LARGEST_PX = 16384
"""One image at this size takes gigabytes in the making of its levels."""
LARGEST_RAW_PX = 8
"""Levels up to this one are stored as .npy: a PNG of 8x8 is no smaller and slower to read."""
LARGEST_WEBP_PX = 16383
LARGEST_FIRST_PX = 32
"""Of the sides of the smallest level, so that sizes are small numbers times a power of two."""
_HALVINGS_IN_16_BITS = 4
_SAVED_AS: dict[str, dict[str, Any]] = {
    # Three times as fast as Pillow's 6 for files 5 to 10 % longer.
    "png": {"format": "PNG", "compress_level": 1, "optimize": False},
    # Faster to write and to read than such a PNG, and a quarter shorter.
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "quality": 0, "exact": True},
    "jpg": {"format": "JPEG", "subsampling": "4:4:4"},
}


def resolutions(resolution: int) -> list[int]:
    """Widths of all levels of a data set of squares 2^n, 4 px first.

    Raises:
        ValueError: `resolution` is not a power of two in this range.
    """
    if not SMALLEST_PX <= resolution <= LARGEST_PX or resolution & (resolution - 1):
        raise ValueError(
            f"resolution {resolution} is not a power of two from {SMALLEST_PX} to {LARGEST_PX}; "
            f"choose from 4, 8, 16, 32, 64, 128, 256, 512, 1024, …"
        )
    return [2**log2 for log2 in range(2, resolution.bit_length())]


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Width and height of all levels, halved as long as they are even and stay at least 4 px.

    Raises:
        ValueError: They do not lead to a small first level.
    """
    sizes = [(width, height)]
    while all(side % 2 == 0 and side // 2 >= SMALLEST_PX for side in sizes[-1]):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    least, greatest = min(sizes[-1]), max(width, height)
    if least < SMALLEST_PX or greatest > LARGEST_PX or max(sizes[-1]) > LARGEST_FIRST_PX:
        raise ValueError(
            f"size {width}x{height} halves to {sizes[-1][0]}x{sizes[-1][1]} and no further; choose "
            f"sides from {SMALLEST_PX} to {LARGEST_PX} px that halve to {SMALLEST_PX} to "
            f"{LARGEST_FIRST_PX} px, such as 512x384 or 192x192"
        )
    return sizes[::-1]


def stored_sizes(config: ImageConfig) -> list[tuple[int, int]]:
    """Width and height of the levels that a data set gets, the smallest first."""
    sizes = level_sizes(*config.size)
    return sizes[-1:] if config.levels == "full" else sizes


def pyramid(image: NDArray[np.uint8], downsampling: str = "box") -> list[NDArray[np.uint8]]:
    """The image at every level, the smallest first; the last is the image itself."""
    smaller = level_sizes(image.shape[1], image.shape[0])[-2::-1]
    if downsampling == "lanczos":
        levels = [image, *(_lanczos(image, size) for size in smaller)]
    else:
        levels = [image, *_boxes(image, len(smaller))]
    return levels[::-1]


def _boxes(image: NDArray[np.uint8], count: int) -> Iterator[NDArray[np.uint8]]:
    """The next `count` levels; the first ones in integers, which is as exact and twice as fast."""
    sums, halvings = image.astype(np.uint16), min(count, _HALVINGS_IN_16_BITS)
    for halving in range(1, halvings + 1):
        rows = sums[0::2] + sums[1::2]
        sums = rows[:, 0::2] + rows[:, 1::2]
        bits = 2 * halving
        odd = (sums >> bits) & 1
        rounded = (sums + odd + (2 ** (bits - 1) - 1)) >> bits  # half to even
        yield rounded.astype(np.uint8)
    mean = sums.astype(np.float32) * np.float32(0.25**halvings)
    for _ in range(count - halvings):
        mean = (mean[0::2, 0::2] + mean[0::2, 1::2]) + (mean[1::2, 0::2] + mean[1::2, 1::2])
        mean *= np.float32(0.25)
        yield np.rint(mean).astype(np.uint8)


def _lanczos(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    # Channel by channel: Pillow would weigh the colours with the alpha, and box does not.
    channels = [
        np.asarray(Image.fromarray(image[:, :, c]).resize(size, Image.Resampling.LANCZOS))
        for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def encoding(size: tuple[int, int], config: ImageConfig) -> str:
    """Suffix of the image members of a level."""
    if max(size) <= LARGEST_RAW_PX:
        return "npy"
    chosen = config.encoding if size == config.size else config.lower_encoding
    return "png" if chosen == "webp" and max(size) > LARGEST_WEBP_PX else chosen


def payloads(content: bytes, full: FullLevel, config: ImageConfig) -> Iterator[bytes]:
    """The bytes of one sample at every level, the smallest first.

    Args:
        content: The file it came from; it is the full level where it can be.
        full: What was read from it.
        config: How levels are made and stored.
    """
    levels = [full.pixels]
    if config.levels == "all":
        levels = pyramid(full.pixels, config.downsampling)
    for level in levels:
        suffix = encoding((level.shape[1], level.shape[0]), config)
        as_it_is = full.as_it_is and level is full.pixels and suffix == config.encoding
        yield content if as_it_is else encode(level, suffix, quality=config.quality)


def encode(image: NDArray[np.uint8], suffix: str, *, quality: int = 95) -> bytes:
    """The bytes of one image of one level; lossless but for jpg."""
    if suffix == "npy":
        return _npy_header(image.shape) + image.tobytes()
    buffer = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(pixels).save(buffer, **{"quality": quality, **_SAVED_AS[suffix]})
    return buffer.getvalue()


@functools.cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, np.uint8))
    return buffer.getvalue()[: -int(np.prod(shape))]
