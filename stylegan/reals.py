"""Real images as the networks take them.

Legend: n images, c h w.
"""

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from stylegan.arguments import check_batch, check_shape, check_type
from stylegan.resample import blocky_up, box_down


def prepare_reals(
    images: UInt8[Tensor, "n c h w"], mirror: Bool[Tensor, " n"] | None, lod: float
) -> Float32[Tensor, "n c h w"]:
    """Bytes to [-1, 1], mirrored where asked, faded towards the coarser level.

    Args:
        images: Images of the level floor(lod), at its native size.
        mirror: Which of them to flip left to right; None = none.
        lod: Its fraction is how much of the coarser level is left.

    Raises:
        ValueError: No batch of bytes, not one `mirror` each, or sides that cannot be halved.
    """
    check_batch("images", images, by="prepare_reals")
    remedy = "pass bytes from 0 to 255"
    check_type("images", images, torch.uint8, by="prepare_reals", remedy=remedy)
    if mirror is not None:
        remedy = "pass true or false for each image"
        check_shape("mirror", mirror, (len(images),), by="prepare_reals", remedy=remedy)
        check_type("mirror", mirror, torch.bool, by="prepare_reals", remedy=remedy)
    reals = images.to(torch.float32) * (2 / 255) - 1
    if mirror is not None:
        reals = torch.where(mirror[:, None, None, None], reals.flip(3), reals)
    fraction = lod - int(lod)
    if fraction:
        reals = torch.lerp(reals, blocky_up(box_down(reals)), fraction)
    return reals
