"""Resampling: blocky enlargement, box reduction and the small low-pass filter beside them.

Legend: n images, c h w; H W twice h w.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate, pad

from stylegan.arguments import check_batch


def blocky_up(images: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c H W"]:
    """Nearest-neighbour enlargement: every pixel becomes a block of `factor` x `factor`."""
    check_batch("images", images, by="blocky_up")
    if factor == 1:
        return images
    return interpolate(images, scale_factor=factor, mode="nearest")


def box_down(images: Float[Tensor, "n c H W"], factor: int = 2) -> Float[Tensor, "n c h w"]:
    """Mean over blocks of `factor` x `factor` pixels.

    Raises:
        ValueError: They are no batch, or pixels would be left over.
    """
    check_batch("images", images, by="box_down")
    if images.shape[2] % factor or images.shape[3] % factor:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, but box_down takes sides that {factor} "
            f"divides; crop or enlarge them"
        )
    if factor == 1:
        return images
    return avg_pool2d(images, factor)


class Blur(nn.Module):
    """Separable low-pass filter of each channel, zero padded, size kept (Karras et al. 2019).

    Zero padding darkens the border; the official networks do so too.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[int]) -> None:
        """`taps`: the filter along one axis, symmetric, normalized here; officially (1, 2, 1)."""
        super().__init__()
        self.register_buffer("kernel", _kernel(taps), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        taps = self.kernel.shape[-1]
        return _filtered(x, self.kernel, ((taps - 1) // 2, taps // 2))


class Fir(nn.Module):
    """Enlarging and reducing by 2 with a low-pass filter (Karras et al. 2020, Section 4.1).

    Images are filtered on a plane of zeros: to enlarge them after zeros were put between pixels,
    which takes 4 times the filter, to reduce them before every second pixel is taken. Beside a 3x3
    convolution of stride 2 the filtered image is one pixel wider.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[int]) -> None:
        """`taps`: the filter along one axis, symmetric, normalized here; 2 or more."""
        super().__init__()
        self.register_buffer("kernel", _kernel(taps), persistent=False)
        self._less, self._more = (len(taps) - 2) // 2, (len(taps) - 1) // 2

    def up(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c H W"]:
        """Twice the size."""
        return _filtered(x, self.kernel * 4, (self._less, self._more), stride=2, transposed=True)

    def down(self, x: Float[Tensor, "n c H W"]) -> Float[Tensor, "n c h w"]:
        """Half the size."""
        return _filtered(x, self.kernel, (self._more, self._less), stride=2)

    def after_up_conv(self, x: Float[Tensor, "n c _ _"]) -> Float[Tensor, "n c H W"]:
        """What makes a transposed 3x3 convolution of stride 2 an enlargement: 2h + 1 to 2h."""
        return _filtered(x, self.kernel * 4, (self._more, self._less))

    def before_down_conv(self, x: Float[Tensor, "n c H W"]) -> Float[Tensor, "n c _ _"]:
        """What an unpadded 3x3 convolution of stride 2 takes for a reduction: 2h to 2h + 1."""
        return _filtered(x, self.kernel, (self._more + 1, self._less + 1))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Tensors keep their types inside; the meta device, which computes nothing, has no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _kernel(taps: Sequence[int]) -> Float[Tensor, "1 1 k k"]:
    """The filter in both axes, of sum 1."""
    line = torch.tensor(taps, dtype=torch.float64, device="cpu")
    kernel = torch.outer(line, line) / line.sum().square()
    return kernel[None, None].to(torch.float32)


def _filtered(
    x: Float[Tensor, "n c _ _"],
    kernel: Float[Tensor, "1 1 k k"],
    margins: tuple[int, int],
    *,
    stride: int = 1,
    transposed: bool = False,
) -> Float[Tensor, "n c _ _"]:
    """Each channel filtered.

    Args:
        x: Images.
        kernel: Symmetric in both axes.
        margins: Zeros put before and after the pixels of an axis; of the transposed filter the
            pixels that are cut off there.
        stride: Steps of the filter; no pixel may be left over.
        transposed: Apply the adjoint, which enlarges by `stride`.
    """
    y: Tensor = _Filtered.apply(x, kernel, margins, stride, transposed)  # type: ignore[no-untyped-call]
    return y


class _Filtered(torch.autograd.Function):
    """The gradient of a filter is its adjoint, whose gradient is the filter.

    Autograd's own way through a grouped convolution gives the same, ten times as slowly where
    gradients of gradients are taken (on a CPU with 64 channels of 16 px).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Tensor,
        margins: tuple[int, int],
        stride: int,
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.arguments = margins, stride, transposed
        (before, after), taps = margins, kernel.shape[-1]
        assert stride == 1 or transposed or (x.shape[-1] + before + after - taps) % stride == 0
        weight = kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        if transposed and stride == 1:
            # The kernel is symmetric: the adjoint is the filter again, with other margins.
            before, after, transposed = taps - 1 - before, taps - 1 - after, False
        common = min(before, after)
        options: dict[str, Any] = {"stride": stride, "padding": common, "groups": x.shape[1]}
        first, last = before - common, after - common
        with without_autocast(x.device):
            if not transposed:
                x = pad(x, (first, last, first, last)) if before != after else x
                return conv2d(x, weight, **options)
            y = conv_transpose2d(x, weight, **options)
            return y[..., first : y.shape[-2] - last, first : y.shape[-1] - last]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (kernel,) = ctx.saved_tensors
        margins, stride, transposed = ctx.arguments
        filtered = _filtered(gradient, kernel, margins, stride=stride, transposed=not transposed)
        return filtered, None, None, None, None
