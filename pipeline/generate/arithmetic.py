"""`arithmetic`: sums and differences of mean latents (Radford et al. 2016, Section 6.3.2)."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
    truncation,
)
from pipeline.model import Model
from stylegan.sample import to_uint8

Space = Literal["z", "w"]
Term = tuple[int, list[int] | Path]
"""Sign, and seeds or a file of projected images."""

_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --plus 0-2 --minus 3-5 --plus 6-8 --out sum.png
  %(prog)s --model ffhq.pkl --plus me/projected.npz --plus 4-6 --minus 7-9 --out smiling.png

A group is seeds, or the file of `project` with the w of images. Each row shows a group and its
mean; the last image is the sum."""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "arithmetic",
        run=run,
        summary="sums and differences of the mean latents of groups",
        examples=_EXAMPLES,
    )
    for name, sign in (("--plus", 1), ("--minus", -1)):
        parser.add_argument(
            name,
            dest="terms",
            action="append",
            default=[],
            type=partial(_term, sign),
            metavar="GROUP",
            help="a group whose mean is added or subtracted, such as 0-2; again for more",
        )
    parser.add_argument(
        "--space",
        choices=["z", "w"],
        default="w",
        help="whose means are taken; projected images have w alone (%(default)s)",
    )
    add_truncation(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")


def run(model: Model, args: argparse.Namespace) -> str:
    """Draw the groups and their sum and write them."""
    figure = picture(model, args.terms, space=args.space, **truncation(args))
    return f"latent arithmetic in {save(figure, args.out)}"


def picture(model: Model, terms: Sequence[Term], *, space: Space, **options: Any) -> Image.Image:
    """A row for each group with the image of its mean at the end; below, that of the sum.

    Args:
        model: The generator, of any kind.
        terms: Such as smiling women - women + men.
        space: Take means of z, or of w behind the mapping network.
        options: See `Model.styles`.
    """
    if not terms:
        raise ValueError("there is nothing to add up; give groups of seeds with --plus and --minus")
    labels, psi, cutoff = (options.get(key) for key in ("labels", "psi", "cutoff"))
    psi = model.Gs.usual_psi if psi is None else psi

    def draw(latents: Tensor) -> Tensor:
        if space == "z":
            latents = model.mapping(latents, labels, psi=psi, cutoff=cutoff)
        return to_uint8(model.synthesis(latents)).cpu()

    rows, names, total = [], [], torch.zeros((), device=model.device)
    for sign, group in terms:
        if isinstance(group, Path):
            latents = read_projected(model, group, space)
        elif space == "z":
            latents = model.z(group)
        else:
            latents = model.mapping(model.z(group), labels, psi=psi, cutoff=cutoff)
        mean = latents.mean(dim=0, keepdim=True)
        total = total + sign * mean
        rows.append(draw(torch.cat([latents, mean])))
        shown = range(len(latents)) if isinstance(group, Path) else group
        names.append([*map(str, shown), "+ mean" if sign > 0 else "- mean"])
    return grids.table([*rows, draw(total)], at_least_px=CELL_PX, labels=[*names, ["sum"]])


def read_projected(model: Model, path: Path, space: Space = "w") -> Tensor:
    """The w of images that `project` has written, [n l w].

    Raises:
        ValueError: It is no such file, or of another model.
    """
    if space == "z":
        raise ValueError(f"{path} holds w, not z; choose --space w")
    try:
        with np.load(path, allow_pickle=False) as file:
            ws = torch.from_numpy(file["w"]).float()
    except (KeyError, ValueError, EOFError) as err:
        raise ValueError(f"{path} is no file of `project`: it has no array w") from err
    if ws.ndim != 3 or ws.shape[1:] != (model.layers, model.Gs.config.w_size):
        raise ValueError(
            f"{path} holds w of shape {list(ws.shape)}, but this model takes [n, {model.layers}, "
            f"{model.Gs.config.w_size}]; project the images with this model"
        )
    return ws.to(model.device)


def _term(sign: int, text: str) -> Term:
    return sign, Path(text) if text.endswith(".npz") else parse_seeds(text)
