"""What public functions ask of the shape and type of their arguments, in one sentence.

Annotations say the same, but only the tests check those. Nothing here looks at a value, so nothing
waits for a device, and torch.compile turns it into guards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(
    name: str, tensor: Tensor, sizes: Sequence[int | str], *, by: str, remedy: str
) -> None:
    """See that a tensor has the shape that is expected of it.

    Args:
        name: Of the argument.
        tensor: Its value.
        sizes: Of each axis; any size that is but named, such as "n".
        by: What takes it.
        remedy: What to do else.

    Raises:
        ValueError: It has another one.
    """
    expected = [size if isinstance(size, int) else None for size in sizes]
    fits = tensor.ndim == len(sizes) and all(
        size is None or size == actual for size, actual in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but {by} takes "
            f"[{', '.join(map(str, sizes))}]; {remedy}"
        )


def check_batch(name: str, images: Tensor, *, by: str) -> None:
    """See that images are a batch.

    Raises:
        ValueError: They have more or fewer axes.
    """
    check_shape(name, images, "nchw", by=by, remedy="pass a batch of images, channels first")


def check_type(name: str, tensor: Tensor, dtype: torch.dtype, *, by: str, remedy: str) -> None:
    """See that a tensor is of this type.

    Raises:
        ValueError: It is of another one.
    """
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, but {by} takes {dtype}; {remedy}")


def check_floating(name: str, tensor: Tensor, *, by: str, remedy: str) -> None:
    """See that a tensor is of a floating-point type, whichever.

    Raises:
        ValueError: It is not.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype}, but {by} takes floating point; {remedy}")
