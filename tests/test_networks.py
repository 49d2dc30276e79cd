"""Properties of StyleGAN's layers and networks that the golden numbers do not show."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d

from stylegan.layers import (
    Conv,
    DownConv,
    UpConv,
    append_minibatch_stddev,
    instance_norm,
    pixel_norm,
)
from stylegan.networks.stylegan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.resample import Blur, blocky_up, box_down

LODS = [0.0, 0.25, 1.0, 1.5, 2.0]


def tiny_G(seed: int = 0, **switches) -> Generator:
    sizes = {"resolution": 16, "z_size": 8, "w_size": 8, "mapping_width": 8, "fmap_max": 8}
    G = Generator(GeneratorConfig(**sizes | {"mapping_layers": 2} | switches), seed=seed)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    return G


def tiny_D(seed: int = 0, **switches) -> Discriminator:
    return Discriminator(DiscriminatorConfig(resolution=16, fmap_max=8, **switches), seed=seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_gradient(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.grad is not None}


def active(network: Generator | Discriminator, lod: float) -> set[str]:
    ids = {id(p) for p in network.active_parameters(lod)}
    return {name for name, p in network.named_parameters() if id(p) in ids}


def test_initial_weights_are_a_function_of_config_and_seed_alone():
    torch.manual_seed(1)
    first, D = tiny_G(seed=3).state_dict(), tiny_D(seed=3).state_dict()
    torch.manual_seed(2)
    torch.set_default_dtype(torch.float64)
    try:
        second = tiny_G(seed=3).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)

    assert all(torch.equal(first[name], second[name].to(first[name].dtype)) for name in first)
    assert all(torch.equal(D[name], value) for name, value in tiny_D(seed=3).state_dict().items())
    assert not torch.equal(first["mapping.0.weight"], tiny_G(seed=4).mapping[0].weight)


def test_images_have_the_native_size_of_their_level_and_D_takes_it():
    G, D = tiny_G(), tiny_D()
    for lod in LODS:
        images = G(normal(4, 8), lod=lod)
        assert images.shape == (4, 3, 16 >> int(lod), 16 >> int(lod))
        assert D(images, None, lod).shape == (4, 1)


@pytest.mark.parametrize("lod", LODS)
def test_gradients_reach_exactly_the_active_parameters(lod: float):
    """Blocks above the level and heads that are not shown take no part (quirks 14 and 23)."""
    G, D = tiny_G(), tiny_D()

    D(G(normal(4, 8), lod=lod), None, lod).sum().backward()

    assert with_gradient(G) == active(G, lod)
    assert with_gradient(D) == active(D, lod)


def test_a_fade_is_continuous_at_both_ends():
    G, D = tiny_G(), tiny_D()
    z, images = normal(4, 8), normal(4, 3, 16, 16, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(G(z, lod=1e-6), G(z, lod=0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(G(z, lod=1 - 1e-6), blocky_up(G(z, lod=1.0)), atol=1e-4, rtol=0)
        torch.testing.assert_close(D(images, None, 1e-6), D(images), atol=1e-4, rtol=0)
        coarse = D(box_down(images), None, 1.0)
        torch.testing.assert_close(D(images, None, 1 - 1e-6), coarse, atol=1e-4, rtol=0)


def test_channels_last_changes_the_layout_and_nothing_else():
    G, D, z = tiny_G(), tiny_D(), normal(4, 8)
    with torch.no_grad():
        images, logits = G(z, lod=0.5), D(normal(4, 3, 16, 16), None, 0.5)
        G.to(memory_format=torch.channels_last)
        D.to(memory_format=torch.channels_last)
        reals = normal(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(G(z, lod=0.5), images, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(D(reals, None, 0.5), logits, rtol=1e-5, atol=1e-5)


def test_double_precision_goes_all_the_way_through():
    G, D, z = tiny_G(), tiny_D(), normal(4, 8)
    with torch.no_grad():
        images = G(z, lod=0.5)
        exact = G.double()(z.double(), lod=0.5)
        logits = D.double()(exact, None, 0.5)

    assert exact.dtype == logits.dtype == torch.float64
    torch.testing.assert_close(images.double(), exact, rtol=1e-4, atol=1e-4)


def test_noise_of_layers_that_are_not_reached_may_be_absent():
    G, z = tiny_G(), normal(2, 8)
    noise = [normal(2, 1, side, side, seed=side) for side in G.noise_sides()]
    ws = G.broadcast(G.mapping(z))
    with torch.no_grad():
        assert torch.equal(
            G.synthesis(ws, noise=noise[:4], lod=1.0), G.synthesis(ws, noise=noise, lod=1.0)
        )
        assert not torch.equal(G.synthesis(ws, noise=noise), G.synthesis(ws))


def test_without_noise_inputs_there_is_nothing_to_draw():
    assert tiny_G(use_noise=False).noise_sides() == ()
    assert tiny_G().noise_sides() == (4, 4, 8, 8, 16, 16)


def test_truncation_draws_the_first_layers_to_the_mean():
    G = tiny_G()
    G.w_avg.copy_(normal(8, seed=5))
    ws = G.broadcast(normal(2, 8))

    half = G.truncate(ws, psi=0.5, cutoff=4)

    torch.testing.assert_close(half[:, :4], (ws[:, :4] + G.w_avg) / 2)
    assert torch.equal(half[:, 4:], ws[:, 4:])
    assert torch.equal(G.truncate(ws, psi=0.5, cutoff=None), ws)


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 3, 3, 1), (1, 1)])
def test_blur_has_the_gradients_of_the_convolution_it_is(taps: tuple[int, ...]):
    blur = Blur(taps).double()
    x = normal(2, 3, 6, 5, dtype=torch.float64).requires_grad_()

    assert gradcheck(blur, (x,))
    assert gradgradcheck(blur, (x,))


LAYERS = {
    "pixel norm": pixel_norm,
    "instance norm": instance_norm,
    "minibatch stddev": lambda x: append_minibatch_stddev(x, group=2, features=1),
    "conv": Conv((2, 3, 3, 3), rng=torch.Generator().manual_seed(0)).double(),
    "up": UpConv((2, 3, 3, 3), rng=torch.Generator().manual_seed(0), fused=False).double(),
    "up fused": UpConv((2, 3, 3, 3), rng=torch.Generator().manual_seed(0), fused=True).double(),
    "down": DownConv((2, 3, 3, 3), rng=torch.Generator().manual_seed(0)).double(),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_have_right_gradients_of_gradients(layer: str):
    x = normal(2, 3, 4, 4, dtype=torch.float64).requires_grad_()

    assert gradcheck(LAYERS[layer], (x,))
    assert gradgradcheck(LAYERS[layer], (x,))


def test_blur_keeps_constants_inside_and_darkens_the_border():
    y = Blur((1, 2, 1))(torch.ones(1, 2, 4, 4))

    assert torch.equal(y[:, :, 1:3, 1:3], torch.ones(1, 2, 2, 2))
    assert float(y[0, 0, 0, 0]) == 9 / 16


def test_resampling_convolutions_are_what_their_names_say():
    rng = torch.Generator().manual_seed(0)
    up, fused = (UpConv((5, 3, 3, 3), rng=rng, fused=fused) for fused in (False, True))
    down = DownConv((5, 3, 3, 3), rng=rng)
    x = normal(2, 3, 8, 8)
    with torch.no_grad():
        fused.weight.copy_(up.weight.flip(2, 3))
        expected_up = conv2d(blocky_up(x), up.scaled_weight(), padding=1)
        expected_down = box_down(conv2d(x, down.scaled_weight(), down.bias, padding=1))

        torch.testing.assert_close(up(x), expected_up, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused(x), expected_up, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(down(x), expected_down, rtol=1e-5, atol=1e-5)


def test_mbstd_groups_are_strided_and_independent_of_each_other():
    """Image i of 8 belongs to group i mod 2 (quirk 3)."""
    x = normal(8, 4, 2, 2)
    whole = append_minibatch_stddev(x, group=4, features=1)
    even = append_minibatch_stddev(x[::2], group=4, features=1)

    assert torch.equal(whole[::2], even)
    expected = x[::2].var(dim=0, correction=0).add(1e-8).sqrt().mean()
    torch.testing.assert_close(even[:, 4], expected.expand(4, 2, 2))
    assert torch.equal(append_minibatch_stddev(x[:2], group=4, features=2)[:, :4], x[:2])


def test_mbstd_refuses_a_batch_that_splits_a_group():
    with pytest.raises(ValueError, match=r"batch of 6 images.*groups of 4.*multiples of 4"):
        append_minibatch_stddev(normal(6, 4, 2, 2), group=4, features=1)


def test_networks_made_for_labels_refuse_to_go_without():
    with pytest.raises(ValueError, match=r"G was made for labels of 3 components and got none"):
        tiny_G(label_size=3)(normal(2, 8))
    with pytest.raises(ValueError, match=r"D was made for labels of 3 components and got none"):
        tiny_D(label_size=3)(normal(2, 3, 16, 16))


def test_D_refuses_images_of_another_level():
    with pytest.raises(ValueError, match=r"takes \[n, 3, 8, 8\]"):
        tiny_D()(normal(4, 3, 16, 16), None, 1.0)


@pytest.mark.parametrize("lod", [-0.5, 2.5])
def test_a_lod_without_a_block_is_refused(lod: float):
    with pytest.raises(ValueError, match=rf"lod is {lod}; networks of 16 px have 0"):
        tiny_G()(normal(2, 8), lod=lod)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_G(resolution=24), "resolution is 24; it must be a power of two"),
        (lambda: tiny_G(fmap_max=0), r"G\.fmap_max is 0; choose 1 or more"),
        (lambda: tiny_G(z_size=0), r"G\.z_size is 0; choose 1 or more"),
        (lambda: tiny_G(blur=[1, 2, 3]), r"G\.blur is \[1, 2, 3\]; taps must be symmetric"),
        (lambda: tiny_G(mapping_layers=-1), r"G\.mapping_layers is -1"),
        (lambda: tiny_G(mapping_layers=0, w_size=9), r"G\.w_size is 9.*choose G\.w_size=8"),
        (lambda: tiny_G(mapping_lr_multiplier=0), r"G\.mapping_lr_multiplier is 0"),
        (lambda: tiny_D(mbstd_group=-1), r"D\.mbstd_group is -1; choose 0 or more"),
        (lambda: tiny_D(mbstd_features=3), r"D\.mbstd_features is 3; it must divide the 8"),
        (lambda: tiny_D(label_size=-1), r"D\.label_size is -1; choose 0 or more"),
    ],
)
def test_wrong_settings_are_refused_by_name(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
