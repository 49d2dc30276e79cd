"""`mix`: the style-mixing table of StyleGAN (Karras et al. 2019, Figure 3)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from stylegan.sample import to_uint8

PAPER = {"coarse": [5, 6, 7], "middle": [8, 9], "fine": [10]}
"""Rows of each kind, with their seeds unless others are named."""
SIDES = {"coarse": "4-8 px", "middle": "16-32 px", "fine": "64 px up"}
_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --out mixing.png
  %(prog)s --model models/faces --columns 0-4 --rows coarse=5-7 --rows fine=8 --out mixing.png
  %(prog)s --model models/faces --columns 0-4 --rows 2-5=10-12 --psi 1 --out mixing.png

Sources A stand above the columns, sources B left of the rows. Each image has the styles of its
source B in the layers of its row, and those of its source A in the others: coarse is 4 and 8 px,
middle 16 and 32 px, fine 64 px and above, 2-5 are layers by number."""

Rows = Sequence[tuple[str, Sequence[int]]]


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "mix",
        run=run,
        summary="a table of images with the styles of two sources",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--columns",
        type=parse_seeds,
        default="0-4",
        metavar="SEEDS",
        help="sources A (%(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=_rows,
        action="append",
        metavar="LAYERS=SEEDS",
        help="sources B and the layers they give, again for more "
        "(coarse=5-7 middle=8,9 fine=10, as far as the network has them)",
    )
    add_truncation(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")


def run(model: Model, args: argparse.Namespace) -> str:
    """Draw the table and write it."""
    figure = table(model, args.columns, args.rows, **truncation(args))
    return f"style mixing in {save(figure, args.out)}"


def table(
    model: Model, columns: Sequence[int], rows: Rows | None = None, **options: Any
) -> Image.Image:
    """Sources A above, sources B on the left, between them A with styles of B.

    Args:
        model: A generator with styles.
        columns: Seeds of the sources A.
        rows: Layers and the seeds of the sources B that give them; None = as in the paper.
        options: See `Model.styles`.
    """
    rows = list(rows or _paper_rows(model))
    a = model.styles(columns, **options)
    sources = [(layers, model.styles(seeds, **options)) for layers, seeds in rows]
    cells: list[list[Tensor]] = [list(_bytes(model, a))]
    for layers, b in tracked(sources, "style mixing"):
        for own, source in zip(_bytes(model, b), b, strict=True):
            mixed = model.mix(a, source[None], layers=layers)
            cells.append([own, *_bytes(model, mixed)])
    return grids.table(
        cells,
        at_least_px=CELL_PX,
        corner=True,
        top="source A",
        left=[(_title(layers), len(seeds)) for layers, seeds in rows],
    )


def _paper_rows(model: Model) -> Rows:
    """Those of the network's layers; a network without styles is refused when they are mixed."""
    least = {"coarse": 0, "middle": 4, "fine": 8}
    return [(name, seeds) for name, seeds in PAPER.items() if least[name] < model.layers]


def _title(layers: str) -> str:
    return f"{layers} styles of B: {SIDES[layers]}" if layers in SIDES else f"layers {layers} of B"


def _bytes(model: Model, ws: Tensor) -> Tensor:
    return to_uint8(model.synthesis(ws)).cpu()


def _rows(text: str) -> tuple[str, list[int]]:
    layers, equals, seeds = text.partition("=")
    if not (layers and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no LAYERS=SEEDS; write it as coarse=5-7")
    return layers, parse_seeds(seeds)
