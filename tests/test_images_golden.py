"""Levels, orders, bytes and grids of images against the official tools (golden sets F2 and F3).

Each expected array belongs to the one check whose pattern matches its key.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from data_prep.pyramid import pyramid
from pipeline import grids
from stylegan.reals import prepare_reals
from stylegan.sample import to_uint8
from tests.goldens import arrays, said, sets


def check_level(name: str, key: str, side: str):
    """One key stands for all levels: an image has those that the set has, bit for bit."""
    golden = arrays(name)
    sides = sorted(int(m[1]) for k in golden if (m := re.fullmatch(r"out/res(\d+)", k)))
    for number, image in enumerate(golden["in/u8"]):
        levels = {level.shape[0]: level for level in pyramid(image.transpose(1, 2, 0))}
        assert sorted(levels) == sides
        level = levels[int(side)].transpose(2, 0, 1)
        np.testing.assert_array_equal(level, golden[key][number])


def check_order(name: str, key: str, count: str):
    """The official exporter's, from NumPy's legacy generator, as our latents of seeds are."""
    order = np.arange(int(count))
    np.random.RandomState(int(said(name, key, r"RandomState\((\d+)\)"))).shuffle(order)

    np.testing.assert_array_equal(order, arrays(name)[key])


def check_bytes(name: str, key: str, shrink: str | None):
    images = avg_pool2d(torch.from_numpy(arrays(name)["in/x"]), int(shrink or 1))

    np.testing.assert_array_equal(to_uint8(images), arrays(name)[key])


def check_bytes_of_zero_to_one(name: str, key: str):
    """x * 255 + 0.5 is (2x - 1) * 127.5 + 128."""
    x = torch.from_numpy(arrays(name)["in/x"])

    np.testing.assert_array_equal(to_uint8(2 * x - 1), arrays(name)[key])


def check_bytes_of_png_grids(name: str, key: str):
    golden = arrays(name)
    x = torch.from_numpy(golden["in/x"].reshape(golden[key].shape))

    np.testing.assert_array_equal(to_uint8(x[None], halves="even")[0], golden[key])


def check_network_range(name: str, key: str):
    """This official function has an offset bug and no use (notes of F3); ours is what G learns."""
    expected = arrays(name)[key]
    values = torch.arange(expected.size, dtype=torch.uint8).reshape(expected.shape)

    official = prepare_reals(values, None, 0.0) + 1 + 2 / 255
    np.testing.assert_allclose(official, expected, rtol=0, atol=1e-6)


def check_grid(name: str, key: str, size: str):
    """Ours is of bytes, has as many rows as it needs, and is white where there is no image."""
    images = to_uint8(torch.from_numpy(arrays(name)["in/grid_images"]))
    n, channels, height, width = images.shape
    official = torch.from_numpy(arrays(name)[key])
    columns, rows = official.shape[2] // width, official.shape[1] // height
    assert size in ("auto", f"{columns}x{rows}")

    grid = grids.grid(images, columns=0 if size == "auto" else columns, margin_px=0)

    ours = torch.from_numpy(np.array(grid)).permute(2, 0, 1)
    assert ours.shape[1:] == (-(-n // columns) * height, columns * width)
    for index in range(columns * rows):
        y, x = index // columns * height, index % columns * width
        expected = official[:, y : y + height, x : x + width]
        if index < n:
            actual = ours[:channels, y : y + height, x : x + width]
            assert torch.equal(actual, to_uint8(expected[None])[0])
        else:
            assert not expected.any()


CHECKS: dict[str, Callable[..., None]] = {
    r"F2 out/res(\d+)": check_level,
    r"F2 out/shuffle_order_(\d+)": check_order,
    r"F3 out/convert_to_uint8(?:_shrink(\d+))?": check_bytes,
    r"F3 out/convert_to_uint8_drange01": check_bytes_of_zero_to_one,
    r"F3 out/pil_uint8": check_bytes_of_png_grids,
    r"F3 out/from_uint8": check_network_range,
    r"F3 out/grid_(auto|\d+x\d+)": check_grid,
}
"""By pattern of set and key."""


def expected_keys() -> list[tuple[str, str]]:
    return [(n, k) for n in sets("F[23]_*") for k in arrays(n) if k.startswith("out/")]


@pytest.mark.parametrize(("name", "key"), expected_keys())
def test_golden_array_of_images(name: str, key: str):
    subject = f"{name[:2]} {key}"
    found = [(c, m) for pattern, c in CHECKS.items() if (m := re.fullmatch(pattern, subject))]
    assert len(found) == 1, f"{len(found)} checks for {subject}"
    ((check, match),) = found
    check(name, key, *match.groups())
