"""StyleGAN2's networks as PyTorch pickled them; their images, and what is refused.

The expected images and logits are those of stylegan2-ada-pytorch on a CPU for these tensors.
"""

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan.data_pickle import ArchiveError
from stylegan.official import snapshot
from tests.official_pickles import EasyDict, Module, dumps, torch_fields


def read(thing: Any, name: snapshot.Name) -> snapshot.Imported:
    return snapshot.read(dumps(thing), name)


G_SHAPES = {
    "synthesis.b4.const": (6, 4, 4),
    "synthesis.b8.conv0.weight": (4, 6, 3, 3),
    "synthesis.b8.conv0.bias": (4,),
    "synthesis.b8.conv0.noise_strength": (),
    "synthesis.b8.conv0.noise_const": (8, 8),
    "synthesis.b8.conv0.affine.weight": (6, 4),
    "synthesis.b8.conv0.affine.bias": (6,),
    "mapping.fc0.weight": (5, 3),
    "mapping.fc0.bias": (5,),
    "mapping.fc1.weight": (4, 5),
    "mapping.fc1.bias": (4,),
    "mapping.w_avg": (4,),
} | {
    f"synthesis.b{side}.{layer}.{name}": shape
    for side, maps in ((4, 6), (8, 4))
    for layer, name, shape in [
        ("conv1", "weight", (maps, maps, 3, 3)),
        ("conv1", "bias", (maps,)),
        ("conv1", "noise_strength", ()),
        ("conv1", "noise_const", (side, side)),
        ("conv1", "affine.weight", (maps, 4)),
        ("conv1", "affine.bias", (maps,)),
        ("torgb", "weight", (3, maps, 1, 1)),
        ("torgb", "bias", (3,)),
        ("torgb", "affine.weight", (maps, 4)),
        ("torgb", "affine.bias", (maps,)),
    ]
}
D_SHAPES = {
    "b8.fromrgb.weight": (4, 3, 1, 1),
    "b8.fromrgb.bias": (4,),
    "b8.conv0.weight": (4, 4, 3, 3),
    "b8.conv0.bias": (4,),
    "b8.conv1.weight": (6, 4, 3, 3),
    "b8.conv1.bias": (6,),
    "b8.skip.weight": (6, 4, 1, 1),
    "b4.conv.weight": (6, 7, 3, 3),
    "b4.conv.bias": (6,),
    "b4.fc.weight": (6, 96),
    "b4.fc.bias": (6,),
    "b4.out.weight": (1, 6),
    "b4.out.bias": (1,),
}
BUFFERS = ("w_avg", "noise_const", "resample_filter")
G_SIZES = {"channel_base": 32, "channel_max": 6}
G_MAPPING = {"num_layers": 2, "layer_features": 5}
IMAGES = [
    [[0.7884, 3.5555034, 2.3516302, 3.2373469], [2.4902339, -1.7698174, 1.7139806, -1.8328449]],
    [
        [-2.9069588, -5.7540789, -8.4044123, -8.6615572],
        [0.80486155, 3.2524915, 2.6141975, 2.9786735],
    ],
    [
        [-0.45590878, -3.1351047, -3.010683, -4.8432579],
        [0.06542188, -3.781615, -3.2471955, -3.317037],
    ],
]
LOGITS = [0.21599394, 0.27938956, 0.31284148, 0.20684522]


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    scale = 100 if "fc" in name and "mapping" in name else 1
    return torch.from_numpy(np.asarray(values, dtype=np.float32)) * scale


def torch_module(class_name: str, shapes: dict[str, Any], arguments: Any, **fields: Any) -> Module:
    tensors = {name: drawn(name, shape) for name, shape in shapes.items()}
    tensors = {n: t.requires_grad_(not n.endswith(BUFFERS)) for n, t in tensors.items()}
    sizes = {"c_dim": 0, "img_resolution": 8, "img_channels": 3}
    arguments = EasyDict({**sizes, **arguments})
    fields = {**sizes, "_init_args": (), "_init_kwargs": arguments, **fields}
    return Module(class_name, torch_fields(tensors, **fields), "raise SystemExit")


def torch_G(shapes: Any = G_SHAPES, arguments: Any = None, **fields: Any) -> Module:
    arguments = arguments or {"synthesis_kwargs": G_SIZES, "mapping_kwargs": EasyDict(G_MAPPING)}
    return torch_module("Generator", shapes, arguments, z_dim=3, w_dim=4, **fields)


def torch_D(shapes: Any = D_SHAPES, epilogue: Any = None, **arguments: Any) -> Module:
    epilogue = {"mbstd_group_size": 2} if epilogue is None else epilogue
    arguments = {**G_SIZES, "epilogue_kwargs": epilogue, **arguments}
    return torch_module("Discriminator", shapes, arguments)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("flat", [False, True], ids=["stylegan2-ada", "stylegan3"])
