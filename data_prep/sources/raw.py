"""Images that are stored as bare arrays."""

import io

import numpy as np
from numpy.typing import NDArray

from data_prep.images import BadImageError


def image_file(image: NDArray[np.uint8]) -> bytes:
    """A PGM or PPM file of an image [h, w, c] with 1 or 3 channels.

    Raises:
        BadImageError: It has others.
    """
    height, width, channels = image.shape
    if channels not in (1, 3):
        raise BadImageError(f"unknown channels: {channels}; only 1 and 3 can be read")
    kind = "P5" if channels == 1 else "P6"
    return f"{kind} {width} {height} 255\n".encode() + image.tobytes()


def npy_array(content: bytes) -> NDArray[np.generic]:
    """The array of a .npy file; no Python objects.

    Raises:
        ValueError: It is none.
    """
    array: NDArray[np.generic] = np.load(io.BytesIO(content), allow_pickle=False)
    return array
