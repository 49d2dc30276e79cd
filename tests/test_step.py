"""The training step on any split of the global batch, with real process groups."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan.draws import PATH_STEP, DiscriminatorDraws, Draws, GeneratorDraws, Purpose
from stylegan.networks.stylegan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.objective import LossConfig
from stylegan.optimizer import OptimizerConfig
from stylegan.schedule import Phase
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part, StepConfig, TrainingStep
from tests.processes import ProcessGroup, free_port, run_ranks

BATCH = 32
SIZES = {"resolution": 16, "fmap_base": 64, "fmap_max": 8}


def make_state(dtype: torch.dtype = torch.float32) -> TrainState:
    G = Generator(GeneratorConfig(**SIZES, z_size=8, w_size=8, mapping_width=8), seed=1)
    D = Discriminator(DiscriminatorConfig(**SIZES), seed=2)
    return TrainState(G.to(dtype), D.to(dtype), OptimizerConfig())


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


class SplitDraws:
    """Our own random numbers for the parts of one worker, in the type of the networks."""

    def __init__(self, network: Generator, parts: list[np.ndarray], lod: float) -> None:
        self.network, self.lod = network, lod
        self.indices = [torch.from_numpy(part) for part in parts]

    def fakes(self, step: int, part: int) -> GeneratorDraws:
        indices = self._indices(step, part)
        drawn = Draws(seed=0).generator(
            step,
            indices,
            first_index=0,
            z_size=self.network.config.z_size,
            noise_sides=self.network.noise_sides(self.lod),
            layers=self.network.layers(self.lod),
            mixing_prob=1.0,
        )
        dtype = self.network.w_avg.dtype
        return GeneratorDraws(
            z=drawn.z.to(dtype),
            z_mix=None if drawn.z_mix is None else drawn.z_mix.to(dtype),
            cutoff=drawn.cutoff,
            noise=[noise.to(dtype) for noise in drawn.noise],
        )

    def judging(self, step: int, part: int) -> DiscriminatorDraws:
        mix = Draws(seed=0).gp_mix(self.indices[part]).to(self.network.w_avg)
        return DiscriminatorDraws(gp_mix=mix)

    def path_noise(self, part: int) -> torch.Tensor:
        indices, side = self._indices(PATH_STEP, part), 16 >> int(self.lod)
        noise = Draws(seed=0).normal(Purpose.PATH_NOISE, indices=indices, count=3 * side * side)
        return noise.unflatten(1, (3, side, side)).to(self.network.w_avg)

    def _indices(self, step: int, part: int) -> torch.Tensor:
        indices = self.indices[part]
        return indices[: len(indices) // 2] if step == PATH_STEP else indices


def reals_of(lod: float, dtype: torch.dtype, batch: int = BATCH) -> torch.Tensor:
    side = 16 >> int(lod)
    rng = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, side, side, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1


def step_once(state: TrainState, split: Split, loss: LossConfig, lod: float, lr: float) -> None:
    """One minibatch of this split's share."""
    step = TrainingStep(state, loss=loss, config=StepConfig(mixing_prob=1), split=split)
    step.enter(phase(lod, lr))
    parts = split.parts(BATCH)
    reals = reals_of(lod, state.G.w_avg.dtype)
    step(
        [Part(reals=reals[torch.from_numpy(part)]) for part in parts],
        SplitDraws(state.G, parts, lod),
        phase(lod, lr),
    )


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


LOSSES = {
    "r1": LossConfig(),
    "lazy": LossConfig(r1_interval=2, path_weight=2, path_interval=2),
    "wgan-gp": LossConfig(adversarial="wgan", r1_gamma=0, wgan_gp_weight=10, drift_weight=0.001),
}
LODS = (1.0, 0.4, 0.0)


@pytest.mark.parametrize(
    ("loss", "lod", "dtype", "micro_batch"),
    [
        ("r1", 1.0, torch.float64, 4),
        ("r1", 0.4, torch.float64, 12),
        ("r1", 0.4, torch.float32, 4),
        ("lazy", 0.4, torch.float64, 12),
        ("lazy", 0.0, torch.float32, 4),
        ("wgan-gp", 0.4, torch.float64, 12),
        ("wgan-gp", 0.0, torch.float32, 4),
    ],
)
def test_micro_batches_have_the_gradients_of_the_whole_batch(loss, lod, dtype, micro_batch):
    whole, parts = make_state(dtype), make_state(dtype)
    step_once(whole, Split(), LOSSES[loss], lod, lr=0)
    step_once(parts, Split(micro_batch=micro_batch), LOSSES[loss], lod, lr=0)
    assert_equal_gradients(gradients(parts), gradients(whole), "micro-batches")


def _save_gradients(rank: int, ports: list[int], folder: Path) -> None:
    for world, port in zip((2, 3, 4), ports, strict=True):
        if rank >= world:
            continue
        with ProcessGroup(rank, world, port):
            for dtype in (torch.float32, torch.float64):
                for lod in LODS:
                    for micro_batch in (0, 4):
                        state = make_state(dtype)
                        split = Split(world=world, rank=rank, micro_batch=micro_batch)
                        step_once(state, split, LOSSES["r1"], lod, lr=0)
                        if rank == world - 1:
                            name = f"{world}-{lod}-{dtype}-{micro_batch}.pt"
                            torch.save(gradients(state), folder / name)


def test_any_number_of_workers_has_the_gradients_of_one(tmp_path):
    run_ranks(_save_gradients, 4, [free_port() for _ in range(3)], tmp_path)
    expected = {}
    for path in sorted(tmp_path.iterdir()):
        _, lod, dtype, _ = path.stem.split("-")
        key = lod, dtype
        if key not in expected:
            state = make_state(getattr(torch, dtype.removeprefix("torch.")))
            step_once(state, Split(), LOSSES["r1"], float(lod), lr=0)
            expected[key] = gradients(state)
        assert_equal_gradients(torch.load(path), expected[key], path.stem)
    assert len(expected) == 6


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
    parts = Split().parts(BATCH)
    for number in range(2):
        step.enter(phase(0.0))
        before = state.G.synthesis.blocks["4"].const.detach().clone()
        step(
            [Part(reals=reals_of(0.0, torch.float32))], SplitDraws(state.G, parts, 0.0), phase(0.0)
        )
        expected = start if number == 0 else start + (before - start) / 2
        torch.testing.assert_close(state.Gs.synthesis.blocks["4"].const, expected)
    assert torch.equal(state.Gs.w_avg, state.Gs.w_avg)


def test_a_gradient_that_is_not_finite_drops_the_update_and_is_counted():
    state = make_state()
    step = TrainingStep(state, loss=LossConfig(), config=StepConfig(mixing_prob=1), split=Split())
    step.enter(phase(0.0))
    before = {name: value.clone() for name, value in state.tensors().items()}
    reals = reals_of(0.0, torch.float32)
    reals[3, 0, 0, 0] = float("nan")
    parts = Split().parts(BATCH)
    step([Part(reals=reals)], SplitDraws(state.G, parts, 0.0), phase(0.0))
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
