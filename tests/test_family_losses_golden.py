"""Losses and gradients of Progressive GAN and StyleGAN2 against the official ones (D2, E4)."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan import losses
from stylegan.draws import DiscriminatorDraws, GeneratorDraws
from stylegan.networks.interface import Discriminator, Generator
from stylegan.objective import (
    DiscriminatorLoss,
    GeneratorLoss,
    LazyR1,
    LossConfig,
    PathLengths,
    generate,
    judge,
)
from stylegan.official import tensorflow
from stylegan.official.names import names, to_ours
from stylegan.optimizer import OptimizerConfig, lazy
from stylegan.resample import box_down
from tests import goldens, official_losses, official_names
from tests.goldens import arrays, assert_close, entry, sets, under

WGAN_GP = LossConfig(adversarial="wgan", r1_gamma=0, wgan_gp_weight=10, drift_weight=0.001)


def draws_of(z: np.ndarray, G: Generator) -> GeneratorDraws:
    """Official latents, no style mixing, stored noise."""
    return GeneratorDraws(
        z=torch.from_numpy(z), z_mix=None, cutoff=torch.full((len(z),), G.layers()), noise=None
    )


def gradients(network: Generator | Discriminator, *, keep: bool = False) -> dict[str, Tensor]:
    """By official name, in our layout; forgotten afterwards."""
    theirs = names(network)
    found = {
        theirs[name]: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
    }
    if not keep:
        network.zero_grad()
    return found


def _pggan_cases() -> list[tuple[str, str, str]]:
    return [
        (name, match[1], match[2])
        for name in sets("D2_*")
        for item in entry(name)["arrays"]
        if (match := re.fullmatch(r"out/(.+)_lod([\d.]+)/loss", item["key"]))
    ]


@pytest.mark.parametrize(("name", "case", "written_lod"), _pggan_cases())
def test_golden_progressive_gan_losses_and_gradients(name: str, case: str, written_lod: str):
    lod = float(written_lod)
    golden, kwargs = arrays(name), entry(name)["static_kwargs"]
    G, D = official_names.pggan(kwargs, golden, original=True)
    labels = torch.from_numpy(golden["in/labels"]) if "in/labels" in golden else None
    draws, n = draws_of(golden["in/z"], G), len(golden["in/z"])
    out = f"out/{case}_lod{written_lod}"
    fakes, _ = generate(G, draws, labels, lod)
    fakes = fakes.detach()
    if case.startswith("G"):
        network: Generator | Discriminator = G
        tensor = official_losses.generator_tensor(WGAN_GP, D, fakes=fakes, labels=labels, lod=lod)
        total, _, _ = GeneratorLoss(G, D, WGAN_GP)(draws, labels, DiscriminatorDraws(), lod)
    else:
        network = D
        reals = torch.from_numpy(goldens.network_images(golden["in/reals_u8"]))
        reals = box_down(reals, 2 ** int(lod))
        mix = torch.from_numpy(golden["in/mixing_factors"])
        tensor = official_losses.discriminator_tensor(
            WGAN_GP, D, reals=reals, fakes=fakes, gp_mix=mix, labels=labels, lod=lod
        )
        total, _ = DiscriminatorLoss(D, WGAN_GP)(
            reals, fakes, labels, DiscriminatorDraws(gp_mix=mix), lod
        )
    (total / n).backward()

    mean = float(golden[f"{out}/loss_mean"])
    assert float(total.detach()) / n == pytest.approx(mean, rel=1e-5)
    assert_close(tensor, golden[f"{out}/loss"], 1e-5, "loss tensor")
    found = gradients(network)
    stored = under(golden, f"{out}/grad/")
    assert stored
    for key, value in stored.items():
        expected = to_ours(key, official_names.transposed(key, value))
        assert_close(found[key], expected.numpy(), 1e-4, f"gradient of {key}")
    assert_norms(found, name, f"{case}_lod{written_lod}")


def stylegan2(name: str) -> tuple[Generator, Discriminator]:
    golden, kwargs = arrays(name), entry(name)["static_kwargs"]
    G_build = tensorflow.BUILDS["G_main", "G_mapping", "G_synthesis_stylegan2"]
    G = tensorflow.build_network(G_build, kwargs["G"], under(golden, "G/"))
    D = tensorflow.build_network(
        tensorflow.BUILDS["D_stylegan2",], kwargs["D"], under(golden, "D/")
    )
    assert isinstance(G, Generator)
    assert isinstance(D, Discriminator)
    return G, D


def assert_gradients(found: dict[str, Tensor], golden: dict[str, np.ndarray], prefix: str) -> None:
    expected = under(golden, prefix)
    assert expected
    for key, value in expected.items():
        loose = "4x4/Const" in key or "G_mapping" in key
        mine = to_ours(key, value).numpy()
        assert_close(found[key], mine, 1e-3 if loose else 1e-4, f"{prefix}{key}")


def assert_norms(found: dict[str, Tensor], name: str, case: str) -> None:
    """Of all variables of this network."""
    norms = under(entry(name)["gradient_l2_norms"], f"{case} ")
    assert norms.keys() == found.keys()
    for key, norm in norms.items():
        assert float(found[key].double().norm()) == pytest.approx(norm, rel=1e-3, abs=1e-7), key


@pytest.mark.parametrize("name", sets("E4_*"))
def test_golden_stylegan2_adversarial_losses_and_r1(name: str):
    golden = arrays(name)
    G, D = stylegan2(name)
    n = len(golden["in/z"])
    config = LossConfig(r1_gamma=10, r1_interval=16)
    draws = draws_of(golden["in/z"], G)

    total, _, _ = GeneratorLoss(G, D, config)(draws, None, DiscriminatorDraws(), 0.0)
    (total / n).backward()
    found = gradients(G)
    assert_gradients(found, golden, "out/G_logistic_ns/grad/")
    assert_norms(found, name, "G_logistic_ns")
    D.zero_grad()
    fakes, _ = generate(G, draws, None, 0.0)
    fake_logits, _ = judge(D, fakes.detach(), None, 0.0)
    assert_close(
        losses.g_logistic_ns(fake_logits).detach()[:, None], golden["out/G_logistic_ns"], 1e-5
    )

    reals = torch.from_numpy(goldens.network_images(golden["in/reals_u8"]))
    total, _ = DiscriminatorLoss(D, config)(reals, fakes.detach(), None, DiscriminatorDraws(), 0.0)
    (total / n).backward()
    found = gradients(D)
    assert_gradients(found, golden, "out/D_logistic/grad/")
    assert_norms(found, name, "D_logistic")
    reals.requires_grad_()
    real_logits, _ = judge(D, reals, None, 0.0)
    D_losses = losses.d_logistic(real_logits, fake_logits)
    assert_close(D_losses.detach()[:, None], golden["out/D_logistic"], 1e-5)

    penalty = losses.gradient_penalty(real_logits, reals, 10.0).detach()
    assert_close(penalty, golden["out/r1_reg"], 1e-5)
    assert_close(penalty / 5, golden["out/r1_gradient_penalty"], 1e-5)
    total, _ = LazyR1(D, config)(reals, None, DiscriminatorDraws(), 0.0)
    (total / n / config.r1_interval).backward()
    found = gradients(D)
    assert_gradients(found, golden, "out/r1/grad/")
    assert_norms(found, name, "r1")


@pytest.mark.parametrize("name", sets("E4_*"))
def test_golden_stylegan2_path_lengths_and_their_regularization(name: str):
    golden = arrays(name)
    G, _ = stylegan2(name)
    draws = draws_of(golden["in/pl_z"], G)
    noise = torch.from_numpy(golden["in/pl_noise"])
    decay, weight = LossConfig().path_decay, 2
    cases = sorted({key.split("/")[1] for key in golden if key.startswith("out/pathreg")})
    assert cases
    for case in cases:
        lengths = PathLengths(G)(draws, None, noise, 0.0)
        assert_close(lengths.detach(), golden["out/pl_lengths"], 1e-5)
        before, after = golden[f"out/{case}/pl_mean_before_after"]
        mean = lengths.detach().mean()
        average = torch.lerp(torch.tensor(before), mean, decay)
        assert float(average) == pytest.approx(float(after), rel=1e-5)
        assert_close(
            weight * (lengths.detach() - average).square(), golden[f"out/{case}/reg"], 1e-5
        )
        factors = losses.path_factors(lengths.detach(), mean, average, decay)
        (weight * (factors * lengths).mean()).backward()
        found = gradients(G)
        assert_gradients(found, golden, f"out/{case}/grad/")
        assert_norms(found, name, case)


@pytest.mark.parametrize("name", sets("E4_*"))
def test_golden_adam_settings_of_lazy_regularization(name: str):
    official = entry(name)["lazy_regularization"]
    for network in ("G", "D"):
        interval = official[f"{network}_reg_interval"]
        config = lazy(OptimizerConfig(), interval)
        expected = official[network]
        assert interval / (interval + 1) == pytest.approx(expected["mb_ratio"], rel=1e-6)
        assert (config.beta1, config.beta2) == pytest.approx(
            (expected["beta1"], expected["beta2"]), rel=1e-6
        )
