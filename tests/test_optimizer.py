"""Adam and the moving average against the official numbers, and dropped updates."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stylegan.average import update_average
from stylegan.optimizer import Adam, OptimizerConfig, named
from stylegan.step import StepConfig
from tests.goldens import arrays, assert_close, entry, said, sets


def _parameters(*values: Tensor) -> dict[str, nn.Parameter]:
    return {f"p{i}": nn.Parameter(value.clone()) for i, value in enumerate(values)}


def _set_gradients(parameters: dict[str, nn.Parameter], *gradients: Tensor) -> None:
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = gradient.clone()


def _trajectories() -> list[tuple[str, str]]:
    pattern = r"out/(sg|b1_[\d.]+)"
    return [(n, key) for n in sets("F4_*") for key in arrays(n) if re.fullmatch(pattern, key)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "key"), _trajectories())
def test_golden_adam_trajectories(name: str, key: str, dtype: torch.dtype):
    """With gradients near epsilon, and one of NaN that drops the whole update."""
    golden = arrays(name)
    beta1 = float(said(name, key, r"'beta1': ([\d.]+)"))
    reset = int(said(name, key, r"reset before step (\d+)"))
    parameters = _parameters(torch.from_numpy(golden["in/v0"]).to(dtype))
    adam = Adam(parameters, OptimizerConfig(beta1=beta1))
    for step, gradient in enumerate(golden["in/grads"]):
        if step == reset:
            adam = Adam(parameters, OptimizerConfig(beta1=beta1))
        _set_gradients(parameters, torch.from_numpy(gradient).to(dtype))
        adam.step(float(golden["in/lr"][step]))
        actual = parameters["p0"].detach().numpy()
        np.testing.assert_allclose(actual, golden[key][step], rtol=0, atol=5e-7)
    assert adam.count == len(golden["in/grads"]) - reset


@pytest.mark.parametrize("name", sets("F4_*"))
def test_golden_default_betas_and_epsilon(name: str):
    config = OptimizerConfig()
    ours = {"beta1": config.beta1, "beta2": config.beta2, "epsilon": config.epsilon}
    for network in ("G", "D"):
        assert entry(name)["optimizer"][network] == ours


def _half_lives() -> list[tuple[str, str, float]]:
    return [
        (name, key, float(match[1]))
        for name in sets("F4_*")
        for key in arrays(name)
        if (match := re.fullmatch(r"out/Gs_beta_kimg([\d.]+)", key))
    ]


@pytest.mark.parametrize(("name", "key", "kimg"), _half_lives())
def test_golden_decay_of_the_average(name: str, key: str, kimg: float):
    golden = arrays(name)
    decays = []
    for batch in golden["in/minibatch"]:
        Gs, G = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.ones_(Gs.weight)
        nn.init.zeros_(G.weight)
        update_average(Gs, G, decay=StepConfig(average_half_life_kimg=kimg).decay(int(batch)))
        decays.append(Gs.weight.item())
    assert_close(decays, golden[key], 1e-6, "decay")


def test_after_its_half_life_an_old_weight_counts_half_and_buffers_are_copied():
    Gs, G = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(G.weight, 3.0)
    G.running_mean += 7.0

    for _ in range(10):
        update_average(Gs, G, decay=StepConfig(average_half_life_kimg=1).decay(100))

    torch.testing.assert_close(Gs.weight, torch.full((3,), 2.0))
    assert torch.equal(Gs.running_mean, G.running_mean)
    assert torch.equal(G.weight, torch.full((3,), 3.0))


def test_without_a_half_life_the_average_is_the_network_itself():
    Gs, G = nn.Linear(2, 2), nn.Linear(2, 2)
    update_average(Gs, G, decay=StepConfig(average_half_life_kimg=0).decay(8))
    assert torch.equal(Gs.weight, G.weight)


def test_adam_equals_torchs_with_epsilon_on_the_raw_moment():
    """torch's epsilon times sqrt(1 - beta2^t) is the official one (Kingma & Ba 2015, Section 2)."""
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=rng), torch.randn(5, generator=rng)]
    config = OptimizerConfig(beta1=0.9, beta2=0.99, epsilon=0.1)
    mine, theirs = _parameters(*start), _parameters(*start)
    adam = Adam(mine, config)
    reference = torch.optim.Adam(theirs.values(), lr=0.01, betas=(0.9, 0.99))
    for step in range(1, 6):
        gradients = [torch.randn(p.shape, generator=rng) for p in start]
        _set_gradients(mine, *gradients)
        _set_gradients(theirs, *gradients)
        reference.param_groups[0]["eps"] = 0.1 / math.sqrt(1 - 0.99**step)
        adam.step(0.01)
        reference.step()
    torch.testing.assert_close(list(mine.values()), list(theirs.values()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_gradient_drops_the_whole_update(bad: float):
    parameters = _parameters(torch.ones(3), torch.ones(2, 2))
    adam = Adam(parameters, OptimizerConfig(beta1=0.5))
    _set_gradients(parameters, torch.ones(3), torch.ones(2, 2))
    adam.step(0.1)
    before = {name: value.clone() for name, value in adam.tensors().items()}
    values = [p.detach().clone() for p in parameters.values()]

    _set_gradients(parameters, torch.tensor([0.0, bad, 0.0]), torch.ones(2, 2))
    adam.step(0.1)

    after = adam.tensors()
    assert after.pop("skipped") - before.pop("skipped") == 1
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(p, v) for p, v in zip(parameters.values(), values, strict=True))


def test_a_bad_gradient_in_the_first_step_leaves_a_fresh_start():
    parameters = _parameters(torch.ones(2))
    adam = Adam(parameters, OptimizerConfig())
    _set_gradients(parameters, torch.tensor([math.nan, 1.0]))
    adam.step(0.1)
    assert torch.equal(parameters["p0"].detach(), torch.ones(2))

    _set_gradients(parameters, torch.ones(2))
    adam.step(0.1)

    torch.testing.assert_close(parameters["p0"].detach(), torch.full((2,), 0.9))


def test_large_finite_gradients_are_not_dropped():
    parameters = _parameters(torch.zeros(4))
    adam = Adam(parameters, OptimizerConfig())
    _set_gradients(parameters, torch.full((4,), 1e18))

    adam.step(0.1)

    torch.testing.assert_close(parameters["p0"].detach(), torch.full((4,), -0.1))
    assert adam.skipped == 0


def test_parameters_without_a_gradient_stay():
    parameters = _parameters(torch.ones(2), torch.ones(2))
    adam = Adam(parameters, OptimizerConfig())
    parameters["p0"].grad = torch.ones(2)

    adam.step(0.1)
    adam.zero_grad()
    adam.step(0.1)

    torch.testing.assert_close(parameters["p0"].detach(), torch.full((2,), 0.9))
    assert torch.equal(parameters["p1"].detach(), torch.ones(2))
    assert adam.count == 1


def test_loaded_state_continues_bit_for_bit():
    rng = torch.Generator().manual_seed(1)
    gradients = [torch.randn(3, generator=rng) for _ in range(6)]
    straight = _parameters(torch.ones(3))
    adam = Adam(straight, OptimizerConfig(beta1=0.5))
    for gradient in gradients[:3]:
        _set_gradients(straight, gradient)
        adam.step(0.01)
    resumed = _parameters(straight["p0"].detach())
    again = Adam(resumed, OptimizerConfig(beta1=0.5))
    again.load({name: value.clone() for name, value in adam.tensors().items()})

    for gradient in gradients[3:]:
        for parameters, optimizer in ((straight, adam), (resumed, again)):
            _set_gradients(parameters, gradient)
            optimizer.step(0.01)

    assert torch.equal(straight["p0"], resumed["p0"])


def test_state_of_other_parameters_is_refused():
    adam = Adam(_parameters(torch.ones(2)), OptimizerConfig())
    other = Adam(_parameters(torch.ones(2), torch.ones(2)), OptimizerConfig())

    with pytest.raises(ValueError, match=r"another phase.*p1"):
        adam.load(other.tensors())


def test_named_keeps_the_order_of_the_module():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    chosen = named(module, [module[1].weight, module[0].bias])

    assert list(chosen) == ["0.bias", "1.weight"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta1": 1.0}, r"optimizer\.beta1 is 1\.0"),
        ({"beta2": -0.1}, r"optimizer\.beta2 is -0\.1"),
        ({"epsilon": 0.0}, r"optimizer\.epsilon is 0\.0"),
    ],
)
def test_wrong_settings_are_refused_by_name(fields: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)