def test_a_generator_of_pytorch_gives_its_own_images(protocol: int, flat: bool):
    filters = {"synthesis.b8.resample_filter": (4, 4), "synthesis.b8.conv0.resample_filter": (4, 4)}
    arguments = {**G_SIZES, "conv_clamp": None, "num_fp16_res": 4}
    arguments = arguments if flat else {"synthesis_kwargs": EasyDict(arguments)}
    module = torch_G({**G_SHAPES, **filters}, {**arguments, "mapping_kwargs": G_MAPPING})
    tree = {"G": None, "D": None, "G_ema": module, "augment_pipe": None}

    found = snapshot.read(dumps(tree, protocol=protocol), "Gs")

    Gs = found.network.eval()
    with torch.no_grad():
        ws = Gs.broadcast(Gs.mapping(drawn("z", (2, 3))))
        images = Gs.synthesis(Gs.truncate(ws, psi=0.5, cutoff=ws.shape[1]))
    expected = torch.tensor(IMAGES).reshape(2, 3, 2, 2)
    torch.testing.assert_close(images[:, :, ::5, ::5], expected, atol=2e-5, rtol=0)
    assert found.notes == []


def test_a_discriminator_of_pytorch_gives_its_own_logits():
    found = read({"D": torch_D(block_kwargs={"freeze_layers": 1}, cmap_dim=None)}, "D")

    with torch.no_grad():
        logits = found.network(drawn("x", (4, 3, 8, 8)))
    torch.testing.assert_close(logits[:, 0], torch.tensor(LOGITS), atol=1e-6, rtol=1e-5)


def test_what_a_clamp_would_change_is_noted():
    fields = {"conv_clamp": 256}
    module = torch_G()
    module.meta["state"]["_modules"]["synthesis"].meta["state"].update(fields)

    assert read({"G": module}, "G").notes == [
        "activations beyond 256 are not clamped to it as officially"
    ]


def with_synthesis(**options: Any) -> Module:
    with_mapping = {"mapping_kwargs": G_MAPPING}
    return torch_G(arguments={**with_mapping, "synthesis_kwargs": {**G_SIZES, **options}})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (torch_G({"synthesis.L0_36_16.weight": (2, 2)}), "alias-free networks of StyleGAN3 do not"),
        (torch_module("TriPlaneGenerator", G_SHAPES, {}), "file's TriPlaneGenerator with"),
        (torch_G(c_dim=10), "c_dim=10, labels that the PyTorch code embeds"),
        (torch_G(_init_args=(3, 0)), r"arguments without names, \(3, 0\)"),
        (torch_G(_init_kwargs=None), "_init_kwargs of a Generator is NoneType"),
        (torch_G(_modules=[]), "_modules of a Generator is list"),
        (torch_G(_modules={"synthesis": 4}), "module synthesis is int"),
        (torch_G(_modules={"x" * 101: None}), "_modules of a module has the name 'xxxx"),
        (torch_G(_modules={3: None}), "_modules of a module has the name 3"),
        (Module(("Generator",), torch_fields({})), "a module's class is tuple, not a name"),
        (with_synthesis(channel_base="wide"), "no network of the official code"),
        (with_synthesis(channel_base=2**70, channel_max=2**62), "one, which cannot be made"),
        (with_synthesis(use_noise=False), "option use_noise=False, but stylegan2 has only use_n"),
        (with_synthesis(margin_size=10), "option margin_size=10, but stylegan2 has no such"),
        (with_synthesis(activation="elu"), "has the activation 'elu'"),
        (with_synthesis(architecture="orig"), "synthesis.b4.torgb.affine.bias has no place, "),
        (with_synthesis(channel_max=5), r"b4.const is \[1, 6, 4, 4\] instead of \[1, 5, 4, 4\]"),
        (torch_G(arguments={"synthesis_kwargs": 3}), "arguments of a module are int"),
        (torch_G(arguments={"synthesis_kwargs": {3: 3}}), "an argument of a module is a int"),
        (torch_D(epilogue={"mbstd_group_size": None}), "option mbstd_group_size=None"),
        (torch_D(epilogue={"activation": "relu"}), "one activation in its blocks and another"),
    ],
)
def test_modules_that_networks_here_cannot_be_are_refused(module: Module, message: str):
    key = "D" if module.meta["class_name"] == "Discriminator" else "G"
    with pytest.raises(ValueError, match=message):
        read({key: module}, key)


def test_modules_that_contain_themselves_are_refused():
    module = torch_G()
    module.meta["state"]["_modules"]["again"] = module
    with pytest.raises(ArchiveError, match=r"stands in two places|damaged pickle"):
        read({"G": module}, "G")


def test_modules_that_stand_in_many_places_are_not_walked_in_each():
    """8 levels of 100 times the same: 10^16 paths in a few kilobytes."""
    module = Module("Part", torch_fields({}))
    for _ in range(8):
        module = Module("Part", torch_fields({}, _modules={f"m{i}": module for i in range(100)}))
    with pytest.raises(ArchiveError, match="stands in two places"):
        read({"G": module}, "G")
