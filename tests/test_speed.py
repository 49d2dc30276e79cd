"""Compiled networks: the same numbers, and nothing is compiled twice.

They run in processes of their own, where no shapes are checked: the checks cannot be traced.
"""

import functools
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from stylegan import step as steps
from stylegan.draws import G_STEP, Draws, Purpose
from stylegan.objective import LossConfig
from stylegan.optimizer import OptimizerConfig
from stylegan.schedule import Phase
from stylegan.speed import check_compiler, compile_blocks
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part, StepConfig, TrainingStep
from tests.networks import SplitDraws, networks, reals_of
from tests.processes import run_ranks

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler here"
)

BATCH = 8
LAZY = LossConfig(r1_interval=2, path_weight=2, path_interval=2)
SYSTEMS = {
    "stylegan": LossConfig(),
    "stylegan2-skip-residual": LAZY,
}


class Run:
    """A training of small networks, minibatch by minibatch."""

    def __init__(self, variant: str, speed: str, loss: LossConfig) -> None:
        G, D = networks(variant)
        if variant == "stylegan":  # of a constant of ones, normalization leaves rounding alone
            torch.nn.init.normal_(G.synthesis.blocks["4"].const, generator=torch.Generator())
        self.state = TrainState(
            G, D, OptimizerConfig(), G_interval=loss.G_adam_interval, D_interval=loss.D_interval
        )
        config = StepConfig(mixing_prob=1, speed=speed)
        self.step = TrainingStep(self.state, loss=loss, config=config, split=Split())

    def __call__(self, lod: float) -> dict[str, torch.Tensor]:
        """Train on one minibatch; the gradients, which are Adam's first moments with beta1 = 0."""
        phase = Phase(
            nimg=0, lod=lod, resolution=16 >> int(lod), batch=BATCH, G_lr=0, D_lr=0, tick_kimg=1
        )
        self.step.enter(phase)
        reals = reals_of(lod, torch.float32, BATCH)
        draws = SplitDraws(self.state.G, self.state.D, [torch.arange(BATCH)], lod)
        self.step([Part(reals=reals)], draws, phase)
        moments = {"G": self.state.G_opt.exp_avg, "D": self.state.D_opt.exp_avg}
        return {f"{n}.{k}": v.clone() for n, each in moments.items() for k, v in each.items()}


def assert_same_gradients(ours, eager, tolerance):
    largest = max(value.abs().max() for value in eager.values())
    assert ours.keys() == eager.keys()
    for name, value in eager.items():
        bound = tolerance * (value.abs().max() + 0.01 * largest)
        assert (ours[name] - value).abs().max() <= bound, name


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_fade_compiles_nothing_again_and_gradients_are_those_of_the_eager_step(system):
    run_ranks(_train_traced, 1, system)


def _train_traced(rank: int, system: str) -> None:
    steps.compile_blocks = functools.partial(compile_blocks, backend="aot_eager")
    ours, eager = (Run(system, speed, SYSTEMS[system]) for speed in ("compile", "eager"))
    lods = [0.0] * 4 if "stylegan2" in system else [2.0, 2.0, 1.75, 1.75, 1.5, 1.25]

    graphs = []
    for lod in lods:
        assert_same_gradients(ours(lod), eager(lod), 1e-5)
        graphs.append(counters["stats"]["unique_graphs"])

    assert graphs[0] > 5
    assert graphs[3:] == [graphs[3]] * len(graphs[3:])
    assert not counters["graph_break"]


def test_compiled_code_gives_the_gradients_of_the_eager_step():
    run_ranks(_train_compiled, 1)


def _train_compiled(rank: int) -> None:
    ours, eager = (Run("stylegan", speed, LossConfig()) for speed in ("compile", "eager"))

    assert_same_gradients(ours(2.0), eager(2.0), 1e-4)

    assert counters["inductor"]


def test_fused_draws_are_the_same_bits():
    run_ranks(_draw_fused, 1)


def _draw_fused(rank: int) -> None:
    indices = torch.tensor([0, 1, 2**32 + 5, 25_000_000])
    for seed, count, start in ((0, 7, 0), (2**32 - 1, 512, 8)):
        plain, fused = (Draws(seed=seed, attempt=2, fused=each) for each in (False, True))
        drawn = (
            draws.bits(Purpose.Z, step=G_STEP, indices=indices, count=count, start=start)
            for draws in (plain, fused)
        )
        assert torch.equal(*drawn)


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    check_compiler()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "icpx")

    with pytest.raises(ValueError, match=r"none of icpx, c\+\+, .* is here; install g\+\+ or set"):
        check_compiler()
