"""`images`: pictures of seeds, one by one, as a grid, as arrays."""

import argparse
import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from pipeline import grids
from pipeline.generate.options import (
    MAX_IMAGES,
    add_command,
    add_truncation,
    parse_seeds,
    tracked,
)
from pipeline.model import Model
from stylegan.sample import Noise, to_uint8

FORMS = ("files", "grid", "npz")
_GRID_IMAGES = 64
_BATCH = 8
_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --seeds 0-31 --out out
  %(prog)s --model models/faces --seeds 0-7 --label 0-2 --psi 0.5 --noise none --out out
  %(prog)s --model ffhq.pkl --seeds 0-49999 --psi 1 --noise random --save npz --out out

Of several classes each seed is drawn in each class. images.npz holds seeds, labels where there are
some, z [n z], w [n l w] and images [n h w c]."""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "images",
        run=run,
        summary="images of seeds, and a grid of the first 64",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--seeds",
        type=parse_seeds,
        default="0-31",
        help="such as 0-31 or 1,5,20-22 (%(default)s)",
    )
    add_truncation(parser, labels=parse_seeds)
    parser.add_argument(
        "--noise",
        choices=get_args(Noise),
        default="fixed",
        help="as stored, drawn for each seed, or zero (%(default)s)",
    )
    parser.add_argument(
        "--save", nargs="+", choices=FORMS, default=["files", "grid"], help="(files grid)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def run(model: Model, args: argparse.Namespace) -> str:
    """Write what is wanted of each seed, and each seed in each class."""
    classes: list[int | None] = list(args.label or [None])
    wanted = list(itertools.product(classes, args.seeds))
    if len(wanted) > MAX_IMAGES:
        raise ValueError(
            f"{len(args.seeds)} seeds in {len(classes)} classes are {len(wanted)} images; ask for "
            f"at most {MAX_IMAGES} at a time"
        )
    arrays: dict[str, list[Tensor]] = {"z": [], "w": [], "images": []}
    shown: list[Tensor] = []
    parts = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
    for part in tracked(parts, "images"):
        seeds = [seed for _, seed in part]
        z = model.z(seeds)
        ws = model.mapping(z, _labels(part), psi=_psi(model, args.psi), cutoff=args.cutoff)
        images = to_uint8(model.synthesis(ws, noise=args.noise, noise_seeds=seeds)).cpu()
        args.out.mkdir(parents=True, exist_ok=True)
        if "files" in args.save:
            for (label, seed), image in zip(part, model.to_pil(images), strict=True):
                named = f"seed{seed:04d}" if len(classes) == 1 else f"seed{seed:04d}-class{label}"
                image.save(args.out / f"{named}.png")
        if "npz" in args.save:
            for name, rows in (("z", z), ("w", ws), ("images", images.permute(0, 2, 3, 1))):
                arrays[name].append(rows.cpu())
        shown += list(images[: max(_GRID_IMAGES - len(shown), 0)])
    if "grid" in args.save:
        columns = len(args.seeds) if len(classes) > 1 and len(args.seeds) <= _GRID_IMAGES else 0
        grids.sheet(torch.stack(shown), columns=columns).save(args.out / "grid.png")
    if "npz" in args.save:
        named_arrays = {name: torch.cat(rows).numpy() for name, rows in arrays.items()}
        named_arrays["seeds"] = np.array([seed for _, seed in wanted])
        if args.label:
            named_arrays["labels"] = np.array([label for label, _ in wanted])
        np.savez(args.out / "images.npz", allow_pickle=False, **named_arrays)
    return f"{len(wanted)} images as {', '.join(args.save)} in {args.out}"


def _labels(part: list[tuple[int | None, int]]) -> Tensor | None:
    classes = [label for label, _ in part if label is not None]
    return torch.tensor(classes) if classes else None


def _psi(model: Model, psi: float | None) -> float:
    return model.Gs.usual_psi if psi is None else psi
