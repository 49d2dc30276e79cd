"""Losses and gradient penalties: closed forms, and the official values with their gradients."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from stylegan import losses
from stylegan.draws import DiscriminatorDraws, GeneratorDraws
from stylegan.networks.stylegan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.objective import DiscriminatorLoss, GeneratorLoss, LossConfig, generate
from stylegan.resample import blocky_up, box_down
from tests import goldens, official_losses, official_names
from tests.goldens import arrays, assert_close, entry, sets, under

# What the official functions are called with, in our words.
_OFFICIAL: dict[str, dict[str, Any]] = {
    "G_logistic_nonsaturating": {"adversarial": "logistic_ns"},
    "G_logistic_saturating": {"adversarial": "logistic"},
    "G_wgan": {"adversarial": "wgan"},
    "D_logistic": {"adversarial": "logistic_ns"},
    "D_logistic_simplegp": {"adversarial": "logistic_ns"},
    "D_wgan": {"adversarial": "wgan", "drift_weight": 0.001},
    "D_wgan_gp": {"adversarial": "wgan", "drift_weight": 0.001, "wgan_gp_weight": 10.0},
    "D_hinge": {"adversarial": "hinge"},
    "D_hinge_gp": {"adversarial": "hinge", "wgan_gp_weight": 10.0},
}
_OPTIONS = {
    "r1_gamma": "r1_gamma",
    "r2_gamma": "r2_gamma",
    "wgan_lambda": "wgan_gp_weight",
    "wgan_target": "wgan_gp_target",
}


class Linear(nn.Module):
    """D(x) = <a, x>, whose gradient is a everywhere."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = a

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.a).sum(dim=(1, 2, 3))[:, None]


def test_gradient_penalty_of_a_linear_discriminator_is_its_squared_weights():
    a = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    reals = torch.randn(5, 3, 8, 8, requires_grad=True)

    penalty = losses.gradient_penalty(Linear(a)(reals), reals, gamma=10)

    torch.testing.assert_close(penalty, torch.full((5,), 5.0) * a.square().sum())


@pytest.mark.parametrize("level", [0, 1, 3])
def test_gradient_penalties_at_native_size_are_those_of_the_full_size_images(level: int):
    """The official gradient is with respect to blocky full-size images (quirk 2)."""
    a = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    D = Linear(a)
    native = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    full = blocky_up(native.detach(), 2**level).requires_grad_()
    full_logits = D(box_down(full, 2**level))

    torch.testing.assert_close(
        losses.gradient_penalty(D(native), native, 3.0, level=level),
        losses.gradient_penalty(full_logits, full, 3.0),
    )
    torch.testing.assert_close(
        losses.wgan_gp(D(native), native, weight=10, target=2, level=level),
        losses.wgan_gp(full_logits, full, weight=10, target=2),
    )


def test_wgan_gp_vanishes_at_its_target_and_is_relative_to_it():
    a = torch.full((1, 2, 2), 375.0)  # norm 750
    mixed = torch.randn(3, 1, 2, 2, requires_grad=True)
    logits = Linear(a)(mixed)

    at_target = losses.wgan_gp(logits, mixed, weight=5, target=750)
    double = losses.wgan_gp(logits, mixed, weight=5, target=375)

    torch.testing.assert_close(at_target, torch.zeros(3))
    torch.testing.assert_close(double, torch.full((3,), 5.0))


def test_hinge_is_linear_inside_the_margin_and_zero_beyond_it():
    real, fake = torch.tensor([[2.0], [0.0], [-1.0]]), torch.tensor([[-2.0], [0.0], [3.0]])

    assert losses.d_hinge(real, fake).tolist() == [0.0, 2.0, 6.0]
    assert losses.g_hinge(fake).tolist() == [2.0, 0.0, -3.0]


