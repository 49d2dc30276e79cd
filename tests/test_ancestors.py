"""The first GAN, DCGAN and Progressive GAN: closed forms and properties."""

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, leaky_relu, linear, relu

from stylegan.networks import dcgan, family, gan, pggan, stylegan
from stylegan.networks.interface import Discriminator, Generator
from stylegan.resample import blocky_up, box_down

LODS = [0.0, 0.25, 1.0, 1.5, 2.0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tiny_dcgan(resolution: int = 8, **options) -> tuple[dcgan.Generator, dcgan.Discriminator]:
    sizes = {"resolution": resolution, "width": 2} | options
    G = dcgan.Generator(dcgan.GeneratorConfig(**sizes, z_size=6), seed=1)
    return G, dcgan.Discriminator(dcgan.DiscriminatorConfig(**sizes), seed=2)


def tiny_gan(resolution: int = 4, **D) -> tuple[gan.Generator, gan.Discriminator]:
    G_config = gan.GeneratorConfig(resolution=resolution, z_size=6, widths=[5, 7])
    D_config = gan.DiscriminatorConfig(**{"resolution": resolution, "widths": [6, 4]} | D)
    return gan.Generator(G_config, seed=1), gan.Discriminator(D_config, seed=2)


def tiny_pggan(label_size: int = 0) -> tuple[pggan.Generator, pggan.Discriminator]:
    sizes = {"resolution": 16, "fmap_max": 8, "label_size": label_size}
    G = pggan.Generator(pggan.GeneratorConfig(**sizes, z_size=6), seed=1)
    return G, pggan.Discriminator(pggan.DiscriminatorConfig(**sizes), seed=2)


TINY = {"gan": tiny_gan, "dcgan": tiny_dcgan, "pggan": tiny_pggan}


# DCGAN


def test_dcgan_at_64_px_is_the_network_of_figure_1():
    config = dcgan.GeneratorConfig(resolution=64)

    assert config.z_size == 100
    assert config.sides == [4, 8, 16, 32]
    assert config.widths == [1024, 512, 256, 128]


@torch.no_grad()
@pytest.mark.parametrize("resolution", [8, 10, 24, 28, 32])
def test_dcgan_doubles_the_side_of_any_even_resolution(resolution: int):
    G, D = tiny_dcgan(resolution)

    images = G(normal(3, 6))

    assert images.shape == (3, 3, resolution, resolution)
    assert D(images).shape == (3, 1)
    assert float(images.abs().max()) < 1
    assert 4 <= G.config.sides[0] < 8


def test_dcgan_normalizes_everywhere_but_at_Gs_output_and_Ds_input():
    G, D = tiny_dcgan(32)
    z, images = normal(4, 6), normal(4, 3, 32, 32)

    x = linear(2 * torch.special.ndtr(z) - 1, G.synthesis.project.weight).reshape(4, -1, 4, 4)
    for norm, conv in zip(G.synthesis.norms, G.synthesis.convs, strict=True):
        x = relu(batch_norm(x, None, None, norm.weight, norm.bias, training=True))
        x = nn.functional.conv_transpose2d(x, conv.weight, stride=2, padding=1)
    torch.testing.assert_close(G(z), torch.tanh(x), rtol=1e-4, atol=1e-5)

    x = images
    for conv, norm in zip(D.convs, [None, *D.norms], strict=True):
        x = nn.functional.conv2d(x, conv.weight, stride=2, padding=1)
        if norm is not None:
            x = batch_norm(x, None, None, norm.weight, norm.bias, training=True)
        x = leaky_relu(x, 0.2)
    logits = linear(x.flatten(1), D.dense.weight)
    torch.testing.assert_close(D(images), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dcgan_begins_with_weights_of_std_002_and_scales_around_1():
    G, D = tiny_dcgan(32, width=32)
    for network in (G, D):
        for name, parameter in network.named_parameters():
            mean = 1 if "norms" in name and name.endswith("weight") else 0
            std = 0 if name.endswith("bias") else 0.02
            count = parameter.numel()
            assert abs(float(parameter.mean()) - mean) <= 5 * std / math.sqrt(count), name
            if count > 1000:
                assert float(parameter.std()) == pytest.approx(std, rel=0.1), name


def test_an_image_of_the_kept_generator_does_not_depend_on_the_others():
    G, _ = tiny_dcgan()
    z = normal(4, 6)
    assert not torch.allclose(G(z)[:2], G(z[:2]), atol=1e-3)

    G.eval()

    torch.testing.assert_close(G(z)[:2], G(z[:2]))


# The first GAN


@torch.no_grad()
def test_gan_has_the_sizes_published_for_mnist():
    G = gan.Generator(gan.GeneratorConfig(resolution=28, channels=1))
    D = gan.Discriminator(gan.DiscriminatorConfig(resolution=28, channels=1))

    shapes = [tuple(p.shape) for p in G.parameters() if p.ndim == 2]
    assert shapes == [(1200, 100), (1200, 1200), (784, 1200)]
    shapes = [tuple(p.shape) for p in D.parameters() if p.ndim == 2]
    assert shapes == [(240 * 5, 784), (240 * 5, 240), (1, 240)]
    assert D.config.dropout_size == 784 + 240 + 240
    for network, limit in ((G, 0.05), (D, 0.005)):
        weights = torch.cat([p.flatten() for p in network.parameters() if p.ndim == 2])
        assert float(weights.abs().max()) <= limit
        assert float(weights.std()) == pytest.approx(limit / math.sqrt(3), rel=0.01)


def test_gan_images_are_a_sigmoid_from_minus_1_to_1():
    G, _ = tiny_gan()
    z = normal(3, 6)
    x = 2 * torch.special.ndtr(z) - 1
    first, second, last = G.synthesis
    x = relu(linear(x, first.weight, first.bias))
    x = relu(linear(x, second.weight, second.bias))
    x = 2 * torch.sigmoid(linear(x, last.weight, last.bias)) - 1

    torch.testing.assert_close(G(z), x.reshape(3, 3, 4, 4))


def test_a_maxout_unit_of_a_line_and_its_negative_is_the_absolute_value():
    unit = gan.Maxout((1, 3), 2, 0.1, torch.Generator().manual_seed(0))
    a = torch.tensor([1.0, -2.0, 0.5])
    unit.weight.data = torch.stack([a, -a])
    x = normal(9, 3)

    torch.testing.assert_close(unit(x), (x @ a).abs()[:, None])


def test_maxout_takes_the_largest_of_each_units_own_pieces():
    layer = gan.Maxout((4, 3), 5, 0.1, torch.Generator().manual_seed(0))
    x = normal(2, 3)

    pieces = linear(x, layer.weight, layer.bias)

    for unit in range(4):
        largest = pieces[:, 5 * unit : 5 * unit + 5].max(dim=1).values
        assert torch.equal(layer(x)[:, unit], largest)


def test_dropout_keeps_what_has_a_number_from_the_rate_up_and_scales_it():
    """Without hidden layers D is linear, so that what was dropped can be seen."""
    _, D = tiny_gan(widths=[], input_dropout=0.25)
    images = normal(2, 3, 4, 4)
    numbers = uniform(2, 48)
    numbers[0, 0], numbers[0, 1] = 0.25, math.nextafter(0.25, 0)

    kept = (images.flatten(1) / 0.75).masked_fill(numbers < 0.25, 0)

    assert kept[0, 0] != 0
    expected = linear(kept, D.last.weight, D.last.bias)
    torch.testing.assert_close(D(images, dropout=numbers), expected)
    assert not torch.allclose(D(images, dropout=numbers), D(images))


def test_dropout_numbers_are_those_of_the_image_then_of_each_hidden_layer():
    _, D = tiny_gan()
    assert D.config.dropout_size == 48 + 6 + 4
    images, numbers = normal(2, 3, 4, 4), uniform(2, 58)

    x = images.flatten(1)
    x = D.hidden[0](x * (numbers[:, :48] >= 0.2) / 0.8)
    x = D.hidden[1](x * (numbers[:, 48:54] >= 0.5) * 2)
    expected = D.last(x * (numbers[:, 54:] >= 0.5) * 2)

    torch.testing.assert_close(D(images, dropout=numbers), expected)


def test_a_rate_of_0_takes_no_numbers():
    _, D = tiny_gan(input_dropout=0.0)
    images, numbers = normal(2, 3, 4, 4), uniform(2, 10)
    assert D.config.dropout_size == 10
    x = D.hidden[0](images.flatten(1))
    x = D.hidden[1](x * (numbers[:, :6] >= 0.5) * 2)
    expected = D.last(x * (numbers[:, 6:] >= 0.5) * 2)
    torch.testing.assert_close(D(images, dropout=numbers), expected)

    _, D = tiny_gan(input_dropout=0, dropout=0)
    assert D.config.dropout_size == 0
    assert torch.equal(D(images, dropout=torch.zeros(2, 0)), D(images))


# Progressive GAN


def active(network: Generator | Discriminator, lod: float) -> set[str]:
    ids = {id(p) for p in network.active_parameters(lod)}
    return {name for name, p in network.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("lod", LODS)
def test_pggan_works_at_the_native_size_with_exactly_the_active_parameters(lod: float):
    G, D = tiny_pggan()

    images = G(normal(4, 6), lod=lod)
    logits = D(images, None, lod)
    logits.sum().backward()

    side = 16 >> int(lod)
    assert images.shape == (4, 3, side, side)
    assert logits.shape == (4, 1)
    for network in (G, D):
        reached = {name for name, p in network.named_parameters() if p.grad is not None}
        assert reached == active(network, lod)


@torch.no_grad()
def test_a_fade_of_pggan_is_continuous_at_both_ends():
    G, D = tiny_pggan()
    z, images = normal(4, 6), normal(4, 3, 16, 16, seed=1)
    close = functools.partial(torch.testing.assert_close, atol=1e-4, rtol=0)
    close(G(z, lod=1e-6), G(z))
    close(G(z, lod=1 - 1e-6), blocky_up(G(z, lod=1.0)))
    close(D(images, None, 1e-6), D(images))
    close(D(images, None, 1 - 1e-6), D(box_down(images), None, 1.0))


def test_pggan_takes_the_label_beside_z_and_tells_classes():
    G, D = tiny_pggan(label_size=3)
    z, labels = normal(4, 6), torch.eye(3)[[0, 1, 2, 0]]

    w = G.mapping(z, labels)
    logits = D(G(z, labels), labels)

    joined = torch.cat([z, labels], dim=1)
    torch.testing.assert_close(w, joined / joined.square().mean(dim=1, keepdim=True).sqrt())
    assert D.config.class_logits == 3
    assert logits.shape == (4, 4)
    assert torch.equal(logits, D(G(z, labels)))
    with pytest.raises(ValueError, match=r"G was made for labels of 3 components and got none"):
        G(z)


def test_pggan_D_is_stylegans_without_its_filter():
    _, D = tiny_pggan()
    config = stylegan.DiscriminatorConfig(resolution=16, fmap_max=8, blur=())
    images = normal(4, 3, 16, 16)
    assert torch.equal(
        D(images, None, 0.5), stylegan.Discriminator(config, seed=2)(images, None, 0.5)
    )


# All of them


@pytest.mark.parametrize("kind", TINY)
def test_initial_weights_are_a_function_of_config_and_seed_alone(kind: str):
    torch.manual_seed(1)
    first = TINY[kind]()
    torch.manual_seed(2)
    torch.set_default_dtype(torch.float64)
    try:
        second = TINY[kind]()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(first, second, strict=True):
        assert all(
            torch.equal(p, q.float()) for p, q in zip(a.parameters(), b.parameters(), strict=True)
        )
    other = family.generator(first[0].config, seed=3)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(first[0].parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", TINY)
def test_a_network_is_built_again_from_its_fields(kind: str):
    """JSON gives lists for tuples."""
    G, D = TINY[kind]()
    fields = dataclasses.asdict(G.config)
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}

    config = family.generator_config(lists)

    assert config == G.config
    assert config.kind == D.config.kind == kind
    images = family.generator(config, seed=1)(normal(2, 6))
    torch.testing.assert_close(images, G(normal(2, 6)))
    assert isinstance(family.discriminator(D.config), type(D))


@pytest.mark.parametrize("kind", TINY)
def test_networks_without_styles_have_one_w_and_no_noise(kind: str):
    G, D = TINY[kind]()
    assert G.layers() == 1
    assert G.noise_sides() == ()
    assert G.broadcast(G.mapping(normal(2, 6))).shape == (2, 1, 6)
    assert D.config.batch_statistics == (kind == "dcgan")
    assert bool(D.config.dropout_size) == (kind == "gan")


@pytest.mark.parametrize("kind", ["gan", "dcgan"])
def test_normal_latents_become_uniform(kind: str):
    """The quantile of u becomes 2 u - 1."""
    G, _ = TINY[kind]()
    u = torch.linspace(0.001, 0.999, 6, dtype=torch.float64)[None]

    w = G.mapping(torch.special.ndtri(u))

    torch.testing.assert_close(w, 2 * u - 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dcgan.GeneratorConfig(resolution=7), "resolution is 7; DCGAN doubles"),
        (lambda: dcgan.DiscriminatorConfig(resolution=6), "resolution is 6; DCGAN doubles"),
        (lambda: tiny_dcgan(width=0), r"G\.width is 0; choose 1 or more"),
        (lambda: tiny_dcgan(max_width=0), r"G\.max_width is 0; choose 1 or more"),
        (lambda: tiny_dcgan(label_size=2), r"G\.label_size is 2.*kind dcgan.*label_size=0"),
        (lambda: tiny_gan(label_size=2), r"D\.label_size is 2.*kind gan.*label_size=0"),
        (lambda: tiny_gan(resolution=0), r"G\.resolution is 0; choose 1 or more"),
        (lambda: tiny_gan(widths=[3, 0]), r"D\.widths is \[3, 0\]; a layer has 1 unit or more"),
        (lambda: tiny_gan(pieces=0), r"D\.pieces is 0; choose 1 or more"),
        (lambda: tiny_gan(dropout=1), r"D\.dropout is 1; it is a share"),
        (lambda: tiny_gan(input_dropout=-0.1), r"D\.input_dropout is -0\.1; it is a share"),
        (lambda: tiny_gan(initial_range=0), r"D\.initial_range is 0; weights that are all equal"),
        (
            lambda: tiny_gan()[1](normal(2, 3, 4, 4), dropout=uniform(2, 57)),
            r"dropout has shape \(2, 57\), but D takes \[2, 58\]",
        ),
        (lambda: tiny_gan()[0](normal(2, 5)), r"G takes \[n, 6\]"),
        (lambda: tiny_dcgan()[0](normal(2, 6), lod=1.0), "lod is 1.0, but G does not grow"),
        (lambda: tiny_gan()[0](normal(2, 6), lod=0.5), "lod is 0.5, but G does not grow"),
        (lambda: tiny_gan()[1](normal(2, 3, 4, 4), None, 1.0), "but D does not grow"),
        (lambda: tiny_dcgan()[1](normal(2, 3, 4, 4)), r"takes \[n, 3, 8, 8\]"),
        (lambda: tiny_gan()[1](normal(2, 3, 8, 8)), r"takes \[n, 3, 4, 4\]"),
        (lambda: tiny_pggan()[1](normal(4, 3, 8, 8)), r"takes \[n, 3, 16, 16\]"),
        (lambda: pggan.GeneratorConfig(resolution=24), "resolution is 24; it must be a power of"),
    ],
)
def test_wrong_settings_are_refused_by_name(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()
