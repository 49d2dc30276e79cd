"""Real images as the networks take them, against closed forms and the official numbers."""

import re

import numpy as np
import pytest
import torch

from stylegan.reals import prepare_reals
from stylegan.resample import blocky_up
from tests.goldens import arrays, said, sets


def test_bytes_span_minus_one_to_one():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)

    reals = prepare_reals(values, None, 0.0).flatten()

    assert reals.dtype == torch.float32
    assert (reals[0], reals[-1]) == (-1, 1)
    torch.testing.assert_close(reals.diff(), torch.full((255,), 2 / 255), atol=1e-6, rtol=0)


def test_only_the_images_asked_for_are_mirrored():
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)

    mirrored = prepare_reals(images, torch.tensor([True, False, True]), 0.0)

    plain = prepare_reals(images, None, 0.0)
    assert torch.equal(mirrored[[0, 2]], plain[[0, 2]].flip(3))
    assert torch.equal(mirrored[1], plain[1])


def test_a_fade_begins_with_blocks_and_ends_with_the_image():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    sharp = prepare_reals(images, None, 1.0)
    early = prepare_reals(images, None, 1.9999)
    blocks = early[:, :, ::2, ::2]

    assert torch.equal(sharp, prepare_reals(images, None, 0.0))
    torch.testing.assert_close(early, blocky_up(blocks), atol=1e-3, rtol=0)


def _levels(images: np.ndarray, level: int) -> torch.Tensor:
    """The data set's level of an image: unrounded means, rounded half to even once."""
    side = images.shape[-1] >> level
    blocks = images.reshape(*images.shape[:2], side, 1 << level, side, 1 << level)
    means = blocks.astype(np.float64).mean(axis=(3, 5))
    return torch.from_numpy(np.rint(means).astype(np.uint8))


@pytest.mark.parametrize("name", sets("F1_*") + sets("F5_*"))
def test_golden_reals_at_every_lod(name: str):
    golden = arrays(name)
    checked = 0
    for key, expected in golden.items():
        match = re.fullmatch(r"out/lod([\d.]+)(_mirror)?", key)
        if not match:
            continue
        lod = float(match[1])
        mirror = None
        if match[2]:
            mirror = torch.from_numpy(_mirror_draws(name, key).reshape(-1) >= 0.5)
        reals = prepare_reals(_levels(golden["in/u8"], int(lod)), mirror, lod)
        full_size = blocky_up(reals, 2 ** int(lod))
        np.testing.assert_allclose(full_size, expected, atol=1e-6, rtol=0, err_msg=key)
        checked += 1
    assert checked


def _mirror_draws(name: str, key: str) -> np.ndarray:
    """Stored, or told in the description of the array."""
    stored = arrays(name).get("in/mirror_draws")
    if stored is not None:
        return stored
    return np.array([float(draw) for draw in said(name, key, r"draws \[([^\]]+)\]").split(",")])


@pytest.mark.parametrize("name", sets("F1_*"))
def test_golden_dynamic_range(name: str):
    table = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)

    reals = prepare_reals(table, None, 0.0).flatten()

    expected = arrays(name)["out/dynamic_range_table"]
    np.testing.assert_allclose(reals, expected, atol=1e-6, rtol=0)