def test_minimax_losses_of_undecided_logits_are_logarithms_of_two():
    zero = torch.zeros(4, 1)

    torch.testing.assert_close(losses.g_logistic_ns(zero), torch.full((4,), np.log(2)).float())
    torch.testing.assert_close(losses.g_logistic(zero), torch.full((4,), -np.log(2)).float())
    torch.testing.assert_close(
        losses.d_logistic(zero, zero), torch.full((4,), 2 * np.log(2)).float()
    )


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_logistic_losses_stay_finite_for_extreme_logits(value: float):
    logits = torch.full((2, 1), value, requires_grad=True)
    loss = losses.d_logistic(logits, logits) + losses.g_logistic_ns(logits)
    loss.sum().backward()

    assert torch.isfinite(loss).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_class_terms_are_the_cross_entropy_of_the_labels():
    """-log softmax at the label; log k for logits that are all equal."""
    class_logits = torch.tensor([[0.0, 0.0, 0.0], [5.0, 1.0, -2.0]])
    labels = torch.eye(3)[[1, 0]]
    expected = [math.log(3), math.log(1 + math.exp(-4) + math.exp(-7))]
    torch.testing.assert_close(losses.classes(class_logits, labels), torch.tensor(expected))


def test_the_path_length_of_a_linear_generator_is_that_of_its_transposed_matrix():
    """G(w) = A w has J^T y = A^T y for every w; with l layers the squares are averaged."""
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(12, 5, generator=rng, dtype=torch.float64)
    ws = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).requires_grad_()
    images = (ws.sum(dim=1) @ A.T).reshape(2, 3, 2, 2)
    noise = torch.randn(2, 3, 2, 2, generator=rng, dtype=torch.float64)

    lengths = losses.path_lengths(images, ws, noise)
    scaled = losses.path_lengths(images, ws, noise, scale=256)

    torch.testing.assert_close(lengths, (noise.reshape(2, 12) / 2 @ A).norm(dim=1))
    torch.testing.assert_close(scaled, lengths)


def test_path_factors_are_the_gradient_through_the_moving_mean():
    rng = torch.Generator().manual_seed(1)
    lengths = torch.rand(6, generator=rng, dtype=torch.float64).requires_grad_()
    start, decay = torch.tensor(0.3, dtype=torch.float64), 0.01
    average = torch.lerp(start, lengths.mean(), decay)
    (expected,) = torch.autograd.grad((lengths - average).square().sum(), lengths)

    found = losses.path_factors(lengths.detach(), lengths.mean().detach(), average.detach(), decay)

    torch.testing.assert_close(found, expected)


