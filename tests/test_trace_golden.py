"""Every intermediate activation of StyleGAN's networks against the official ones (golden set A2).

Hooks give what our modules take and return. Steps between are computed from what a module took,
with the functions that it is made of, and its own result with theirs.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from stylegan.layers import Conv, DownConv, Linear, UpConv, activate, instance_norm, pixel_norm
from stylegan.networks.stylegan import Discriminator, Epilogue, Generator
from stylegan.resample import blocky_up, box_down
from tests import goldens, official_names

Steps = Iterator[tuple[str, Tensor]]
"""Official names of operations and what they give."""

TOLERANCE = 2e-5


@torch.no_grad()
@pytest.mark.parametrize("name", goldens.sets("A2_*"))
def test_golden_trace_of_every_operation(name: str):
    golden, kwargs = goldens.arrays(name), goldens.entry(name)["static_kwargs"]
    G = official_names.generator(kwargs["G"], goldens.under(golden, "G/"))
    D = official_names.discriminator(kwargs["D"], goldens.under(golden, "D/"))
    z = torch.from_numpy(golden["in/z"])
    images = torch.from_numpy(goldens.network_images(golden["in/d_images_u8"]))
    seen = {
        key if "#" in key else f"{key}#0": activation
        for key, activation in [*traced_in_G(G, z), *traced_in_D(D, images)]
    }

    goldens.assert_close(G(z), golden["out/img"], TOLERANCE, "images")
    goldens.assert_close(D(images), golden["out/d_scores"], TOLERANCE, "scores")
    trace = {item["key"].split("|", 1)[1]: item for item in goldens.entry(name)["trace"]}
    stored = goldens.under(golden, "trace/")
    assert {key.split("|", 1)[1] for key in stored} == trace.keys()
    assert seen.keys() == trace.keys()
    for key, item in trace.items():
        actual = seen[key]
        assert list(actual.shape) == item["full_shape"], key
        scale = item["rms"]
        assert float(actual.mean()) == pytest.approx(item["mean"], abs=TOLERANCE * scale), key
        assert float(actual.square().mean().sqrt()) == pytest.approx(scale, rel=TOLERANCE), key
        if item["stored"] != "full":
            assert item["stored"] == "first sample, first 8 channels, top-left 8x8"
            actual = actual[:1, :8, :8, :8]
        goldens.assert_close(actual, golden[item["key"]], TOLERANCE, key)


def traced_in_G(G: Generator, z: Tensor) -> Steps:
    calls = Calls(G)
    G(z)
    yield "map/pixel_norm", pixel_norm(z)
    for number, layer in enumerate(G.mapping):
        yield from scoped(f"map/Dense{number}", dense_steps(layer, calls))
        yield f"map/Dense{number}/leaky_relu", activate(calls.output(layer), "leaky_relu")

    enlarged: Tensor | None = None
    for number, (side, block) in enumerate(G.synthesis.blocks.items()):
        first, second = ("Const", "Conv") if number == 0 else ("Conv0_up", "Conv1")
        scope = f"syn/{side}x{side}"
        if number:
            yield from scoped(f"{scope}/{first}", conv_steps(block.conv0, calls))
            yield f"{scope}/{first}/blur2d", calls.inputs(block.epilogue0)[0]
        yield from scoped(f"{scope}/{first}", epilogue_steps(block.epilogue0, calls))
        yield from scoped(f"{scope}/{second}", conv_steps(block.conv1, calls))
        yield from scoped(f"{scope}/{second}", epilogue_steps(block.epilogue1, calls))

        # The official graph has the images of every level, of which ours shows the last.
        to_rgb = G.synthesis.to_rgb[side]
        rgb = to_rgb(calls.output(block))
        if enlarged is not None:
            yield f"syn/upscale2d#{number - 1}", enlarged
        lod = len(G.synthesis.blocks) - 1 - number
        yield from scoped(f"syn/ToRGB_lod{lod}", conv_steps(to_rgb, calls))
        enlarged = blocky_up(rgb)


def traced_in_D(D: Discriminator, images: Tensor) -> Steps:
    calls = Calls(D)
    D(images)
    for lod, side in enumerate(reversed(D.from_rgb.keys())):
        from_rgb = D.from_rgb[side]
        if lod:  # evaluated by the official graph alone
            smaller = box_down(images, 2**lod)
            yield f"D/downscale2d#{lod - 1}", smaller
            from_rgb(smaller)
        yield from scoped(f"D/FromRGB_lod{lod}", activated_steps(from_rgb, calls))
        if side in D.blocks:
            block = D.blocks[side]
            yield from scoped(f"D/{side}x{side}/Conv0", activated_steps(block.conv0, calls))
            scope = f"D/{side}x{side}/Conv1_down"
            yield f"{scope}/blur2d", calls.inputs(block.conv1)[0]
            yield from scoped(scope, activated_steps(block.conv1, calls))

    yield "D/4x4/minibatch_stddev_layer", calls.inputs(D.tail.conv)[0]
    yield from scoped("D/4x4/Conv", activated_steps(D.tail.conv, calls))
    yield from scoped("D/4x4/Dense0", dense_steps(D.tail.dense0, calls))
    yield "D/4x4/Dense0/leaky_relu", activate(calls.output(D.tail.dense0), "leaky_relu")
    yield from scoped("D/4x4/Dense1", dense_steps(D.tail.dense1, calls))


class Calls:
    """What each module below another took and returned when it was last called."""

    def __init__(self, network: nn.Module) -> None:
        self._of: dict[nn.Module, tuple[tuple[Any, ...], Tensor]] = {}
        for module in network.modules():
            module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._of[module] = inputs, output

    def inputs(self, module: nn.Module) -> tuple[Any, ...]:
        return self._of[module][0]

    def output(self, module: nn.Module) -> Tensor:
        return self._of[module][1]


def scoped(scope: str, steps: Steps) -> Steps:
    return ((f"{scope}/{op}", activation) for op, activation in steps)


def dense_steps(layer: Linear, calls: Calls) -> Steps:
    yield "dense", linear(calls.inputs(layer)[0], layer.scaled_weight())
    yield "apply_bias", calls.output(layer)


def conv_steps(layer: Conv | UpConv | DownConv, calls: Calls) -> Steps:
    """Ours resamples and convolves in one step, the official code in two."""
    (x,) = calls.inputs(layer)
    if isinstance(layer, UpConv):
        x = blocky_up(x)
        yield "upscale2d", x
    weight = layer.scaled_weight()
    convolved = conv2d(x, weight, padding=weight.shape[-1] // 2)
    yield "conv2d", convolved
    if isinstance(layer, UpConv):
        yield "upscale2d_conv2d", calls.output(layer)
    if isinstance(layer, DownConv):
        yield "downscale2d", box_down(convolved)
        assert layer.bias is not None
        yield "conv2d_downscale2d", calls.output(layer) - layer.bias[:, None, None]
    if layer.bias is not None:
        yield "apply_bias", calls.output(layer)


def activated_steps(layer: Conv | DownConv, calls: Calls) -> Steps:
    yield from conv_steps(layer, calls)
    yield "leaky_relu", activate(calls.output(layer), "leaky_relu")


def epilogue_steps(epilogue: Epilogue, calls: Calls) -> Steps:
    x, _, noise = calls.inputs(epilogue)
    assert epilogue.noise_strength is not None
    x = x + noise * epilogue.noise_strength[:, None, None]
    yield "apply_noise", x
    x = x + epilogue.bias[:, None, None]
    yield "apply_bias", x
    x = activate(x, "leaky_relu")
    yield "leaky_relu", x
    yield "instance_norm", instance_norm(x)
    yield from scoped("StyleMod", dense_steps(epilogue.style, calls))
    yield "style_mod", calls.output(epilogue)
