"""Inception-v3 of 2015-12-05 (Szegedy et al. 2016), the feature network of FID and KID.

    network = InceptionV3(tensors)  # of `inception_names`
    features = network(images)  # uint8 [n, 3, h, w] -> [n, 2048]

It is not the Inception-v3 of later libraries: average pools do not count the padding, the last
block takes a maximum where the one before takes an average, and images are resized as
`inception_input` says. Modules are called as in the TF graph (mixed_4/tower_1/conv_2). Batch
normalization is folded into the weights when they are loaded.

Legend: n images, c h w channels, height, width; d = 2048 features.
"""

from collections import OrderedDict

import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor, nn

from stylegan.metrics.inception_input import Convention, inception_input
from stylegan.metrics.weights_reader import check_shapes

FEATURES = 2048
"""Width of the last average pool."""
MIN_SIDE = 8
"""Smallest width and height accepted, in pixels."""
BATCH_NORM_EPS = 1e-3
"""Added to the variances; there is no gamma."""
BATCH_NORM = ("weight", "beta", "mean", "var")
"""What is stored for each convolution."""


class InceptionV3(nn.Module):
    """uint8 images of any size from 8 px to the 2048 features of the last average pool."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        convention: Convention = "official",
    ) -> None:
        """Build from `weight beta mean var` of 94 convolutions.

        Args:
            tensors: By name, as `stylegan.metrics.inception_names` gives them.
            dtype: Type of weights and activations; torch.bfloat16 takes half the time on processors
                that have it and moves features by 1-2 %. Resizing and the last mean are float32.
            convention: How images are resized and normalized.
        """
        super().__init__()
        self.dtype, self.convention = dtype, convention
        self.layers = _layers()
        _load(self.layers, fold_batch_norm(tensors), dtype)

    @torch.inference_mode()
    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n 2048"]:
        if images.shape[1] not in (1, 3) or min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"images are {tuple(images.shape)}, but Inception takes [n, 3 or 1, h, w] "
                f"with h and w of at least {MIN_SIDE}"
            )
        x = inception_input(images, self.convention)
        x = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        maps: Tensor = self.layers(x.expand(-1, 3, -1, -1))
        # [n, 2048, 8, 8] -> [n, 2048]; summed in float32 also where activations are narrower.
        return maps.float().mean(dim=(2, 3))


def probabilities(
    features: Float[Tensor, "n d"], logits: Float[Tensor, "k d"]
) -> Float64[Tensor, "n k"]:
    """p(y|x) of the k classes of the Inception score, whose logits have no bias."""
    return (features.double() @ logits.double().T).softmax(dim=1)


def fold_batch_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights and biases that do the work of convolution and batch normalization, in float64.

    (W * x - mean) / sqrt(var + eps) + beta = W' * x + b' with W' = W / sqrt(var + eps) and
    b' = beta - mean / sqrt(var + eps).
    """
    folded = {}
    for name in [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]:
        try:
            weight, beta, mean, var = (tensors[f"{name}.{part}"].double() for part in BATCH_NORM)
        except KeyError as err:
            raise ValueError(
                f"{err.args[0]} is missing; a convolution of Inception needs {BATCH_NORM}"
            ) from err
        scale = (var + BATCH_NORM_EPS).rsqrt()
        folded[f"{name}.weight"] = weight * scale.reshape(-1, 1, 1, 1)
        folded[f"{name}.bias"] = beta - mean * scale
    return folded


