"""LPIPS, the perceptual distance of path lengths (Zhang et al. 2018, Section 3 and Eq. 1).

    distance = LPIPS(tensors, net="vgg16")  # of `from_flax` or `from_torch`
    distances = distance(a, b)  # images in [0, 255], one distance per pair

Features of five layers, each scaled to length 1 at every place, are subtracted, squared, weighed by
channel and averaged over places; the distance is the sum over layers.

Legend: n pairs, c h w, k channels of a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from stylegan.metrics.weights_reader import check_shapes, required

Net = Literal["vgg16", "alexnet"]

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the three colours of images in [-1, 1], before the network."""
_EPS = 1e-10

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3 x 3 convolutions between the halvings (Simonyan and Zisserman 2015, D)."""
TORCHVISION: Mapping[Net, Sequence[int]] = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alexnet": (0, 3, 6, 8, 10),
}
"""Numbers of the convolutions in torchvision's `features`."""
LEAST_PX: Mapping[Net, int] = {"vgg16": 16, "alexnet": 31}
"""Smallest width and height whose features have a place left at each layer."""


class LPIPS(nn.Module):
    """Two batches of images to the distance of each pair."""

    shift: Tensor
    scale: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], *, net: Net) -> None:
        """Build from `conv0.weight conv0.bias ...` and the channel weights `lin0 ...`.

        Raises:
            ValueError: They are not those of this network.
        """
        super().__init__()
        self.net = net
        stages = vgg16_stages() if net == "vgg16" else _alexnet_stages()
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        widths = [convolutions(stage)[-1].out_channels for stage in self.stages]
        self.lin = nn.ParameterList(torch.empty(width) for width in widths)
        expected = _names(self)
        check_shapes(expected, tensors, f"LPIPS with {net}")
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(tensors[name])
        self.requires_grad_(requires_grad=False)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(
        self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]
    ) -> Float32[Tensor, " n"]:
        if a.shape != b.shape:
            raise ValueError(
                f"images are {tuple(a.shape)} and {tuple(b.shape)}; LPIPS takes two equal batches"
            )
        total = torch.zeros(len(a), device=a.device)
        # Side by side: both of a pair go through the same kernels.
        for unit, weights in zip(self._units(torch.cat([a, b])), self.lin, strict=True):
            first, second = unit.chunk(2)
            difference = (first - second).square().mean(dim=(2, 3))  # [n, k]
            total = total + difference @ weights
        return total

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n k"]:
        """Vectors whose squared distances are LPIPS, for a target that is met again and again."""
        parts = []
        for unit, weights in zip(self._units(images), self.lin, strict=True):
            scale = (weights.clamp(min=0) / (unit.shape[2] * unit.shape[3])).sqrt()
            parts.append((unit * scale[:, None, None]).flatten(1))
        return torch.cat(parts, dim=1)

    def _units(self, images: Float[Tensor, "n c h w"]) -> Iterator[Float[Tensor, "n k _ _"]]:
        """Features of each layer, of length 1 at every place."""
        least = LEAST_PX[self.net]
        if images.shape[1] not in (1, 3) or min(images.shape[2:]) < least:
            raise ValueError(
                f"images are {tuple(images.shape)}; LPIPS with {self.net} takes [n, 3 or 1, h, w] "
                f"with h and w of at least {least}"
            )
        x = images.float().expand(-1, 3, -1, -1) / (255 / 2) - 1
        x = (x - self.shift) / self.scale
        for stage in self.stages:
            x = stage(x)
            # The root has no derivative at 0, where all features are off.
            length = x.square().sum(dim=1, keepdim=True).clamp(min=1e-30).sqrt()
            yield x / (length + _EPS)


def vgg16_stages() -> list[list[nn.Module]]:
    """Layers up to each of the five that LPIPS looks at."""
    stages, i = [], 3
    for number, widths in enumerate(VGG16):
        stage: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
        for o in widths:
            stage += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
            i = o
        stages.append(stage)
    return stages


def _alexnet_stages() -> list[list[nn.Module]]:
    """The one-tower network (Krizhevsky 2014)."""
    convs = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3, padding=1),
    ]
    pooled = (1, 2)
    return [
        [*([nn.MaxPool2d(3, stride=2)] if number in pooled else []), conv, nn.ReLU()]
        for number, conv in enumerate(convs)
    ]


def from_flax(tree: Any) -> dict[str, Tensor]:
    """Names of Flax's `VGG16_0/Conv_i`, `NetLinLayer_i` to those used here.

    Raises:
        ValueError: It is no such tree.
    """
    try:
        (network,) = (name for name in tree if not name.startswith("NetLinLayer"))
        tensors = {}
        for number in range(len(tree[network])):
            layer = tree[network][f"Conv_{number}"]
            kernel = torch.as_tensor(layer["kernel"])  # [h w i o]
            tensors[f"conv{number}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            tensors[f"conv{number}.bias"] = torch.as_tensor(layer["bias"])
        for number in range(len(tree) - 1):
            kernel = torch.as_tensor(tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
            tensors[f"lin{number}"] = kernel.flatten()
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"these are no weights of LPIPS in Flax: {err!r}") from err
    return tensors


def from_torch(
    network: Mapping[str, Tensor], heads: Mapping[str, Tensor], *, net: Net
) -> dict[str, Tensor]:
    """Names of torchvision's network and of `lpips`' heads to those used here."""
    tensors = {}
    for number, theirs in enumerate(TORCHVISION[net]):
        for part in ("weight", "bias"):
            tensors[f"conv{number}.{part}"] = required(network, f"features.{theirs}.{part}")
    for number in range(len(heads)):
        tensors[f"lin{number}"] = required(heads, f"lin{number}.model.1.weight").flatten()
    return tensors


def convolutions(layers: nn.Module) -> list[nn.Conv2d]:
    """Convolutions in their order."""
    return [module for module in layers.modules() if isinstance(module, nn.Conv2d)]


def _names(network: LPIPS) -> dict[str, Tensor]:
    """Parameters of the network by the names used here."""
    named: dict[str, Tensor] = {}
    for number, conv in enumerate(convolutions(network.stages)):
        assert conv.bias is not None
        named |= {f"conv{number}.weight": conv.weight, f"conv{number}.bias": conv.bias}
    return named | {f"lin{number}": weights for number, weights in enumerate(network.lin)}
