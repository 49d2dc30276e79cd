"""Properties of StyleGAN2's networks that golden numbers do not show."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from stylegan.networks import family
from stylegan.networks.stylegan2 import (
    Architecture,
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.resample import blocky_up, box_down

ARCHITECTURES = get_args(Architecture)
LODS = [0.0, 0.25, 1.0, 1.5, 2.0]
LODS_OF = [(name, lod) for name in ARCHITECTURES for lod in LODS if name == "growing" or not lod]


def tiny_G(seed: int = 0, **switches) -> Generator:
    sizes = {"resolution": 16, "z_size": 8, "w_size": 8, "mapping_width": 8, "fmap_max": 8}
    G = Generator(GeneratorConfig(**sizes | {"mapping_layers": 2} | switches), seed=seed)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    return G


def tiny_D(seed: int = 0, **switches) -> Discriminator:
    sizes = {"resolution": 16, "fmap_max": 8}
    return Discriminator(DiscriminatorConfig(**sizes | switches), seed=seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_gradient(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.grad is not None}


def active(network: Generator | Discriminator, lod: float) -> set[str]:
    ids = {id(p) for p in network.active_parameters(lod)}
    return {name for name, p in network.named_parameters() if id(p) in ids}


def path_lengths(synthesis: Callable[[Tensor], Tensor], ws: Tensor) -> Tensor:
    """Squared ones, differentiable; the image noise is a fixed pattern."""
    ws = ws.detach().requires_grad_()
    images = synthesis(ws)
    (gradient,) = torch.autograd.grad((images * normal(*images.shape)).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initial_weights_are_a_function_of_config_and_seed_alone(architecture: Architecture):
    for make in (tiny_G, tiny_D):
        torch.manual_seed(1)
        first = make(seed=3, architecture=architecture).state_dict()
        torch.manual_seed(2)
        second = make(seed=3, architecture=architecture).state_dict()
        other = make(seed=4, architecture=architecture).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("architecture", "lod"), LODS_OF)
def test_gradients_reach_exactly_the_active_parameters(architecture: Architecture, lod: float):
    G, D = tiny_G(architecture=architecture), tiny_D(architecture=architecture)

    images = G(normal(4, 8), lod=lod)
    logits = D(images, None, lod)
    logits.sum().backward()

    assert images.shape == (4, 3, 16 >> int(lod), 16 >> int(lod))
    assert logits.shape == (4, 1)
    assert with_gradient(G) == active(G, lod)
    assert with_gradient(D) == active(D, lod)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_that_do_not_grow_use_all_they_have(architecture: Architecture):
    for network in (tiny_G(architecture=architecture), tiny_D(architecture=architecture)):
        every = {name for name, _ in network.named_parameters()}
        if network.config.grows:
            assert active(network, 0.0) < every
        else:
            assert active(network, 0.0) == every


@pytest.mark.parametrize(
    ("architecture", "sides"),
    [
        ("skip", ["4", "8", "16"]),
        ("residual", ["16"]),
        ("plain", ["16"]),
        ("growing", ["4", "8", "16"]),
    ],
)
def test_rgb_heads_stand_where_images_are_joined(architecture: Architecture, sides: list[str]):
    assert list(tiny_G(architecture=architecture).synthesis.to_rgb) == sides
    assert list(tiny_D(architecture=architecture).from_rgb) == sides


def test_a_fade_is_continuous_at_both_ends():
    G, D = tiny_G(architecture="growing"), tiny_D(architecture="growing")
    z, images = normal(4, 8), normal(4, 3, 16, 16, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(G(z, lod=1e-6), G(z, lod=0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(G(z, lod=1 - 1e-6), blocky_up(G(z, lod=1.0)), atol=1e-4, rtol=0)
        torch.testing.assert_close(D(images, None, 1e-6), D(images), atol=1e-4, rtol=0)
        coarse = D(box_down(images), None, 1.0)
        torch.testing.assert_close(D(images, None, 1 - 1e-6), coarse, atol=1e-4, rtol=0)


def test_the_skip_generator_sums_the_images_of_all_sizes():
    """Where features show nothing, that are the biases of the heads."""
    G = tiny_G(architecture="skip")
    with torch.no_grad():
        for bias, head in enumerate(G.synthesis.to_rgb.values(), start=1):
            head.weight.zero_()
            head.bias.fill_(10.0**bias)
        images = G(normal(2, 8))

    torch.testing.assert_close(images[..., 6:-6, 6:-6], torch.full((2, 3, 4, 4), 1110.0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_depend_on_their_own_latents_alone(architecture: Architecture):
    G, z = tiny_G(architecture=architecture), normal(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(G(z)[1:2], G(z[1:2]), rtol=1e-5, atol=1e-5)


def test_each_row_of_ws_and_each_noise_map_counts_and_those_beyond_the_level_do_not():
    G = tiny_G(architecture="growing")
    ws = normal(2, G.layers(), 8)
    noise = [normal(2, 1, side, side, seed=side) for side in G.noise_sides()]
    assert G.noise_sides() == (4, 8, 8, 16, 16)
    assert [G.layers(lod) for lod in (2.0, 1.5, 1.0, 0.0)] == [2, 4, 4, 6]
    assert [len(G.noise_sides(lod)) for lod in (2.0, 1.0, 0.0)] == [1, 3, 5]
    with torch.no_grad():
        for lod in LODS:
            images = G.synthesis(ws, noise=noise, lod=lod)
            layers, maps = G.layers(lod), len(G.noise_sides(lod))
            assert torch.equal(G.synthesis(ws[:, :layers], noise=noise[:maps], lod=lod), images)
        images = G.synthesis(ws, noise=noise)
        for row in range(G.layers()):
            changed = ws.clone()
            changed[:, row] += 1
            assert not torch.equal(G.synthesis(changed, noise=noise), images)
        for layer in range(len(noise)):
            other = [maps + (index == layer) for index, maps in enumerate(noise)]
            assert not torch.equal(G.synthesis(ws, noise=other), images)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_channels_last_changes_the_layout_and_nothing_else(architecture: Architecture):
    G, D = tiny_G(architecture=architecture), tiny_D(architecture=architecture)
    z, reals = normal(4, 8), normal(4, 3, 16, 16)
    with torch.no_grad():
        images, logits = G(z), D(reals)
        G.to(memory_format=torch.channels_last)
        D.to(memory_format=torch.channels_last)
        torch.testing.assert_close(G(z), images, rtol=1e-5, atol=1e-5)
        reals = reals.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(D(reals), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_double_precision_goes_all_the_way_through(architecture: Architecture):
    G, D, z = tiny_G(architecture=architecture), tiny_D(architecture=architecture), normal(4, 8)
    with torch.no_grad():
        images = G(z)
        exact = G.double()(z.double())
        logits = D.double()(exact)

    assert exact.dtype == logits.dtype == torch.float64
    torch.testing.assert_close(images.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_trains_with_penalties_however_large_weights_and_styles_are(
    architecture: Architecture, dtype: torch.dtype
):
    """Demodulation must not overflow on its way; float16 ends at 65504."""
    G, D = tiny_G(architecture=architecture), tiny_D(architecture=architecture)
    with torch.no_grad():
        for name, parameter in G.synthesis.named_parameters():
            if "conv" in name and name.endswith(("conv0.weight", "conv1.weight", "style.bias")):
                parameter.fill_(3e4) if "style" in name else parameter.mul_(1e4)
    ws = G.broadcast(G.mapping(normal(4, 8))).detach()
    expected = G.synthesis(ws).detach()

    with torch.autocast("cpu", dtype=dtype):
        images = G.synthesis(ws)
        shown = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(D(shown).sum(), shown, create_graph=True)
        penalty = gradient.square().sum() + path_lengths(G.synthesis, ws).sum()
        loss = D(images).sum() + penalty
    loss.backward()

    # The images are summed in float32.
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    for network in (G.synthesis, D):
        for name in with_gradient(network):
            assert network.get_parameter(name).grad.isfinite().all(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_path_lengths_have_the_gradient_of_finite_differences(architecture: Architecture):
    G = tiny_G(architecture=architecture, resolution=8, fmap_max=3).double()
    ws = normal(1, G.layers(), 8, dtype=torch.float64)
    parameters = dict(G.synthesis.named_parameters())
    directions = {
        name: normal(*p.shape, seed=seed, dtype=p.dtype)
        for seed, (name, p) in enumerate(parameters.items())
    }

    def length(step: float) -> Tensor:
        moved = {name: p + step * directions[name] for name, p in parameters.items()}
        return path_lengths(lambda ws: functional_call(G.synthesis, moved, (ws,)), ws).sum()

    length(0.0).backward()
    slope = sum((p.grad * directions[n]).sum() for n, p in parameters.items() if p.grad is not None)
    step = 1e-6
    expected = (length(step) - length(-step)).detach() / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-8)


def test_the_defaults_are_those_of_configuration_f():
    G, D = GeneratorConfig(resolution=1024), DiscriminatorConfig(resolution=1024)

    assert (G.architecture, D.architecture) == ("skip", "residual")
    assert G.fmap_base == D.fmap_base == 16384
    assert G.fir == D.fir == (1, 3, 3, 1)
    assert G.fmaps(1024) == D.fmaps(1024) == 32


def test_networks_are_built_by_kind():
    config = family.generator_config({"kind": "stylegan2", "resolution": 8, "fmap_max": 4})

    assert isinstance(family.generator(config), Generator)
    D = DiscriminatorConfig(resolution=8, fmap_max=4)
    assert isinstance(family.discriminator(D), Discriminator)


@pytest.mark.parametrize("architecture", ["skip", "residual", "plain"])
def test_networks_that_do_not_grow_refuse_a_lod(architecture: Architecture):
    G, D = tiny_G(architecture=architecture), tiny_D(architecture=architecture)
    with pytest.raises(ValueError, match=r"lod is 1\.0, but G does not grow; choose lod 0"):
        G(normal(2, 8), lod=1.0)
    with pytest.raises(ValueError, match=r"lod is 1\.0, but D does not grow; choose lod 0"):
        D(normal(2, 3, 8, 8), None, 1.0)


def test_networks_made_for_labels_refuse_to_go_without():
    with pytest.raises(ValueError, match=r"G was made for labels of 3 components and got none"):
        tiny_G(label_size=3)(normal(2, 8))
    with pytest.raises(ValueError, match=r"D was made for labels of 3 components and got none"):
        tiny_D(label_size=3)(normal(2, 3, 16, 16))


def test_D_refuses_images_of_another_level():
    with pytest.raises(ValueError, match=r"takes \[n, 3, 8, 8\]"):
        tiny_D(architecture="growing")(normal(4, 3, 16, 16), None, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_G(fir=[1]), r"G\.fir is \[1\]; it must be 2 taps or more, symmetric"),
        (lambda: tiny_D(fir=[1, 2, 3]), r"D\.fir is \[1, 2, 3\]; it must be 2 taps or more, symm"),
        (lambda: tiny_D(fir=[1, -2, 1]), r"D\.fir is \[1, -2, 1\]; .* choose \[1, 3, 3, 1\]"),
        (lambda: tiny_D(mbstd_features=3), r"D\.mbstd_features is 3; it must divide the 8"),
        (lambda: tiny_G(w_size=0), r"G\.w_size is 0; choose 1 or more"),
    ],
)
def test_wrong_settings_are_refused_by_name(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_can_be_had_without_computing_anything(architecture: Architecture):
    """The meta device of a dry run has no autocast."""
    G, D = (
        tiny_G(architecture=architecture).to("meta"),
        tiny_D(architecture=architecture).to("meta"),
    )
    images = G(torch.zeros(4, 8, device="meta"))

    assert images.shape == (4, 3, 16, 16)
    assert D(images).shape == (4, 1)
