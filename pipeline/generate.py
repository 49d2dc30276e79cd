r"""Pictures out of a trained generator.

    python -m pipeline.generate images --model models:/faces@champion --seeds 0-31 --out out
    python -m pipeline.generate mixing --model models/faces --rows 0-3 --cols 4-9 --out mixing.png
    python -m pipeline.generate arithmetic --model models/faces --plus 0-2 --minus 3-5 --plus 6-8 \
        --out sum.png

MODEL is models:/NAME@ALIAS or models:/NAME/VERSION of the registry, a folder that
`pipeline.registry pull` has filled, or the URL of a committed checkpoint or of a run (its newest
checkpoint). Whatever it is, its bytes are verified before they are used.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_prep import storage
from pipeline import bundle as bundles
from pipeline import grids, registry
from pipeline.checkpoint import Checkpoints
from pipeline.marker import MARKER
from pipeline.tasks import Device, choose_device
from stylegan import sample
from stylegan.networks.interface import Generator

MAX_IMAGES = 100_000
_GRID_IMAGES = 64
_BATCH = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A generator ready for use."""

    Gs: Generator
    lod: float
    title: str
    """What it is, in one line."""


def load(model: str, *, tracking_uri: str = "", device: Device = "auto") -> Loaded:
    """The generator that MODEL names (see the head of this file).

    Args:
        model: Registry URI, folder or URL.
        tracking_uri: Where the registry is; empty for the environment's.
        device: cpu, cuda, or auto for cuda where there is one.

    Raises:
        ValueError: There is none, or its bytes are not those that were registered or committed,
            or there is no such device.
        OSError: A server or store does not answer.
    """
    place = choose_device(device, "--device")
    if model.startswith("models:/"):
        with tempfile.TemporaryDirectory(prefix="generate-") as scratch:
            uri = registry.tracking_uri(tracking_uri)
            bundle = bundles.load(registry.pull(model, Path(scratch, "model"), uri=uri))
    elif storage.exists(storage.join(model, bundles.DIGESTS)):
        bundle = bundles.load(storage.local_path(model))
    else:
        bundle = bundles.from_checkpoint(_checkpoint_url(model))
    Gs = bundle.generator().to(place)
    side = Gs.config.resolution >> int(bundle.lod)
    kimg = int(bundle.lineage.get("nimg", 0)) / 1000
    return Loaded(Gs=Gs, lod=bundle.lod, title=f"{model}: {side}x{side} px, {kimg:g} kimg")


