"""Multi-scale structural similarity of pairs of images (Wang et al. 2003).

Progressive GAN's measure of variation: the mean over random pairs of generated images.

Legend: n pairs, c h w.
"""

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, pad

from stylegan.arguments import check_batch, check_shape, check_type
from stylegan.resample import box_down

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, the finest first (Sec. 3.2)."""
_WINDOW_PX, _SIGMA_PX = 11, 1.5
_PEAK = 255
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


def ms_ssim(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
    """MS-SSIM of each pair (Eq. 7): 1 for equal images; negative terms count as 0.

    Where an image, halved for the coarser scales, is smaller than the window, the window shrinks.

    Raises:
        ValueError: Images that are no bytes, no pairs, or cannot be halved so often.
    """
    check_batch("a", a, by="ms_ssim")
    check_shape("b", b, a.shape, by="ms_ssim", remedy="pass as many images of the same size")
    for name, images in (("a", a), ("b", b)):
        remedy = "pass bytes from 0 to 255"
        check_type(name, images, torch.uint8, by="ms_ssim", remedy=remedy)
    if min(a.shape[2:]) < 2 ** (len(WEIGHTS) - 1):
        raise ValueError(
            f"images are {a.shape[2]} x {a.shape[3]} px; MS-SSIM halves them {len(WEIGHTS) - 1} "
            f"times, so they need at least {2 ** (len(WEIGHTS) - 1)} px: enlarge them"
        )
    x, y = a.double(), b.double()
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = _halve(x), _halve(y)
        similarity, contrast = _ssim(x, y)
        term = similarity if scale == len(WEIGHTS) - 1 else contrast
        result *= term.clamp(min=0) ** weight
    return result


def _ssim(
    x: Float64[Tensor, "n c h w"], y: Float64[Tensor, "n c h w"]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Means over an image of SSIM (Wang et al. 2004, Eq. 13) and of its contrast-structure term."""
    line = _window(min(_WINDOW_PX, *x.shape[2:])).to(x.device)
    mean_x, mean_y = _filter(x, line), _filter(y, line)
    variances = _filter(x * x + y * y, line) - mean_x.square() - mean_y.square()
    covariance = _filter(x * y, line) - mean_x * mean_y
    contrast = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * contrast).mean(dim=(1, 2, 3)), contrast.mean(dim=(1, 2, 3))


def _window(size: int) -> Float64[Tensor, " size"]:
    """A Gaussian of sum 1, as wide in terms of its size as that of 11 px."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = (-at.square() / (2 * (size * _SIGMA_PX / _WINDOW_PX) ** 2)).exp()
    return line / line.sum()


def _filter(x: Float64[Tensor, "n c h w"], line: Float64[Tensor, " k"]) -> Tensor:
    """Weighted means under the window wherever it lies inside the image."""
    maps = x.flatten(0, 1)[:, None]  # [n c, 1, h, w]
    maps = conv2d(conv2d(maps, line[:, None][None, None]), line[None, None, None])
    return maps.reshape(*x.shape[:2], *maps.shape[2:])


def _halve(x: Float64[Tensor, "n c h w"]) -> Tensor:
    """Means of 2 x 2 pixels; an odd last row or column is paired with itself."""
    return box_down(pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate"))
