"""Random numbers as functions of (seed, purpose, attempt, global image index)."""

import math

import pytest
import torch

from stylegan.draws import (
    D_STEP,
    G_STEP,
    MAX_ATTEMPT,
    MAX_SEED,
    Draws,
    Purpose,
    normal_of_bits,
    philox,
)

# Known answers of Random123's kat_vectors for philox4x32-10: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
INDICES = torch.arange(1000)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = philox([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in words) == expected


def test_normals_follow_the_quantile_function_over_their_whole_range():
    bits = torch.arange(0, 2**32, 65_537)
    magnitude = -torch.special.ndtri(((bits & 0x7FFFFFFF).double() + 0.5) / 2**32)
    expected = torch.where(bits >> 31 == 1, -magnitude, magnitude)
    assert float((normal_of_bits(bits) - expected).abs().max()) < 1e-5


def test_the_largest_normal_is_where_the_smallest_probability_lies():
    ends = normal_of_bits(torch.tensor([0, 2**31, 2**31 - 1, 2**32 - 1]))
    assert ends[0] == pytest.approx(6.338, abs=1e-3)
    assert ends[1] == -ends[0]
    assert abs(float(ends[2])) < 1e-6
    assert abs(float(ends[3])) < 1e-6


def test_normals_have_the_moments_of_the_normal_distribution():
    x = Draws(seed=3).normal(Purpose.Z, indices=INDICES, count=1024).double()
    error = 5 / math.sqrt(x.numel())
    assert float(x.mean()) == pytest.approx(0, abs=error)
    assert float(x.square().mean()) == pytest.approx(1, abs=2 * error)
    assert float(x.pow(3).mean()) == pytest.approx(0, abs=4 * error)
    assert float(x.pow(4).mean()) == pytest.approx(3, abs=10 * error)
    # Neighbouring images and neighbouring numbers know nothing of each other.
    assert float((x[1:] * x[:-1]).mean()) == pytest.approx(0, abs=error)
    assert float((x[:, 1:] * x[:, :-1]).mean()) == pytest.approx(0, abs=error)


def test_an_image_draws_the_same_numbers_whatever_else_is_in_the_batch():
    draws = Draws(seed=7)
    together = draws.normal(Purpose.Z, indices=INDICES, count=30)
    alone = draws.normal(Purpose.Z, indices=INDICES[411:412], count=30)
    assert torch.equal(together[411:412], alone)


def test_positions_can_be_drawn_from_the_middle():
    draws = Draws(seed=7)
    whole = draws.bits(Purpose.NOISE, indices=INDICES[:3], count=64)
    assert torch.equal(
        draws.bits(Purpose.NOISE, indices=INDICES[:3], count=24, start=40), whole[:, 40:]
    )
    with pytest.raises(ValueError, match="multiple of 4"):
        draws.bits(Purpose.NOISE, indices=INDICES[:3], count=4, start=2)


def test_seed_purpose_step_attempt_and_index_each_give_other_numbers():
    def first(seed: int = 1, attempt: int = 0, purpose=Purpose.Z, step: int = 0, index: int = 0):
        draws = Draws(seed=seed, attempt=attempt)
        return draws.bits(purpose, step=step, indices=torch.tensor([index]), count=4)

    variants = [
        first(),
        first(seed=2),
        first(attempt=1),
        first(purpose=Purpose.Z_MIX),
        first(step=1),
        first(index=1),
        first(index=2**32),
    ]
    assert len({tuple(numbers.flatten().tolist()) for numbers in variants}) == len(variants)


def test_no_two_purposes_and_steps_share_a_key():
    keys = {2 * purpose + step for purpose in Purpose for step in (D_STEP, G_STEP)}
    assert len(keys) == 2 * len(Purpose)


def test_the_numbers_of_a_seed_never_change():
    draws = Draws(seed=2024, attempt=3)
    indices = torch.tensor([0, 25_000_000])
    assert draws.bits(Purpose.Z, indices=indices, count=3).tolist() == [
        [853762773, 2120558014, 874987587],
        [4141611153, 610751071, 1056369480],
    ]


def test_a_layer_has_the_same_noise_at_every_level_of_detail():
    draws = Draws(seed=0)
    sides = [4, 4, 8, 8, 16, 16]
    few = draws.noise(Purpose.NOISE, indices=INDICES[:5], sides=sides[:2])
    many = draws.noise(Purpose.NOISE, indices=INDICES[:5], sides=sides)
    assert [tuple(noise.shape) for noise in many] == [(5, 1, side, side) for side in sides]
    for a, b in zip(few, many, strict=False):
        assert torch.equal(a, b)


def _generator(draws: Draws, first: int, mixing_prob: float, reached: int = 8):
    return draws.generator(
        D_STEP,
        torch.arange(first, first + 4),
        first_index=first,
        z_size=8,
        noise_sides=(4, 4, 8, 8, 16, 16, 32, 32)[:reached],
        layers=reached,
        mixing_prob=mixing_prob,
    )


def test_style_mixing_draws_one_coin_and_one_cutoff_a_minibatch():
    """Nine of ten minibatches are mixed, from a layer that is uniform in [1, reached)."""
    drawn = [_generator(Draws(seed=5), 4 * i, 0.9).cutoff for i in range(2000)]
    assert all(len(set(cutoff.tolist())) == 1 for cutoff in drawn)
    counts = torch.stack(drawn)[:, 0].bincount(minlength=9).tolist()
    assert counts[0] == 0
    assert counts[8] == pytest.approx(200, abs=60)
    for layer in range(1, 8):
        assert counts[layer] == pytest.approx(1800 / 7, abs=70)


def test_without_style_mixing_there_is_no_second_latent():
    drawn = _generator(Draws(seed=5), 0, 0.0, reached=4)
    assert drawn.z_mix is None
    assert drawn.cutoff.tolist() == [4] * 4
    assert len(drawn.noise) == 4


def test_half_of_the_images_are_mirrored():
    assert float(Draws(seed=0).mirror(INDICES).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_label_samples_cover_the_data_set_evenly():
    samples = Draws(seed=0).samples(torch.arange(20_000), samples=10)
    assert samples.bincount(minlength=10).tolist() == pytest.approx([2000] * 10, abs=250)


@pytest.mark.parametrize(
    ("seed", "attempt", "message"),
    [
        (-1, 0, "seed is -1"),
        (MAX_SEED + 1, 0, f"choose from 0 to {MAX_SEED}"),
        (0, MAX_ATTEMPT + 1, "attempt is 65536"),
    ],
)
def test_keys_that_would_wrap_are_refused(seed, attempt, message):
    with pytest.raises(ValueError, match=message):
        Draws(seed=seed, attempt=attempt)
