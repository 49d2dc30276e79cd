"""How far each precision drifts from float64, for every kind of network."""

import functools

import pytest
import torch
from torch import Tensor

from stylegan.draws import D_STEP, G_STEP, PATH_STEP
from stylegan.objective import (
    DiscriminatorLoss,
    GeneratorLoss,
    LossConfig,
    PathLengths,
    Precision,
    generate,
)
from stylegan.optimizer import Adam, OptimizerConfig
from stylegan.schedule import Phase
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part, StepConfig, TrainingStep
from tests.networks import VARIANTS, SplitDraws, networks, reals_of

BATCH = 8
LOSS = LossConfig(r1_gamma=10, r2_gamma=1, path_weight=2)

# |x - x64| / |x64| (2-norms over all numbers of a kind), at most, in random networks of 16 px; "D",
# "G" and "path" are gradients of all loss terms and of the path lengths.
DRIFT: dict[str, dict[str, float]] = {
    "float32": {"images": 1e-4, "D loss": 1e-5, "D": 1e-3, "G": 1e-3, "path": 1e-3},
    "bfloat16": {"images": 0.05, "D loss": 0.05, "D": 0.25, "G": 0.25, "path": 0.25},
    "float16": {"images": 0.01, "D loss": 0.01, "D": 0.05, "G": 0.15, "path": 0.05},
}


def numbers(variant: str, dtype: torch.dtype, precision: Precision) -> dict[str, Tensor]:
    """Images, D's loss and all gradients from the same weights and draws."""
    G, D = networks(variant, dtype=dtype)
    draws = SplitDraws(G, D, [torch.arange(BATCH)], 0.0)
    reals = reals_of(0.0, dtype, BATCH)
    fakes, _ = generate(G, draws.fakes(D_STEP, 0), None, 0.0, precision=precision)
    found = {"images": fakes.detach()}

    D_loss = DiscriminatorLoss(D, LOSS, precision=precision)
    total, _ = D_loss(reals, fakes.detach(), None, draws.judging(D_STEP, 0), 0.0)
    found |= {"D loss": total.detach(), "D": _gradient(total, D, precision)}
    G_loss = GeneratorLoss(G, D, LOSS, precision=precision)
    total, _, _ = G_loss(draws.fakes(G_STEP, 0), None, draws.judging(G_STEP, 0), 0.0)
    found["G"] = _gradient(total, G, precision)
    if not variant.startswith("stylegan2"):  # where they are used
        return {name: value.double() for name, value in found.items()}
    lengths = PathLengths(G, precision=precision)(
        draws.fakes(PATH_STEP, 0), None, draws.path_noise(0), 0.0
    )
    found["path"] = _gradient(lengths.sum(), G, precision)
    return {name: value.double() for name, value in found.items()}


def _gradient(loss: Tensor, network: torch.nn.Module, precision: Precision) -> Tensor:
    """With the loss scale that float16 has in training."""
    scale = 2.0**10 if precision == "float16" else 1.0
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None]) / scale


@functools.cache
def exact(variant: str) -> dict[str, Tensor]:
    return numbers(variant, torch.float64, "float32")


@pytest.mark.parametrize("precision", DRIFT)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_precision_drifts_further_from_float64_than_the_table_says(variant, precision):
    found = numbers(variant, torch.float32, precision)
    drift = {
        name: float((found[name] - value).norm() / value.norm())
        for name, value in exact(variant).items()
        if value.norm() > 0
    }
    assert {"images", "D loss", "D", "G"} <= drift.keys()
    assert all(value <= DRIFT[precision][name] for name, value in drift.items()), drift


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["stylegan", "stylegan2-skip-residual"])
def test_half_precision_trains_with_weights_in_float32(variant, precision):
    """Both networks move, losses stay finite; float16 drops updates until its scale fits."""
    G, D = networks(variant)
    state = TrainState(
        G, D, OptimizerConfig(), G_interval=LOSS.G_interval, scaled=precision == "float16"
    )
    step = TrainingStep(
        state, loss=LOSS, config=StepConfig(precision=precision), split=Split(group=4)
    )
    phase = Phase(nimg=0, lod=0.0, resolution=16, batch=BATCH, G_lr=2e-3, D_lr=2e-3, tick_kimg=1)
    parts = [torch.from_numpy(part) for part in Split(group=4).parts(BATCH)]
    before = [p.detach().clone() for p in [*G.parameters(), *D.parameters()]]
    for _ in range(6):
        step.enter(phase)
        reals = reals_of(0.0, torch.float32, BATCH)
        step([Part(reals=reals[parts[0]])], SplitDraws(G, D, parts, 0.0), phase)
    summary = step.summary()
    dropped = summary["skipped/D"], summary["skipped/G"]
    assert max(dropped) <= (3 if precision == "float16" else 0), dropped
    assert all(torch.isfinite(torch.tensor(list(summary.values()))))
    after = [*G.parameters(), *D.parameters()]
    assert all(p.dtype == torch.float32 for p in after)
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(after) / 2


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_many_good_updates():
    weight = torch.nn.Parameter(torch.ones(3))
    adam = Adam({"weight": weight}, OptimizerConfig(), scaled=True)
    first = float(adam.scale)
    weight.grad = torch.full((3,), float("inf"))
    adam.step(0.1)
    assert float(adam.scale) == first / 2
    assert torch.equal(weight, torch.ones(3))
    for _ in range(2000):
        weight.grad = torch.ones(3) * adam.scale
        adam.step(0.0)
    assert float(adam.scale) == first
    assert float(adam.skipped) == 1


def test_a_scaled_gradient_moves_weights_as_an_unscaled_one():
    moved = []
    for scaled in (False, True):
        weight = torch.nn.Parameter(torch.ones(3))
        adam = Adam({"weight": weight}, OptimizerConfig(), scaled=scaled)
        weight.grad = torch.tensor([0.5, -2.0, 1e-3]) * (adam.scale if scaled else 1)
        adam.step(0.1)
        moved.append(weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])