def write_images(
    loaded: Loaded,
    seeds: Sequence[int],
    folder: Path,
    *,
    psi: float,
    cutoff: int | None = None,
    label: int | None = None,
    noise: sample.Noise = "stored",
) -> list[Path]:
    """One PNG per seed, and grid.png of the first 64; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    shown: list[Tensor] = []
    for start in range(0, len(seeds), _BATCH):
        part = seeds[start : start + _BATCH]
        images = sample.sample(
            loaded.Gs,
            part,
            psi=psi,
            cutoff=cutoff,
            labels=_labels(loaded.Gs, label, len(part)),
            noise=noise,
            lod=loaded.lod,
        )
        for seed, image in zip(part, images, strict=True):
            path = folder / f"seed{seed:04d}.png"
            grids.to_image(image).save(path)
            paths.append(path)
        shown += list(images[: max(_GRID_IMAGES - len(shown), 0)])
    grids.sheet(torch.stack(shown)).save(folder / "grid.png")
    return [*paths, folder / "grid.png"]


def write_mixing(
    loaded: Loaded,
    path: Path,
    *,
    rows: Sequence[int],
    columns: Sequence[int],
    layers: str,
    psi: float,
    cutoff: int | None = None,
    label: int | None = None,
) -> Path:
    """Sources A on the left, B on top, between them A with the styles of B in `layers`."""
    grid = sample.mixing_grid(
        loaded.Gs,
        rows,
        columns,
        layers=sample.style_layers(loaded.Gs, layers),
        psi=psi,
        cutoff=cutoff,
        label=_labels(loaded.Gs, label, 1),
        lod=loaded.lod,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    side = grid[0].shape[-1]
    grids.table(grid, at_least_px=64 if side < 128 else 0, corner=True).save(path, format="PNG")
    return path


def write_arithmetic(
    loaded: Loaded,
    path: Path,
    *,
    terms: Sequence[tuple[int, Sequence[int]]],
    space: sample.Space,
    psi: float,
    cutoff: int | None = None,
    label: int | None = None,
) -> Path:
    """A row for each group of seeds with the image of its mean at the end; below, the sum."""
    if not terms:
        raise ValueError("there is nothing to add up; give groups of seeds with --plus and --minus")
    rows = sample.arithmetic(
        loaded.Gs,
        terms,
        space=space,
        psi=psi,
        cutoff=cutoff,
        label=_labels(loaded.Gs, label, 1),
        lod=loaded.lod,
    )
    names = [[*map(str, seeds), "+ mean" if sign > 0 else "- mean"] for sign, seeds in terms]
    path.parent.mkdir(parents=True, exist_ok=True)
    grids.table(rows, at_least_px=64, labels=[*names, ["sum"]]).save(path, format="PNG")
    return path


def parse_seeds(text: str) -> list[int]:
    """Seeds from a text such as 0-31 or 1,5,20-22."""
    seeds: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
        if first > last or last > sample.MAX_SEED:
            raise ValueError(
                f"seeds are {text!r}; write numbers from 0 to {sample.MAX_SEED} and ranges like "
                f"0-31 or 1,5,20-22"
            )
        if len(seeds) + last - first >= MAX_IMAGES:
            raise ValueError(f"seeds are {text!r}; ask for at most {MAX_IMAGES} images at a time")
        seeds.extend(range(first, last + 1))
    return seeds


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    args = _parser().parse_args(argv)
    try:
        loaded = load(args.model, tracking_uri=args.tracking_uri, device=args.device)
        print(loaded.title)
        psi = loaded.Gs.usual_psi if args.psi is None else args.psi
        cutoff = loaded.Gs.usual_cutoff if args.cutoff is None else args.cutoff
        if args.command == "images":
            paths = write_images(
                loaded,
                parse_seeds(args.seeds),
                args.out,
                psi=psi,
                cutoff=cutoff,
                label=args.label,
                noise=args.noise,
            )
            print(f"{len(paths) - 1} images and grid.png in {args.out}")
        elif args.command == "arithmetic":
            write_arithmetic(
                loaded,
                args.out,
                terms=[(sign, parse_seeds(text)) for sign, text in args.terms],
                space=args.space,
                psi=psi,
                cutoff=cutoff,
                label=args.label,
            )
            print(f"latent arithmetic in {args.out}")
        else:
            write_mixing(
                loaded,
                args.out,
                rows=parse_seeds(args.rows),
                columns=parse_seeds(args.cols),
                layers=args.layers,
                psi=psi,
                cutoff=cutoff,
                label=args.label,
            )
            print(f"style mixing in {args.out}")
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.generate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images", help="one PNG per seed, and a grid of them")
    images.add_argument("--seeds", default="0-31", help="such as 0-31 or 1,5,20-22 (%(default)s)")
    images.add_argument("--out", type=Path, required=True, metavar="DIR")
    images.add_argument(
        "--noise", choices=["stored", "keyed"], default="stored", help="keyed: other for each seed"
    )
    mixing = commands.add_parser("mixing", help="a grid in which images take styles of others")
    mixing.add_argument("--rows", default="0-3", help="seeds of sources A (%(default)s)")
    mixing.add_argument("--cols", default="4-9", help="seeds of sources B (%(default)s)")
    mixing.add_argument(
        "--layers", default="coarse", help="of B: coarse, middle, fine or 2-5 (%(default)s)"
    )
    mixing.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arithmetic = commands.add_parser("arithmetic", help="sums and differences of mean latents")
    for name, sign in (("--plus", 1), ("--minus", -1)):
        arithmetic.add_argument(
            name,
            dest="terms",
            action="append",
            default=[],
            type=partial(_term, sign),
            metavar="SEEDS",
            help="a group whose mean is added or subtracted, such as 0-2; may be given again",
        )
    arithmetic.add_argument(
        "--space", choices=["z", "w"], default="w", help="whose means are taken (%(default)s)"
    )
    arithmetic.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    for command in (images, mixing, arithmetic):
        command.add_argument("--model", required=True, help="models:/NAME@ALIAS, DIR or URL")
        command.add_argument(
            "--psi",
            type=float,
            help="truncation (0.7, or what an imported file says; 1 without styles)",
        )
        command.add_argument(
            "--cutoff",
            type=int,
            help="truncate only so many layers, coarsest first (all, or what a file says)",
        )
        command.add_argument("--label", type=int, help="class, where the network has labels")
        command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        registry.add_uri(command)
    return parser


def _term(sign: int, seeds: str) -> tuple[int, str]:
    return sign, seeds


def _checkpoint_url(model: str) -> str:
    if storage.exists(storage.join(model, MARKER)):
        return model
    latest = Checkpoints(model).latest()
    if latest is None:
        raise ValueError(
            f"{model} is no model: neither a pulled folder ({bundles.DIGESTS}), nor a committed "
            f"checkpoint ({MARKER}), nor a run with one; registered models begin with models:/"
        )
    return latest.url


def _labels(Gs: Generator, label: int | None, count: int) -> Tensor | None:
    if label is None and not Gs.config.label_size:
        return None
    if label is None:
        raise ValueError(
            f"this network has {Gs.config.label_size} classes; choose one with --label"
        )
    return sample.one_hot(torch.full((count,), label), Gs.config.label_size)


if __name__ == "__main__":
    sys.exit(main())
