"""The training step on any split of the global batch, with real process groups."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stylegan.draws import D_STEP, GeneratorDraws
from stylegan.objective import LossConfig, generate
from stylegan.optimizer import Adam, OptimizerConfig
from stylegan.schedule import Phase
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part, StepConfig, TrainingStep
from tests.networks import SplitDraws, networks, reals_of
from tests.processes import ProcessGroup, free_port, run_ranks

BATCH = 32


def make_state(
    dtype: torch.dtype = torch.float32,
    variant: str = "stylegan",
    loss: LossConfig | None = None,
    label_size: int = 0,
) -> TrainState:
    G, D = networks(variant, dtype=dtype, label_size=label_size)
    loss = loss or LossConfig()
    return TrainState(
        G, D, OptimizerConfig(), G_interval=loss.G_adam_interval, D_interval=loss.D_interval
    )


def phase(lod: float, lr: float = 0.001, batch: int = BATCH) -> Phase:
    return Phase(
        nimg=0,
        lod=lod,
        resolution=16 >> int(lod),
        batch=batch,
        G_lr=lr,
        D_lr=lr,
        tick_kimg=1,
    )


def step_once(
    state: TrainState,
    split: Split,
    loss: LossConfig,
    lod: float,
    lr: float,
    *,
    batch: int = BATCH,
    times: int = 1,
) -> None:
    """One minibatch of this split's share, or the same again and again."""
    step = TrainingStep(state, loss=loss, config=StepConfig(mixing_prob=1), split=split)
    step.enter(phase(lod, lr, batch))
    shares = [torch.from_numpy(part) for part in split.parts(batch)]
    reals = reals_of(lod, state.G.w_avg.dtype, batch)
    size = state.G.config.label_size
    labels = torch.eye(size)[torch.arange(batch) % size] if size else None
    parts = [
        Part(
            reals=reals[share],
            D_labels=None if labels is None else labels[share],
            G_labels=None if labels is None else labels[share].roll(1, dims=1),
        )
        for share in shares
    ]
    for _ in range(times):
        step(parts, SplitDraws(state.G, state.D, shares, lod), phase(lod, lr, batch))


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    """The last gradients and w_avg; with beta1 = 0 Adam's first moment is the gradient."""
    taken = {f"G.{name}": value for name, value in state.G_opt.exp_avg.items()}
    taken |= {f"D.{name}": value for name, value in state.D_opt.exp_avg.items()}
    return taken | {"w_avg": state.G.w_avg}


def assert_equal_gradients(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str
) -> None:
    """|diff| <= a * max|array| + b * max|network's gradients| (DESIGN: one global batch)."""
    assert actual.keys() == expected.keys()
    narrow = expected["w_avg"].dtype == torch.float32
    of_array, of_network = (1e-4, 1e-6) if narrow else (1e-12, 1e-12)
    for network in ("G.", "D.", "w_avg"):
        names = [name for name in expected if name.startswith(network)]
        largest = max(float(expected[name].abs().max()) for name in names)
        assert largest > 0
        for name in names:
            limit = of_array * float(expected[name].abs().max()) + of_network * largest
            worst = float((actual[name] - expected[name]).abs().max())
            assert worst <= limit, f"{what}: {name} is off by {worst:.1e}, allowed {limit:.1e}"


PLAIN = LossConfig(r1_gamma=0)
WGAN_GP = LossConfig(adversarial="wgan", r1_gamma=0, wgan_gp_weight=10, drift_weight=0.001)
LAZY = LossConfig(r1_interval=2, path_weight=2, path_interval=2)
CASES: dict[str, tuple[str, LossConfig, float, int, int]] = {
    "stylegan at 8 px": ("stylegan", LossConfig(), 1.0, 4, 0),
    "stylegan fading": ("stylegan", LossConfig(r2_gamma=1), 0.4, 4, 0),
    "stylegan with labels": ("stylegan", LossConfig(), 0.0, 4, 3),
    "stylegan, lazy": ("stylegan", LAZY, 0.4, 4, 0),
    "stylegan, wgan-gp": ("stylegan", WGAN_GP, 0.4, 4, 0),
    "stylegan2": ("stylegan2-skip-residual", LossConfig(), 0.0, 4, 0),
    "stylegan2 with labels": ("stylegan2-residual-skip", LAZY, 0.0, 4, 3),
    "stylegan2 growing": ("stylegan2-growing-growing", LAZY, 0.4, 4, 0),
    "pggan with classes": ("pggan", WGAN_GP, 0.4, 4, 3),
    "dcgan": ("dcgan", PLAIN, 0.0, 1, 0),
    "gan with dropout": ("gan", PLAIN, 0.0, 1, 0),
}
"""(networks, loss, lod, images D looks at together, label size)."""