class Conv(nn.Conv2d):
    """Convolution and ReLU; `same` pads to the input's size at stride 1."""

    def __init__(
        self,
        in_maps: int,
        out_maps: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        same: bool = True,
    ) -> None:
        h, w = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (h // 2, w // 2) if same else (0, 0)
        super().__init__(in_maps, out_maps, (h, w), stride=stride, padding=padding)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k p q"]:
        return super().forward(x).relu_()


class Mixed(nn.Module):
    """Branches side by side, their maps stacked in order."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k p q"]:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


class MixedFork(nn.Module):
    """The 8x8 block, whose towers fork into 1x3 and 3x1 kernels; `pool` tells the two apart."""

    def __init__(self, maps: int, *, pool: nn.Module) -> None:
        super().__init__()
        self.conv = Conv(maps, 320, 1)
        self.tower_conv = Conv(maps, 384, 1)
        self.tower_mixed_conv = Conv(384, 384, (1, 3))
        self.tower_mixed_conv_1 = Conv(384, 384, (3, 1))
        self.tower_1_conv = Conv(maps, 448, 1)
        self.tower_1_conv_1 = Conv(448, 384, 3)
        self.tower_1_mixed_conv = Conv(384, 384, (1, 3))
        self.tower_1_mixed_conv_1 = Conv(384, 384, (3, 1))
        self.tower_2_pool = pool
        self.tower_2_conv = Conv(maps, 192, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2048 h w"]:
        a = self.tower_conv(x)
        b = self.tower_1_conv_1(self.tower_1_conv(x))
        maps = [
            self.conv(x),
            self.tower_mixed_conv(a),
            self.tower_mixed_conv_1(a),
            self.tower_1_mixed_conv(b),
            self.tower_1_mixed_conv_1(b),
            self.tower_2_conv(self.tower_2_pool(x)),
        ]
        return torch.cat(maps, dim=1)


def _layers() -> nn.Sequential:
    """The network from normalized images [n, 3, 299, 299] to [n, 2048, 8, 8]."""
    layers: list[tuple[str, nn.Module]] = [
        # 299 -> 35
        ("conv", Conv(3, 32, 3, stride=2, same=False)),
        ("conv_1", Conv(32, 32, 3, same=False)),
        ("conv_2", Conv(32, 64, 3)),
        ("pool", nn.MaxPool2d(3, stride=2)),
        ("conv_3", Conv(64, 80, 1)),
        ("conv_4", Conv(80, 192, 3, same=False)),
        ("pool_1", nn.MaxPool2d(3, stride=2)),
        # 35x35
        ("mixed", _mixed_35(192, pool_maps=32)),
        ("mixed_1", _mixed_35(256, pool_maps=64)),
        ("mixed_2", _mixed_35(288, pool_maps=64)),
        # 35 -> 17
        ("mixed_3", _down_17(288)),
        # 17x17
        ("mixed_4", _mixed_17(768, maps=128)),
        ("mixed_5", _mixed_17(768, maps=160)),
        ("mixed_6", _mixed_17(768, maps=160)),
        ("mixed_7", _mixed_17(768, maps=192)),
        # 17 -> 8
        ("mixed_8", _down_8(768)),
        # 8x8
        ("mixed_9", MixedFork(1280, pool=_average_pool())),
        ("mixed_10", MixedFork(2048, pool=nn.MaxPool2d(3, stride=1, padding=1))),
    ]
    return nn.Sequential(OrderedDict(layers))


def _mixed_35(in_maps: int, *, pool_maps: int) -> Mixed:
    return Mixed(
        conv=Conv(in_maps, 64, 1),
        tower=_tower(Conv(in_maps, 48, 1), Conv(48, 64, 5)),
        tower_1=_tower(Conv(in_maps, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3)),
        tower_2=_tower(_average_pool(), Conv(in_maps, pool_maps, 1)),
    )


def _down_17(in_maps: int) -> Mixed:
    return Mixed(
        conv=Conv(in_maps, 384, 3, stride=2, same=False),
        tower=_tower(Conv(in_maps, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3, stride=2, same=False)),
        pool=nn.MaxPool2d(3, stride=2),
    )


def _mixed_17(in_maps: int, *, maps: int) -> Mixed:
    return Mixed(
        conv=Conv(in_maps, 192, 1),
        tower=_tower(Conv(in_maps, maps, 1), Conv(maps, maps, (1, 7)), Conv(maps, 192, (7, 1))),
        tower_1=_tower(
            Conv(in_maps, maps, 1),
            Conv(maps, maps, (7, 1)),
            Conv(maps, maps, (1, 7)),
            Conv(maps, maps, (7, 1)),
            Conv(maps, 192, (1, 7)),
        ),
        tower_2=_tower(_average_pool(), Conv(in_maps, 192, 1)),
    )


def _down_8(in_maps: int) -> Mixed:
    return Mixed(
        tower=_tower(Conv(in_maps, 192, 1), Conv(192, 320, 3, stride=2, same=False)),
        tower_1=_tower(
            Conv(in_maps, 192, 1),
            Conv(192, 192, (1, 7)),
            Conv(192, 192, (7, 1)),
            Conv(192, 192, 3, stride=2, same=False),
        ),
        pool=nn.MaxPool2d(3, stride=2),
    )


def _tower(*layers: nn.Module) -> nn.Sequential:
    """Layers in a row; convolutions are called conv, conv_1, conv_2."""
    convs = 0
    named: list[tuple[str, nn.Module]] = []
    for layer in layers:
        if isinstance(layer, Conv):
            named.append((f"conv_{convs}" if convs else "conv", layer))
            convs += 1
        else:
            named.append(("pool", layer))
    return nn.Sequential(OrderedDict(named))


def _average_pool() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _load(layers: nn.Module, folded: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Put folded weights into the layers, which then are fixed and channels-last."""
    check_shapes(layers.state_dict(), folded, "Inception-v3 of 2015-12-05")
    layers.load_state_dict({name: value.float() for name, value in folded.items()})
    layers.requires_grad_(False).eval().to(dtype)
    for weight in layers.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
