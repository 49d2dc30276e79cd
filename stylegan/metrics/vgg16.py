"""VGG16 up to its second dense layer, for precision and recall (Kynkäänniemi et al. 2019, Sec. 2).

    network = VGG16(tensors)  # torchvision's, by `from_torchvision`
    features = network(images)  # uint8 [n, 3, h, w] -> [n, 4096]

Images are resized to 224 px as TF 1 does and normalized as torchvision's weights expect; this is
the convention of torch-fidelity's `fc2_relu`.

Legend: n images, c h w.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from stylegan.metrics.inception_input import resize_tf1
from stylegan.metrics.lpips import TORCHVISION, convolutions, vgg16_stages
from stylegan.metrics.weights_reader import check_shapes, required

SIDE = 224
"""Width and height the network sees, in pixels."""
FEATURES = 4096
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the three colours of images in [0, 1]."""
_LAST_MAPS, _LAST_SIDE = 512, 7


class VGG16(nn.Module):
    """uint8 images of any size to the 4096 features behind the second dense layer's ReLU."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, tensors: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Build from `conv0.weight ... conv12.bias fc1.weight ... fc2.bias`.

        Raises:
            ValueError: They are not those of VGG16.
        """
        super().__init__()
        self.dtype = dtype
        layers = [layer for stage in vgg16_stages() for layer in stage]
        self.convs = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.fc1 = nn.Linear(_LAST_MAPS * _LAST_SIDE**2, FEATURES)
        self.fc2 = nn.Linear(FEATURES, FEATURES)
        expected = {
            f"{layer}.{part}": getattr(module, part)
            for layer, module in [
                *((f"conv{i}", conv) for i, conv in enumerate(convolutions(self.convs))),
                ("fc1", self.fc1),
                ("fc2", self.fc2),
            ]
            for part in ("weight", "bias")
        }
        check_shapes(expected, tensors, "VGG16")
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(tensors[name])
        self.requires_grad_(requires_grad=False).to(dtype)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    @torch.inference_mode()
    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n 4096"]:
        x = resize_tf1(images.float(), SIDE).expand(-1, 3, -1, -1)
        x = self.convs(((x - self.mean) / self.std).to(self.dtype))
        x = self.fc1(x.flatten(1)).relu()
        features: Tensor = self.fc2(x).relu().float()
        return features


def from_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of torchvision's state to those used here; the classes are left out."""
    named = {f"conv{i}": f"features.{theirs}" for i, theirs in enumerate(TORCHVISION["vgg16"])}
    named |= {"fc1": "classifier.0", "fc2": "classifier.3"}
    return {
        f"{ours}.{part}": required(tensors, f"{theirs}.{part}")
        for ours, theirs in named.items()
        for part in ("weight", "bias")
    }