def _penalty_of_weights(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A penalty on the gradient of a small smooth D (or G), as a function of its weights."""
    x = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def penalty(first: Tensor, second: Tensor) -> Tensor:
        images = x.clone().requires_grad_()
        logits = (torch.tanh(images.flatten(1) @ first) @ second)[:, None]
        if kind == "wgan_gp":
            return losses.wgan_gp(logits, images, weight=10)
        if kind == "path_lengths":
            ws = x.flatten(1)[:, None].clone().requires_grad_()
            made = torch.tanh(ws[:, 0] @ first)[:, :, None, None] * second[None, :, None, None]
            return losses.path_lengths(made, ws, torch.ones_like(made))
        return losses.gradient_penalty(logits, images, gamma=10)

    return penalty


@pytest.mark.parametrize("kind", ["gradient_penalty", "wgan_gp", "path_lengths"])
def test_what_is_differentiated_twice_has_right_gradients(kind):
    rng = torch.Generator().manual_seed(3)
    first = torch.randn(18, 4, generator=rng, dtype=torch.float64).requires_grad_()
    second = torch.randn(4, generator=rng, dtype=torch.float64).requires_grad_()
    penalty = _penalty_of_weights(kind)

    assert gradcheck(penalty, (first, second))
    assert gradgradcheck(penalty, (first, second))


@pytest.mark.parametrize(
    "key", ["r1_gamma", "r2_gamma", "wgan_gp_weight", "drift_weight", "path_weight"]
)
def test_a_negative_weight_is_refused_by_name(key: str):
    with pytest.raises(ValueError, match=rf"loss\.{key} is -1"):
        LossConfig(**{key: -1})


def test_penalties_and_networks_work_in_double_precision():
    """All of it in float64: single precision anywhere would show as an error of 1e-7."""
    G, D = _tiny_networks(torch.float64)
    draws = _draws(G, batch=4, seed=3)
    reals = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    config = LossConfig(r1_gamma=10.0, r2_gamma=1.0)
    fakes, _ = generate(G, draws, None, 0.5)
    total, _ = DiscriminatorLoss(D, config)(reals, fakes.detach(), None, DiscriminatorDraws(), 0.5)
    total.backward()
    weight = D.blocks["8"].conv0.weight
    assert weight.grad is not None

    # Central difference of the whole loss, penalties included.
    step = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 1, 1] += sign * step
        moved, _ = DiscriminatorLoss(D, config)(
            reals, fakes.detach(), None, DiscriminatorDraws(), 0.5
        )
        values.append(float(moved.detach()))
        with torch.no_grad():
            weight[0, 0, 1, 1] -= sign * step
    assert float(weight.grad[0, 0, 1, 1]) == pytest.approx(
        (values[0] - values[1]) / (2 * step), rel=1e-6
    )


def test_the_sum_over_two_parts_is_the_loss_of_the_whole_batch():
    """Groups of minibatch stddev stay whole: images {0, 2, 4, 6} and {1, 3, 5, 7}."""
    G, D = _tiny_networks(torch.float64)
    fakes, _ = generate(G, _draws(G, batch=8, seed=5), None, 0.0)
    fakes = fakes.detach()
    reals = torch.rand(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    module = DiscriminatorLoss(D, LossConfig())
    whole, sums = module(reals, fakes, None, DiscriminatorDraws(), 0.0)
    parts = [module(reals[i::2], fakes[i::2], None, DiscriminatorDraws(), 0.0) for i in range(2)]

    torch.testing.assert_close(parts[0][0] + parts[1][0], whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts[0][1] + parts[1][1], sums, rtol=1e-12, atol=0)


def _tiny_networks(dtype: torch.dtype) -> tuple[Generator, Discriminator]:
    G = Generator(
        GeneratorConfig(resolution=8, z_size=8, w_size=8, mapping_width=8, fmap_max=8), seed=1
    )
    D = Discriminator(DiscriminatorConfig(resolution=8, fmap_max=8), seed=2)
    return G.to(dtype), D.to(dtype)


def _draws(G: Generator, *, batch: int, seed: int) -> GeneratorDraws:
    rng = torch.Generator().manual_seed(seed)
    return GeneratorDraws(
        z=torch.randn(batch, G.config.z_size, generator=rng),
        z_mix=None,
        cutoff=torch.full((batch,), G.layers()),
        noise=[torch.randn(batch, 1, side, side, generator=rng) for side in G.noise_sides()],
    )


@pytest.mark.parametrize("name", sets("B1_*"))
def test_golden_losses_of_given_logits(name: str):
    golden = arrays(name)
    fake, real = (torch.from_numpy(golden[f"in/{kind}_scores"]) for kind in ("fake", "real"))
    table: dict[str, Callable[[], Tensor]] = {
        "G_logistic_nonsaturating": lambda: losses.g_logistic_ns(fake),
        "G_logistic_saturating": lambda: losses.g_logistic(fake),
        "G_wgan": lambda: losses.g_wgan(fake),
        "D_logistic": lambda: losses.d_logistic(real, fake),
        "D_wgan": lambda: losses.d_wgan(real, fake) + losses.drift(real, 0.001),
        "D_hinge": lambda: losses.d_hinge(real, fake),
    }
    expected = under(golden, "out/")
    assert expected.keys() == table.keys()
    for key, compute in table.items():
        np.testing.assert_allclose(compute()[:, None], expected[key], rtol=1e-5, atol=1e-7)


def _cases() -> list[tuple[str, str, str]]:
    """(set, official function with its options, lod) of every loss tensor stored."""
    return [
        (name, match[1], match[2])
        for name in sets("B2_*")
        for item in entry(name)["arrays"]
        if (match := re.fullmatch(r"out/(.+)_lod([\d.]+)/loss", item["key"]))
    ]


def _loss_config(case: str) -> LossConfig:
    """Official function and options, such as `D_wgan_gp_wgan_lambda5_wgan_target750`."""
    options = re.findall(rf"_({'|'.join(_OPTIONS)})([\d.]+)", case)
    function = re.sub(rf"_({'|'.join(_OPTIONS)})([\d.]+)", "", case)
    fields = {"r1_gamma": 0.0} | _OFFICIAL[function]
    return LossConfig(**fields | {_OPTIONS[key]: float(value) for key, value in options})


@pytest.mark.parametrize(("name", "case", "written_lod"), _cases())
def test_golden_losses_and_gradients_of_networks(name: str, case: str, written_lod: str):
    golden, lod = arrays(name), float(written_lod)
    G = official_names.generator(entry(name)["static_kwargs"]["G"], under(golden, "G/"))
    D = official_names.discriminator(entry(name)["static_kwargs"]["D"], under(golden, "D/"))
    n, level = len(golden["in/z"]), int(lod)
    draws = GeneratorDraws(
        z=torch.from_numpy(golden["in/z"]),
        z_mix=None,
        cutoff=torch.full((n,), G.layers()),
        noise=None,
    )
    out, config = f"out/{case}_lod{written_lod}", _loss_config(case)
    fakes, _ = generate(G, draws, None, lod)
    fakes = fakes.detach()
    if case.startswith("G"):
        network: nn.Module = G
        tensor = official_losses.generator_tensor(config, D, fakes=fakes, lod=lod)
        total, _, _ = GeneratorLoss(G, D, config)(draws, None, DiscriminatorDraws(), lod)
    else:
        network = D
        reals = torch.from_numpy(goldens.network_images(golden["in/reals_u8"]))
        reals = box_down(reals, 2**level)
        mix = torch.from_numpy(golden["in/mixing_factors"])
        tensor = official_losses.discriminator_tensor(
            config, D, reals=reals, fakes=fakes, gp_mix=mix, lod=lod
        )
        module = DiscriminatorLoss(D, config)
        total, _ = module(reals, fakes, None, DiscriminatorDraws(gp_mix=mix), lod)
    (total / n).backward()

    assert float(total.detach()) / n == pytest.approx(float(golden[f"{out}/loss_mean"]), rel=1e-5)
    assert_close(tensor, golden[f"{out}/loss"], 1e-5, "loss tensor")
    gradients = official_names.gradients(network)
    stored = under(golden, f"{out}/grad/")
    norms = entry(name)["gradient_l2_norms"][f"{case}_lod{written_lod}"]
    assert stored.keys() <= norms.keys() == gradients.keys()
    assert stored
    for key, expected in stored.items():
        loose = "4x4/Const" in key or "G_mapping" in key
        mine = official_names.to_ours(key, expected).numpy()
        assert_close(gradients[key], mine, 1e-3 if loose else 1e-4, f"gradient of {key}")
    for key, norm in norms.items():
        actual = float(np.linalg.norm(gradients[key].astype(np.float64)))
        assert actual == pytest.approx(norm, rel=1e-3, abs=1e-7), f"gradient norm of {key}"
        if norm == 0:
            assert actual == 0, f"{key} takes no part at lod {lod}"


@pytest.mark.parametrize("name", sets("B2_*"))
def test_golden_logits_that_the_losses_are_made_of(name: str):
    golden = arrays(name)
    G = official_names.generator(entry(name)["static_kwargs"]["G"], under(golden, "G/"))
    D = official_names.discriminator(entry(name)["static_kwargs"]["D"], under(golden, "D/"))
    reals = torch.from_numpy(goldens.network_images(golden["in/reals_u8"]))
    w = G.broadcast(G.mapping(torch.from_numpy(golden["in/z"])))
    matches = [re.fullmatch(r"out/(fake|real)_scores_lod([\d.]+)", key) for key in golden]
    assert any(matches)
    for match in filter(None, matches):
        lod = float(match[2])
        native = box_down(reals, 2 ** int(lod))
        images = native if match[1] == "real" else G.synthesis(w, lod=lod)
        assert_close(D(images, None, lod).detach(), golden[match[0]], 2e-5, match[0])