def gradients_of(case: str, dtype: torch.dtype, **split: int) -> dict[str, torch.Tensor]:
    """Those of one global batch, from the same state."""
    variant, loss, lod, group, label_size = CASES[case]
    state = make_state(dtype, variant, loss, label_size)
    step_once(state, Split(group=group, **split), loss, lod, lr=0)
    return gradients(state)


@pytest.mark.parametrize("case", [case for case in CASES if case != "dcgan"])
def test_micro_batches_have_the_gradients_of_the_whole_batch(case):
    """Batch normalization is refused there: the whole batch is what it normalizes over."""
    for dtype, micro_batch in ((torch.float64, 12), (torch.float32, 4)):
        whole = gradients_of(case, dtype)
        parts = gradients_of(case, dtype, micro_batch=micro_batch)
        assert_equal_gradients(parts, whole, f"micro-batches of {micro_batch}")


def _runs() -> list[tuple[int, str, torch.dtype]]:
    """Every case on 3 workers (shares of 3, 3 and 2 groups) and on 4; some on 2 and in float32."""
    runs = [(world, case, torch.float64) for world in (3, 4) for case in CASES]
    some = ["stylegan fading", "stylegan2 with labels", "dcgan"]
    runs += [(2, case, torch.float64) for case in some]
    return runs + [(world, case, torch.float32) for world in (2, 3, 4) for case in some]


def _save_gradients(rank: int, ports: list[int], folder: Path) -> None:
    for world, port in zip((2, 3, 4), ports, strict=True):
        if rank >= world:
            continue
        with ProcessGroup(rank, world, port):
            for number, (of_world, case, dtype) in enumerate(_runs()):
                if of_world == world:
                    found = gradients_of(case, dtype, world=world, rank=rank)
                    if rank == world - 1:
                        torch.save(found, folder / f"{number}.pt")


def test_any_number_of_workers_has_the_gradients_of_one(tmp_path):
    run_ranks(_save_gradients, 4, [free_port() for _ in range(3)], tmp_path)
    for number, (world, case, dtype) in enumerate(_runs()):
        found = torch.load(tmp_path / f"{number}.pt")
        what = f"{case} on {world} workers, {dtype}"
        assert_equal_gradients(found, gradients_of(case, dtype), what)


EVERY_STEP = LossConfig(r1_interval=2, path_weight=2, path_interval=1)


def _unequal_parts(rank: int, port: int, folder: Path) -> None:
    """12 images on 2 workers in micro-batches of 4: two parts and one."""
    with ProcessGroup(rank, 2, port):
        state = make_state(torch.float64, "stylegan2-skip-residual", EVERY_STEP)
        split = Split(world=2, rank=rank, micro_batch=4)
        step_once(state, split, EVERY_STEP, 0.0, lr=0, batch=12, times=3)
        if rank == 1:
            torch.save(gradients(state) | {"G.path": state.path_mean}, folder / "found.pt")


def test_workers_with_different_numbers_of_micro_batches_keep_their_collectives_in_order(tmp_path):
    """Path lengths need their mean before the first backward; three steps, since DDP's first
    backward differs from its later ones."""
    run_ranks(_unequal_parts, 2, free_port(), tmp_path)
    state = make_state(torch.float64, "stylegan2-skip-residual", EVERY_STEP)
    step_once(state, Split(), EVERY_STEP, 0.0, lr=0, batch=12, times=3)
    expected = gradients(state) | {"G.path": state.path_mean}
    assert_equal_gradients(torch.load(tmp_path / "found.pt"), expected, "2 + 1 micro-batches")


@pytest.mark.parametrize("variant", ["stylegan2-skip-residual", "dcgan"])
def test_one_bad_minibatch_spoils_no_moving_average(variant):
    """w_avg, the mean path length and batch statistics stay, and the next update goes through."""
    loss = EVERY_STEP if variant != "dcgan" else PLAIN
    state = make_state(torch.float32, variant, loss)
    group = 4 if variant != "dcgan" else 1
    step = TrainingStep(
        state, loss=loss, config=StepConfig(mixing_prob=1), split=Split(group=group)
    )
    step.enter(phase(0.0))
    share = torch.from_numpy(Split(group=group).parts(BATCH)[0])
    draws = SplitDraws(state.G, state.D, [share], 0.0)
    part = Part(reals=reals_of(0.0, torch.float32, BATCH)[share])
    step([part], draws, phase(0.0))
    step([part], Spoiled(draws), phase(0.0))
    dropped = float(state.G_opt.skipped)
    assert dropped >= 1
    assert all(torch.isfinite(value).all() for value in state.tensors().values())
    assert torch.isfinite(state.path_mean)

    step([part], draws, phase(0.0))
    assert float(state.G_opt.skipped) == dropped


