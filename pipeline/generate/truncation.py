"""`truncation`: images on their way to the mean and beyond (Karras et al. 2019, Figure 8)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline import grids
from pipeline.generate.options import CELL_PX, add_command, parse_seeds, save, tracked
from pipeline.model import Model
from stylegan.sample import to_uint8

PSIS = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)
_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --out truncation.png
  %(prog)s --model ffhq.pkl --seeds 6,25 --psi 1 0.5 0 -0.5 -1 --cutoff 8 --out truncation.png

A row for each seed: psi = 1 is the image itself, 0 the mean image, below 0 an opposite."""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "truncation",
        run=run,
        summary="images of seeds at different psi, from 1 to -1",
        examples=_EXAMPLES,
    )
    parser.add_argument("--seeds", type=parse_seeds, default="0-3", help="rows (%(default)s)")
    parser.add_argument(
        "--psi", type=float, nargs="+", default=PSIS, help="columns (1 0.7 0.5 0 -0.5 -1)"
    )
    parser.add_argument("--cutoff", type=int, help="truncate only so many layers, coarsest first")
    parser.add_argument("--label", type=int, help="class, where the network has labels")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")


def run(model: Model, args: argparse.Namespace) -> str:
    """Draw the table and write it."""
    figure = table(model, args.seeds, psis=args.psi, labels=args.label, cutoff=args.cutoff)
    return f"truncation in {save(figure, args.out)}"


def table(
    model: Model, seeds: Sequence[int], *, psis: Sequence[float] = PSIS, **options: Any
) -> Image.Image:
    """Seeds from top to bottom, psi from left to right.

    Args:
        model: A generator with a mapping network.
        seeds: Of the rows.
        psis: Of the columns.
        options: See `Model.styles`.
    """
    rows = []
    for seed in tracked(seeds, "truncation"):
        ws = [model.styles([seed], psi=psi, **options) for psi in psis]
        rows.append(to_uint8(model.synthesis(torch.cat(ws))).cpu())
    names = [f"psi {psi:g}" for psi in psis]
    return grids.table(rows, at_least_px=CELL_PX, labels=[*[[]] * (len(rows) - 1), names])
