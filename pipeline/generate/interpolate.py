"""`interpolate`: a film from latent to latent and back to the first."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline import animation
from pipeline.generate.options import add_command, add_truncation, parse_seeds, tracked, truncation
from pipeline.model import Model
from stylegan.metrics.ppl import slerp

Space = Literal["z", "w"]
_TOGETHER = 8
_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --seeds 0-5 --out loop.webp
  %(prog)s --model ffhq.pkl --seeds 3,14,15 --space z --frames 60 --fps 30 --out loop.mp4

The film ends where it began, so it can be repeated without a seam. Between two seeds z goes along a
great circle, w along a line. WebP and GIF can always be written, MP4 where ffmpeg is."""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "interpolate",
        run=run,
        summary="a film through the latent space, as a seamless loop",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, default="0-3", help="stations of the film (%(default)s)"
    )
    parser.add_argument("--space", choices=["z", "w"], default="w", help="(%(default)s)")
    parser.add_argument(
        "--frames", type=int, default=25, help="from one station to the next (%(default)s)"
    )
    parser.add_argument("--fps", type=int, default=25, help="frames a second (%(default)s)")
    add_truncation(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.webp|gif|mp4")


def run(model: Model, args: argparse.Namespace) -> str:
    """Make the frames and write the film."""
    animation.check(args.out)
    if args.fps < 1:
        raise ValueError(f"fps is {args.fps}; choose 1 or more")
    ws = path(model, args.seeds, space=args.space, frames=args.frames, **truncation(args))
    animation.write(frames(model, ws), args.out, fps=args.fps)
    return f"{len(ws)} frames, {len(ws) / args.fps:.1f} s, in {args.out}"


def path(
    model: Model,
    seeds: Sequence[int],
    *,
    space: Space = "w",
    frames: int = 25,
    **options: Any,
) -> Tensor:
    """Styles of a closed path through the seeds, [n l w]; the one after the last is the first.

    Args:
        model: The generator, of any kind.
        seeds: Stations, 2 or more.
        space: z along great circles, or w along lines.
        frames: From one station to the next.
        options: See `Model.styles`.
    """
    if len(seeds) < 2:
        raise ValueError(f"seeds are {list(seeds)}; a path goes through 2 or more")
    if frames < 1:
        raise ValueError(f"frames are {frames}; choose 1 or more from one station to the next")
    t = torch.arange(frames, device=model.device)[:, None] / frames
    if space == "w":
        stations = model.styles(seeds, **options)
        pairs = zip(stations, stations.roll(-1, dims=0), strict=True)
        return torch.cat([torch.lerp(a[None], b[None], t[:, :, None]) for a, b in pairs])
    stations = model.z(seeds)
    pairs = zip(stations.split(1), stations.roll(-1, dims=0).split(1), strict=True)
    z = torch.cat([_great_circle(a, b, t) for a, b in pairs])
    psi = options.get("psi")
    return model.mapping(
        z,
        options.get("labels"),
        psi=model.Gs.usual_psi if psi is None else psi,
        cutoff=options.get("cutoff"),
    )


def frames(model: Model, ws: Tensor) -> Iterator[Any]:
    """Images of styles, enlarged where they are small."""
    parts = ws.split(_TOGETHER)
    for part in tracked(parts, "frames"):
        yield from (animation.enlarged(image) for image in model.to_pil(model.synthesis(part)))


def _great_circle(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """From a to b, [n z], whose lengths change evenly."""
    lengths = torch.lerp(a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True), t)
    return slerp(a.expand(len(t), -1), b.expand(len(t), -1), t) * lengths