class Spoiled:
    """Draws with an infinite latent and infinite path noise."""

    def __init__(self, draws: SplitDraws) -> None:
        self.draws = draws
        self.judging = draws.judging

    def fakes(self, step: int, part: int) -> GeneratorDraws:
        drawn = self.draws.fakes(step, part)
        z = drawn.z.clone()
        z[0, 0] = float("nan")
        return replace(drawn, z=z)

    def path_noise(self, part: int) -> torch.Tensor:
        return self.draws.path_noise(part) * float("inf")


def test_the_precision_of_a_run_may_change_between_its_commits():
    plain, scaled = (
        Adam({"w": torch.nn.Parameter(torch.ones(2))}, OptimizerConfig(), scaled=scaled)
        for scaled in (False, True)
    )
    first = float(scaled.scale)
    scaled.load(plain.tensors())
    plain.load(scaled.tensors())
    assert float(scaled.scale) == first


def test_blocks_that_are_not_yet_grown_stay_as_they_are():
    state = make_state()
    before = copy.deepcopy(state.tensors())
    step_once(state, Split(), LossConfig(), 1.0, lr=0.01)
    after = state.tensors()
    for name in ("G.synthesis.blocks.16.conv0.weight", "D.blocks.16.conv0.weight"):
        assert torch.equal(before[name], after[name])
    for name in ("G.synthesis.blocks.8.conv0.weight", "D.blocks.8.conv0.weight"):
        assert not torch.equal(before[name], after[name])


def test_the_average_follows_G_as_it_was_before_its_step():
    state = make_state()
    start = state.G.synthesis.blocks["4"].const.detach().clone()
    step = TrainingStep(
        state,
        loss=LossConfig(),
        config=StepConfig(mixing_prob=1, average_half_life_kimg=BATCH / 1000),
        split=Split(),
    )
    parts = [torch.from_numpy(part) for part in Split().parts(BATCH)]
    draws = SplitDraws(state.G, state.D, parts, 0.0)
    for number in range(2):
        step.enter(phase(0.0))
        before = state.G.synthesis.blocks["4"].const.detach().clone()
        _, w_sum = generate(state.G, draws.fakes(D_STEP, 0), None, 0.0)
        w_avg = torch.lerp(w_sum / BATCH, state.G.w_avg, step.config.w_avg_beta)

        step([Part(reals=reals_of(0.0, torch.float32, BATCH))], draws, phase(0.0))

        expected = start if number == 0 else start + (before - start) / 2
        torch.testing.assert_close(state.Gs.synthesis.blocks["4"].const, expected)
        # Its w_avg is a copy from between the two steps, each of which moves G's.
        torch.testing.assert_close(state.Gs.w_avg, w_avg)
        assert not torch.equal(state.Gs.w_avg, state.G.w_avg)


def test_a_gradient_that_is_not_finite_drops_the_update_and_is_counted():
    state = make_state()
    step = TrainingStep(state, loss=LossConfig(), config=StepConfig(mixing_prob=1), split=Split())
    step.enter(phase(0.0))
    before = {name: value.clone() for name, value in state.tensors().items()}
    reals = reals_of(0.0, torch.float32, BATCH)
    reals[3, 0, 0, 0] = float("nan")
    parts = [torch.from_numpy(part) for part in Split().parts(BATCH)]
    step([Part(reals=reals)], SplitDraws(state.G, state.D, parts, 0.0), phase(0.0))
    after = state.tensors()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("D."))
    assert step.summary()["skipped/D"] == 1
    assert float(state.D_opt.count) == 0


def test_optimizers_begin_anew_when_a_level_enters_and_when_it_is_complete():
    state = make_state()
    entered = [state.enter(phase(lod)) for lod in (1.0, 1.0, 0.9, 0.1, 0.0, 0.0)]
    assert entered == [True, False, True, False, True, False]


def test_a_state_goes_through_tensors_and_scalars_unchanged():
    state = make_state()
    step_once(state, Split(), LossConfig(), 0.4, lr=0.001)
    tensors = {name: value.clone() for name, value in state.tensors().items()}
    other = make_state()
    other.load(tensors, state.scalars())
    assert other.scalars() == state.scalars()
    for name, value in other.tensors().items():
        assert torch.equal(value, tensors[name]), name


def test_a_state_of_another_network_is_refused_by_name():
    state = make_state()
    tensors = state.tensors()
    tensors["G.w_avg"] = torch.zeros(9)
    with pytest.raises(ValueError, match=r"G is another network: w_avg \(9,\) instead of \(8,\)"):
        make_state().load(tensors, state.scalars())
