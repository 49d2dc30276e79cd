"""How tools bring images to the 299 px and the range that Inception sees.

The same images have another FID in each of them (Parmar et al. 2022, Section 3), so the convention
is a named option and part of every fingerprint.

Legend: n images, c h w channels, height, width; s = 299 px.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 299
"""Width and height the network sees, in pixels."""
Convention = Literal["official", "pytorchfid", "cleanfid", "torchmetrics"]


def official(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s s"]:
    """Of the papers, the official code and torch-fidelity: inside TF 1's graph."""
    return _normalized(resize_tf1(images, SIDE))


def pytorchfid(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s s"]:
    """Half-pixel centres, no antialiasing, and white is 1 instead of 127 / 128."""
    return 2 * interpolate(images / 255, (SIDE, SIDE), mode="bilinear") - 1


def cleanfid(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s s"]:
    """Pillow's bicubic filter, which antialiases, without rounding to whole numbers."""
    resized = interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
    return _normalized(resized.clamp(0, 255))


def torchmetrics(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s s"]:
    """A triangle filter that antialiases."""
    return _normalized(interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True))


CONVENTIONS: Mapping[Convention, Callable[[Tensor], Tensor]] = {
    "official": official,
    "pytorchfid": pytorchfid,
    "cleanfid": cleanfid,
    "torchmetrics": torchmetrics,
}
"""From values in [0, 255] to what the first layer sees."""


def inception_input(
    images: UInt8[Tensor, "n c h w"], convention: Convention
) -> Float[Tensor, "n c s s"]:
    """Images as the network sees them in this convention."""
    return CONVENTIONS[convention](images.float())


def resize_tf1(images: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c s s"]:
    """Bilinear resize as in TF 1's graph: pixel i of the output lies at i * h / side of the input.

    No half-pixel centres, no antialiasing; beyond the last row and column they are repeated.
    """
    for dim in (3, 2):
        size = images.shape[dim]
        if size == side:
            continue
        # The scale and the positions are float32 in TF, too.
        scale = torch.tensor(size, dtype=torch.float32) / side
        at = torch.arange(side, dtype=torch.float32) * scale
        low = at.long().clamp(max=size - 1)
        fraction = (at - low).to(images).reshape([-1, 1] if dim == 2 else [-1])
        left = images.index_select(dim, low.to(images.device))
        right = images.index_select(dim, (low + 1).clamp(max=size - 1).to(images.device))
        images = left + (right - left) * fraction
    return images


def _normalized(images: Tensor) -> Tensor:
    return (images - 128) / 128
