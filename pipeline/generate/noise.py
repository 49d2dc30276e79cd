"""`noise`: what is left to chance (Karras et al. 2019, Figures 4 and 5)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline import grids
from pipeline.generate.options import (
    CELL_PX,
    add_command,
    add_truncation,
    parse_seeds,
    save,
    tracked,
    truncation,
)
from pipeline.model import Model
from stylegan.sample import noise_inputs, to_uint8

_TOGETHER = 8
_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --out noise.png
  %(prog)s --model ffhq.pkl --seeds 7 --count 100 --out noise.png

Two rows for each seed. The first: three images that differ in nothing but noise, and the standard
deviation of each pixel over --count of them. The second: noise in all layers, in none, in the fine
half of the layers alone and in the coarse half alone (at 1024 px: 64-1024 px and 4-32 px)."""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "noise",
        run=run,
        summary="stochastic variation: examples, deviation, and which layers it comes from",
        examples=_EXAMPLES,
    )
    parser.add_argument("--seeds", type=parse_seeds, default="0-1", help="(%(default)s)")
    parser.add_argument(
        "--count", type=int, default=100, help="images of the deviation (%(default)s)"
    )
    add_truncation(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")


def run(model: Model, args: argparse.Namespace) -> str:
    """Draw the table and write it."""
    figure = table(model, args.seeds, count=args.count, **truncation(args))
    return f"stochastic variation in {save(figure, args.out)}"


def table(model: Model, seeds: Sequence[int], *, count: int = 100, **options: Any) -> Image.Image:
    """Two rows for each seed; see the examples.

    Args:
        model: A generator with noise inputs.
        seeds: Of the images.
        count: Images that the deviation is taken over.
        options: See `Model.styles`.
    """
    if count < 2:
        raise ValueError(f"count is {count}; a deviation takes 2 images or more")
    rows: list[list[Tensor]] = []
    names = []
    for seed in tracked(seeds, "stochastic variation"):
        ws = model.styles([seed], **options)
        examples, deviation = variation(model, ws, seed=seed, count=count)
        white = max(float(deviation.max()), 1e-6)
        shown = (deviation * (255 / white)).to(torch.uint8).expand_as(examples[0])
        rows += [[*examples, shown], list(by_layers(model, ws, seed=seed))]
        names += [
            [*(f"noise {i}" for i in range(len(examples))), f"std of {count}, white {white:.0f}"],
            layer_names(model),
        ]
    return grids.table(rows, at_least_px=2 * CELL_PX, labels=names)


def variation(
    model: Model, ws: Tensor, *, seed: int, count: int, examples: int = 3
) -> tuple[Tensor, Tensor]:
    """The first images of one w with drawn noise, and the deviation of all.

    Returns:
        uint8 [n c h w], and [1 h w]: the standard deviation of each pixel in units of a byte, its
        mean over colours.
    """
    shown: list[Tensor] = []
    total: Any = 0.0
    squares: Any = 0.0
    for start in range(0, count, _TOGETHER):
        drawn = [
            _noise(model, seed, variation=i) for i in range(start, min(start + _TOGETHER, count))
        ]
        maps = [torch.cat(layer) for layer in zip(*drawn, strict=True)]
        images = to_uint8(model.synthesis(ws.expand(len(drawn), -1, -1), noise=maps)).cpu()
        shown += list(images[: max(examples - len(shown), 0)])
        total = total + images.double().sum(dim=0)
        squares = squares + images.double().square().sum(dim=0)
    deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
    return torch.stack(shown), deviation.mean(dim=0, keepdim=True)


def by_layers(model: Model, ws: Tensor, *, seed: int) -> Tensor:
    """Images with noise in all layers, in none, in the fine and in the coarse half."""
    drawn = _noise(model, seed)
    first = first_fine([layer.shape[2] for layer in drawn])
    fine = [layer.shape[2] >= first for layer in drawn]
    chosen = [[True] * len(fine), [False] * len(fine), fine, [not on for on in fine]]
    maps = [
        torch.cat([layer * on for on in column])
        for layer, column in zip(drawn, zip(*chosen, strict=True), strict=True)
    ]
    return to_uint8(model.synthesis(ws.expand(len(chosen), -1, -1), noise=maps)).cpu()


def layer_names(model: Model) -> list[str]:
    """What the images of `by_layers` are."""
    sides = sorted(set(model.Gs.noise_sides(model.lod)))
    first = first_fine(sides)
    fine, coarse = [s for s in sides if s >= first], [s for s in sides if s < first]
    halves = (f"noise at {half[0]}-{half[-1]} px" for half in (fine, coarse))
    return ["noise in all layers", "no noise", *halves]


def first_fine(sides: Sequence[int]) -> int:
    """Side where the finer half of the resolutions begins: 64 px of 1024, as in the paper."""
    every = sorted(set(sides))
    return every[len(every) // 2]


def _noise(model: Model, seed: int, variation: int = 0) -> list[Tensor]:
    maps = noise_inputs(model.Gs, [seed], "random", variation=variation, lod=model.lod)
    assert maps is not None, "drawn noise has maps"
    return maps
