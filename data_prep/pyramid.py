"""From one full-resolution image to its levels, 4 px to full, and their bytes.

The rule of the official multi-resolution data sets (Karras et al. 2018): each level is the 2x2 mean
of the UNROUNDED float32 level above it, then rounded half to even and clipped.
Axes: h w c; values 0 to 255.
"""

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALLEST_PX = 4
LARGEST_PX = 16384
"""One image at this size takes gigabytes in the making of its levels."""
LARGEST_RAW_PX = 8
"""Levels up to this one are stored as .npy: a PNG of 8x8 is no smaller and slower to read."""
PNG_COMPRESS_LEVEL = 1
"""Three times as fast as Pillow's 6 for files 5 to 10 % longer."""


def resolutions(resolution: int) -> list[int]:
    """Widths of all levels of a data set, 4 px first.

    Raises:
        ValueError: `resolution` is not a power of two in this range.
    """
    if not SMALLEST_PX <= resolution <= LARGEST_PX or resolution & (resolution - 1):
        raise ValueError(
            f"resolution {resolution} is not a power of two from {SMALLEST_PX} to {LARGEST_PX}; "
            f"choose from 4, 8, 16, 32, 64, 128, 256, 512, 1024, …"
        )
    return [2**log2 for log2 in range(2, resolution.bit_length())]


def pyramid(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The image at every level, 4 px first; the last is the image itself."""
    levels = [image]
    mean = image.astype(np.float32)
    for _ in resolutions(image.shape[0])[1:]:
        mean = (mean[0::2, 0::2] + mean[0::2, 1::2]) + (mean[1::2, 0::2] + mean[1::2, 1::2])
        mean *= np.float32(0.25)
        levels.append(np.rint(mean).clip(0, 255).astype(np.uint8))
    return levels[::-1]


def encoding(resolution: int) -> str:
    """Suffix of the image members of a level."""
    return "npy" if resolution <= LARGEST_RAW_PX else "png"


def encode(image: NDArray[np.uint8]) -> bytes:
    """The bytes of one image of one level; lossless."""
    if encoding(image.shape[0]) == "npy":
        return _npy_header(image.shape) + image.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=PNG_COMPRESS_LEVEL, optimize=False)
    return buffer.getvalue()


@functools.cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, np.uint8))
    return buffer.getvalue()[: -int(np.prod(shape))]
