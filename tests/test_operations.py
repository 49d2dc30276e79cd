"""What a training step costs, in numbers that do not wobble: operations, launches, waits."""

import pytest
import torch

from stylegan.objective import LossConfig
from stylegan.optimizer import OptimizerConfig
from stylegan.schedule import Phase
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part, StepConfig, TrainingStep
from tests.networks import SplitDraws, networks, reals_of
from tests.operations import Operations, launched

BATCH = 8
LAZY = LossConfig(r1_interval=2, path_weight=2, path_interval=2)
SYSTEMS = {
    "gan": LossConfig(r1_gamma=0),
    "dcgan": LossConfig(r1_gamma=0),
    "pggan": LossConfig(adversarial="wgan", r1_gamma=0, wgan_gp_weight=10, drift_weight=0.001),
    "stylegan": LossConfig(),
    "stylegan2-skip-residual": LAZY,
}


def _counted(system: str, lod: float = 0.0, minibatches: int = 1) -> Operations:
    """Of the minibatches after the first."""
    loss = SYSTEMS[system]
    G, D = networks(system)
    state = TrainState(
        G, D, OptimizerConfig(), G_interval=loss.G_adam_interval, D_interval=loss.D_interval
    )
    step = TrainingStep(state, loss=loss, config=StepConfig(mixing_prob=1), split=Split())
    phase = Phase(
        nimg=0, lod=lod, resolution=16 >> int(lod), batch=BATCH, G_lr=0.1, D_lr=0.1, tick_kimg=1
    )
    parts = [Part(reals=reals_of(lod, torch.float32, BATCH))]
    draws = SplitDraws(G, D, [torch.arange(BATCH)], lod)
    step.enter(phase)
    step(parts, draws, phase)
    with Operations() as counted:
        for _ in range(minibatches):
            step(parts, draws, phase)
    return counted


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_minibatch_waits_for_the_device(system):
    counted = _counted(system, minibatches=2)

    assert counted.calls["_local_scalar_dense"] == 0
    assert counted.calls["nonzero"] == 0


def test_convolutions_of_a_step_are_those_of_the_mathematics():
    counted = _counted("stylegan", lod=2.0)

    # At 4 px G has a 3x3 convolution and ToRGB, D FromRGB and a 3x3 convolution: two each.
    forwards = ["D's fakes", "D of fakes", "D of reals", "G's fakes", "D of G's fakes"]
    penalty = ["the gradient with respect to reals", "its derivative by gradients and weights"]
    backwards = ["D of fakes", "D of reals", "D of G's fakes", "G's fakes"]
    assert counted.calls["convolution"] == 2 * (len(forwards) + 1)
    assert counted.calls["convolution_backward"] == 2 * (len(backwards) + len(penalty))


def test_a_level_that_fades_costs_two_heads_more_and_nothing_else():
    def difference(system):
        return launched(_counted(system, lod=0.5)) - launched(_counted(system, lod=0.0))

    assert 0 < difference("stylegan") < 80


LAUNCHES = {
    "gan": 2320,
    "dcgan": 2042,
    "pggan": 2744,
    "stylegan": 4244,
    "stylegan2-skip-residual": 6562,
}
"""Most operators of two minibatches that compute something, as counted when this was written."""


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_launches_no_more_than_it_did(system):
    assert launched(_counted(system, minibatches=2)) <= LAUNCHES[system]
