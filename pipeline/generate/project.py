"""`project`: photographs to latents (Karras et al. 2020, Appendix D)."""

import argparse
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from data_prep import align, storage
from pipeline import animation, grids
from pipeline.generate.options import CELL_PX, add_command, save
from pipeline.model import Model
from stylegan.projection import Projection, ProjectionConfig, Space
from stylegan.sample import to_uint8

ARRAYS = "projected.npz"
REPORT = "report.json"
FAR = 0.1
"""Offset of a face, as a share of the side, from which on it is warned of."""
_FILM_FRAMES = 100
_EXAMPLES = """examples:
  %(prog)s me.jpg you.jpg --model ffhq.pkl --face-model shape_predictor_68_face_landmarks.dat \\
      --align --out projected
  %(prog)s cat.png --model models/cats --space w+ --steps 500 --film mp4 --out projected
  %(prog)s images/seed0017.png --model models/small --steps 300 --noise-weight 10 --out projected

OUT gets projected.npz (w [n l w] and the noise maps), an image of each w, comparison.png, a film of
the optimization, and report.json with LPIPS and PSNR. Pictures are cut to their middle square; a
network of faces knows only faces placed as in its data, which --landmarks or --face-model check
and --align mends."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A picture to project."""

    name: str
    image: Image.Image
    notes: tuple[str, ...]
    """What was done to it, or should be."""
    face_offset: float | None
    """Of its corners from those of the published crop, as a share of the side; None = unknown."""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "project",
        run=run,
        summary="pictures to the latents that give them, with a report and a film",
        examples=_EXAMPLES,
    )
    defaults = ProjectionConfig()
    parser.add_argument("pictures", nargs="+", metavar="IMAGE", help="paths or URLs")
    parser.add_argument(
        "--space",
        choices=get_args(Space),
        default=defaults.space,
        help="one w, or one for each layer (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="(%(default)s)")
    parser.add_argument(
        "--noise-weight",
        type=float,
        default=defaults.noise_weight,
        help="how much noise is kept from carrying the picture; less brings back the grain of "
        "small networks (%(default)g)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(%(default)s)")
    parser.add_argument("--label", type=int, help="class, where the network has labels")
    parser.add_argument(
        "--batch", type=int, default=8, help="pictures at a time, bounded by memory (%(default)s)"
    )
    parser.add_argument(
        "--film", choices=["webp", "gif", "mp4", "none"], default="webp", help="(%(default)s)"
    )
    parser.add_argument("--lpips", metavar="URL", help="weights of LPIPS (those of make weights)")
    faces = parser.add_mutually_exclusive_group()
    faces.add_argument("--landmarks", metavar="URL", help="JSON of 68 points by file name")
    faces.add_argument("--face-model", metavar="URL", help="dlib's 68-point predictor")
    parser.add_argument("--align", action="store_true", help="cut faces out as FFHQ does")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def run(model: Model, args: argparse.Namespace) -> str:
    """Project the pictures and write what was found."""
    config = ProjectionConfig(
        space=args.space, steps=args.steps, noise_weight=args.noise_weight, seed=args.seed
    )
    film = None if args.film == "none" else animation.check(args.out / f"film.{args.film}")
    if args.batch < 1:
        raise ValueError(f"batch is {args.batch}; choose 1 or more")
    targets = [prepare(url, args) for url in args.pictures]
    bytes_ = torch.cat([model.to_bytes(target.image) for target in targets])
    found: list[Projection] = []
    filmed: list[list[Tensor]] = []
    for part in bytes_.split(args.batch):
        frames: list[Tensor] = []
        with _progress() as progress:
            watch = _watching(progress, config.steps, frames if film else None)
            found.append(
                model.project(
                    part, config=config, label=args.label, weights_url=args.lpips, watch=watch
                )
            )
        filmed.append([*frames, found[-1].images])
    write(model, targets, bytes_, found, out=args.out, config=config)
    if film:
        steps = [torch.cat(images) for images in zip(*filmed, strict=True)]
        animation.write((_pairs(bytes_, images) for images in steps), film, fps=20)
    lpips = torch.cat([part.lpips for part in found])
    return f"{len(targets)} pictures in {args.out}, LPIPS {float(lpips.mean()):.4f} on average"


def prepare(url: str, args: argparse.Namespace) -> Target:
    """Read a picture, upright; look for its face and cut it out as wanted.

    Raises:
        ValueError: It is no picture, or its face cannot be cut out.
    """
    try:
        with Image.open(io.BytesIO(storage.read_bytes(url))) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as err:
        raise ValueError(f"{url} is no picture that can be read: {err}") from err
    if args.align and not (args.landmarks or args.face_model):
        raise ValueError("--align needs the landmarks of faces; give --landmarks or --face-model")
    name, notes, offset = Path(url).stem, [], None
    try:
        points = _points(url, image, args)
        if points is not None:
            offset = face_offset(points, image.size)
            if args.align:
                image, enlarged = align.aligned(image, points, min(1024, max(image.size)))
                notes.append("aligned as in FFHQ" + (", enlarged" if enlarged else ""))
            elif offset > FAR:
                notes.append(
                    f"its face lies {offset:.0%} of the side away from where FFHQ has it; "
                    f"project it with --align"
                )
    except align.FaceError as err:
        if args.align:
            raise ValueError(f"{url} cannot be aligned: {err}") from err
        notes.append(str(err))
    if image.width != image.height:
        notes.append("cut to its middle square")
    return Target(name=name, image=image, notes=tuple(notes), face_offset=offset)


def face_offset(points: align.Points, size: tuple[int, int]) -> float:
    """How far the corners of a picture's middle square are from those of the published crop."""
    short = min(size)
    left, top = ((side - short) / 2 for side in size)
    square = np.array([[left, top], [left + short, top], [left, top + short]])
    corners = align.face_rectangle(points) + 0.5
    return float(np.hypot(*(corners - square).T).mean() / short)


def write(
    model: Model,
    targets: Sequence[Target],
    bytes_: Tensor,
    found: Sequence[Projection],
    *,
    out: Path,
    config: ProjectionConfig,
) -> None:
    """Arrays, images, comparison and report."""
    out.mkdir(parents=True, exist_ok=True)
    noise = [torch.cat(layer) for layer in zip(*(part.noise for part in found), strict=True)]
    arrays = {f"noise{number}": layer.cpu().numpy() for number, layer in enumerate(noise)}
    ws = torch.cat([part.ws for part in found]).cpu().numpy()
    np.savez(out / ARRAYS, allow_pickle=False, w=ws, **arrays)
    images = torch.cat([part.images for part in found])
    lpips, psnr = (torch.cat([getattr(part, key) for part in found]) for key in ("lpips", "psnr"))
    rows = []
    for number, (target, image) in enumerate(zip(targets, model.to_pil(images), strict=True)):
        image.save(out / f"{number:03d}-{target.name}.png")
        rows.append(
            {
                "picture": target.name,
                "lpips": round(float(lpips[number]), 6),
                "psnr_db": round(float(psnr[number]), 3) if psnr[number].isfinite() else None,
                "face_offset": target.face_offset,
                "notes": list(target.notes),
            }
        )
    report = {
        "model": str(model),
        "space": config.space,
        "steps": config.steps,
        "noise_weight": config.noise_weight,
        "seed": config.seed,
        "lpips_mean": round(float(lpips.mean()), 6),
        "pictures": rows,
    }
    (out / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    names = [f"LPIPS {row['lpips']:.3f}" for row in rows]
    table = grids.table(
        [bytes_, images], at_least_px=CELL_PX, labels=[[t.name for t in targets], names]
    )
    save(table, out / "comparison.png")


def _points(url: str, image: Image.Image, args: argparse.Namespace) -> align.Points | None:
    if args.landmarks:
        points = align.points_of(url, align.read_landmarks(args.landmarks))
        if points is None:
            raise align.FaceError(f"no face: {args.landmarks} does not list it")
        return points
    return align.find_face(image, args.face_model) if args.face_model else None


def _progress() -> Progress:
    """A bar where somebody looks at a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _watching(
    progress: Progress, steps: int, frames: list[Tensor] | None
) -> Callable[[int, Tensor], None]:
    """Draws the bar and keeps every so many images."""
    task = progress.add_task("projection", total=steps)
    every = max(1, steps // _FILM_FRAMES)

    def watch(step: int, images: Tensor) -> None:
        progress.update(task, completed=step + 1)
        if frames is not None and step % every == 0:
            frames.append(to_uint8(images).cpu())

    return watch


def _pairs(targets: Tensor, images: Tensor) -> Image.Image:
    """Targets above, images below; of even size."""
    picture = grids.table([targets, images], at_least_px=CELL_PX)
    even = (picture.width + picture.width % 2, picture.height + picture.height % 2)
    return ImageOps.pad(picture, even, color="white")
