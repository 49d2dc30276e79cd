"""What one looks at to see whether a generator is well.

    octaves(images)                  # how much of the images each resolution holds
    rgb_contributions(Gs, ws)        # how much each resolution adds to them (StyleGAN2, Figure 8)
    feature_norms(Gs, ws)            # where droplets would be (StyleGAN2, Figure 1)
    principal = components(w)        # along which w varies most

Legend: n images, c h w, l layers, k components.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.networks.interface import Generator
from stylegan.resample import blocky_up, box_down

COARSEST_PX = 4


class Components(NamedTuple):
    """Principal components of a set of w, the largest first."""

    mean: Float[Tensor, " w"]
    directions: Float[Tensor, "k w"]
    """Of length 1; of each, the largest element is positive."""
    stddevs: Float[Tensor, " k"]
    shares: Float[Tensor, " k"]
    """Of the whole variance."""

    def project(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n k"]:
        """Coordinates along the directions."""
        return (w - self.mean) @ self.directions.T


def octaves(images: Float[Tensor, "n c h w"]) -> dict[int, float]:
    """Standard deviation of what each resolution adds to the next coarser one.

    An image is the sum of its 4 px version, enlarged in blocks, and of what each doubling adds; the
    parts are uncorrelated, so that the squares of these numbers add up to the variance within
    the image.

    Args:
        images: Square, a power of two of pixels wide.

    Returns:
        By side in pixels, from 4 px (around each image's mean colour) to the full size.
    """
    found: dict[int, float] = {}
    fine = images.double()
    while fine.shape[-1] > COARSEST_PX:
        coarse = box_down(fine)
        found[fine.shape[-1]] = _rms(fine - blocky_up(coarse))
        fine = coarse
    found[fine.shape[-1]] = _rms(fine - fine.mean(dim=(2, 3), keepdim=True))
    return dict(sorted(found.items()))


@torch.no_grad()
def rgb_contributions(Gs: Generator, ws: Float[Tensor, "n l w"]) -> dict[int, float]:
    """Standard deviation of the pixels that each ToRGB adds (Karras et al. 2020, Figure 8).

    Returns:
        By side in pixels; empty where images are not a sum over resolutions.
    """
    if getattr(Gs.config, "architecture", "") != "skip":
        return {}
    with _recorded(Gs.synthesis.get_submodule("to_rgb")) as outputs:
        Gs.synthesis(ws)
    return {int(side): float(rgb.std()) for side, rgb in outputs.items()}


@torch.no_grad()
def feature_norms(
    Gs: Generator, ws: Float[Tensor, "n l w"], *, lod: float = 0.0
) -> dict[int, Float[Tensor, "n _ _"]]:
    """Length of the feature vector of each pixel behind each resolution's block.

    A droplet is a spot in which it is many times what it is elsewhere (Karras et al. 2020, Section
    2). Each map is divided by its median.

    Returns:
        By side in pixels; empty for networks without such blocks.
    """
    if not hasattr(Gs.synthesis, "blocks"):
        return {}
    with _recorded(Gs.synthesis.get_submodule("blocks")) as outputs:
        Gs.synthesis(ws, lod=lod)
    norms = {int(side): features.float().norm(dim=1) for side, features in outputs.items()}
    return {
        side: norm / norm.flatten(1).median(dim=1).values.clamp(min=1e-8)[:, None, None]
        for side, norm in norms.items()
    }


def components(w: Float[Tensor, "n w"], *, count: int) -> Components:
    """Principal components of `n` latents.

    Raises:
        ValueError: There are not more latents than components.
    """
    if len(w) <= count:
        raise ValueError(f"{count} components of {len(w)} latents; take more latents than that")
    mean = w.mean(dim=0)
    _, singular, directions = torch.linalg.svd((w - mean).double(), full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    directions = directions * largest.sign()
    variances = singular.square() / (len(w) - 1)
    return Components(
        mean=mean,
        directions=directions[:count].to(w.dtype),
        stddevs=variances[:count].sqrt().to(w.dtype),
        shares=(variances / variances.sum())[:count].to(w.dtype),
    )


@contextmanager
def _recorded(modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the children of a module put out, by their names."""
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> None:
        outputs[name] = output.detach()

    handles = [
        child.register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name, child in modules.named_children()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
