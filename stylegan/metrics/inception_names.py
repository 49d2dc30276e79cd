"""Weights of Inception-v3 of 2015-12-05 under the names of others, to those of `InceptionV3`.

Legend: n images, c classes, d features.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from stylegan.metrics.weights_reader import required


def from_torchscript(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the network's TorchScript edition (`layers.<name>`) to those used here."""
    names = {name: name.removeprefix("net.").removeprefix("layers.") for name in tensors}
    return {ours: tensors[name] for name, ours in names.items() if not ours.startswith("output.")}


def from_torch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the state dict pt_inception-2015-12-05 to those used here.

    Its batch normalization has a gamma, by which weights and means are multiplied instead.

    Raises:
        ValueError: A tensor is missing.
    """
    ours = {}
    for theirs, name in _torch_names():
        gamma = required(tensors, f"{theirs}.bn.weight")
        weight = required(tensors, f"{theirs}.conv.weight")
        ours[f"{name}.weight"] = weight * gamma[:, None, None, None]
        ours[f"{name}.beta"] = required(tensors, f"{theirs}.bn.bias")
        ours[f"{name}.mean"] = required(tensors, f"{theirs}.bn.running_mean") * gamma
        ours[f"{name}.var"] = required(tensors, f"{theirs}.bn.running_var")
    return ours


def from_modules(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a pickled module, which are those of either of the above, below some prefix."""
    for first, convert in (("Conv2d_1a_3x3.", from_torch), ("layers.conv.", from_torchscript)):
        prefixes = {name.partition(first)[0] for name in tensors if first in name}
        if prefixes:
            prefix = min(prefixes, key=len)
            return convert({name.removeprefix(prefix): t for name, t in tensors.items()})
    raise ValueError(
        f"the module with {', '.join(list(tensors)[:2])} ... has neither Inception's names of "
        f"torchvision nor those of its TorchScript edition"
    )


def from_tensorflow(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and layouts of the TF graph (`mixed_4/tower/conv/conv2d_params`) to those used here."""
    parts = {
        "conv2d_params": "weight",
        "weight": "weight",
        "batchnorm/beta": "beta",
        "beta": "beta",
        "batchnorm/moving_mean": "mean",
        "mean": "mean",
        "batchnorm/moving_variance": "var",
        "var": "var",
    }
    ours = {}
    for name, value in variables.items():
        found = re.fullmatch(rf"(.*\bconv(?:_\d+)?)/({'|'.join(parts)})", name)
        if found:
            block, slash, layer = found[1].partition("/")
            # The towers of the last two blocks fork, so their layers have no order of their own.
            layer = layer.replace("/", "_" if block in ("mixed_9", "mixed_10") else ".")
            part = parts[found[2]]
            tensor = value.permute(3, 2, 0, 1).contiguous() if part == "weight" else value
            ours[f"{block}{'.' if slash else ''}{layer}.{part}"] = tensor
    return ours


LOGITS = ("fc.weight", "output.weight", "softmax/weights", "output/weight")
"""Where files keep the weights of the classes."""
CLASSES = 1008
_FEATURES = 2048


def logit_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`logits` [1008, 2048] of a file in any of these forms.

    Raises:
        ValueError: It has features alone.
    """
    for name, weights in tensors.items():
        if name.endswith(LOGITS) and weights.numel() == CLASSES * _FEATURES:
            return {"logits": weights if len(weights) == CLASSES else weights.T.contiguous()}
    raise ValueError(f"the file has no logits of {CLASSES} classes; it gives features alone")


def _torch_names() -> Iterator[tuple[str, str]]:
    """Names of each convolution in torchvision's style and in that of the TF graph."""
    for number, theirs in enumerate(("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")):
        yield f"Conv2d_{theirs}", f"conv_{number}" if number else "conv"
    blocks = {
        _BRANCHES_35: ("5b", "5c", "5d"),
        _BRANCHES_TO_17: ("6a",),
        _BRANCHES_17: ("6b", "6c", "6d", "6e"),
        _BRANCHES_TO_8: ("7a",),
    }
    number = 0
    for branches, names in blocks.items():
        for theirs in names:
            block = f"mixed_{number}" if number else "mixed"
            for branch, tower, convs in branches:
                for i in range(max(convs, 1)):
                    conv = f"conv_{i}" if i else "conv"
                    ours = f"{tower}.{conv}" if tower else conv
                    yield (
                        f"Mixed_{theirs}.{branch}{f'_{i + 1}' if convs else ''}",
                        f"{block}.{ours}",
                    )
            number += 1
    for theirs in ("7b", "7c"):
        for branch, ours in _BRANCHES_8.items():
            yield f"Mixed_{theirs}.{branch}", f"mixed_{number}.{ours}"
        number += 1


# Branch, tower, and convolutions in a row (0: one, without a number).
_BRANCHES_35 = (
    ("branch1x1", "", 0),
    ("branch5x5", "tower", 2),
    ("branch3x3dbl", "tower_1", 3),
    ("branch_pool", "tower_2", 0),
)
_BRANCHES_TO_17 = (("branch3x3", "", 0), ("branch3x3dbl", "tower", 3))
_BRANCHES_17 = (
    ("branch1x1", "", 0),
    ("branch7x7", "tower", 3),
    ("branch7x7dbl", "tower_1", 5),
    ("branch_pool", "tower_2", 0),
)
_BRANCHES_TO_8 = (("branch3x3", "tower", 2), ("branch7x7x3", "tower_1", 4))
_BRANCHES_8 = {
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}
