"""Options of the command line that say how images become levels."""

import argparse
import re
from typing import Any

from data_prep.images import ImageConfig
from data_prep.pyramid import level_sizes, resolutions


def add_image_options(parser: argparse.ArgumentParser, *, size_required: bool = True) -> None:
    """Add them all; --resolution and --size exclude each other."""
    size = parser.add_mutually_exclusive_group(required=size_required)
    size.add_argument("--resolution", type=int, help="full level in px, 2^n")
    size.add_argument(
        "--size",
        metavar="WxH",
        help="full level of another shape in px: small numbers times 2^n, such as 512x384; "
        "networks take squares 2^n only",
    )
    parser.add_argument(
        "--crop",
        choices=["centre", "centre-wide", "face", "none"],
        default="centre",
        help="centre: the largest part of the right shape (default); centre-wide: 4:3 between "
        "black bars, as LSUN cars; face: aligned as in FFHQ; none: refuse other shapes",
    )
    parser.add_argument(
        "--landmarks",
        default="",
        metavar="FILE",
        help="for --crop face: ffhq-dataset-v2.json or a JSON of {path: 68 points}",
    )
    parser.add_argument(
        "--face-model",
        default="",
        metavar="FILE",
        help="for --crop face without landmarks: path or URL of dlib's "
        "shape_predictor_68_face_landmarks.dat(.bz2); needs the extra align",
    )
    parser.add_argument(
        "--channels", type=int, default=3, help="1 grey, 3 colour (default), 4 colour and alpha"
    )
    parser.add_argument(
        "--alpha",
        choices=["composite", "drop", "keep"],
        help="transparent pixels: over --background (default), dropped, or kept as the fourth "
        "channel (default with --channels 4)",
    )
    parser.add_argument(
        "--background",
        default="white",
        help="colour behind transparent pixels: white, #rrggbb (default white)",
    )
    parser.add_argument(
        "--animated",
        choices=["first", "refuse"],
        default="first",
        help="files of several pictures: take the first (default) or refuse them",
    )
    parser.add_argument(
        "--levels",
        choices=["all", "full"],
        default="all",
        help="full: only the full level, for networks that do not grow (default all)",
    )
    parser.add_argument(
        "--downsampling",
        choices=["box", "lanczos"],
        default="box",
        help="how smaller levels are made; box (default) is the official rule",
    )
    parser.add_argument(
        "--encoding",
        choices=["png", "webp", "jpg"],
        default="png",
        help="of the full level (default png); files that fit are kept as they are; jpg loses",
    )
    parser.add_argument(
        "--lower-encoding",
        choices=["png", "webp", "jpg"],
        default="webp",
        help="of the other levels above 8 px (default webp, lossless)",
    )
    parser.add_argument("--quality", type=int, default=95, help="of jpg, 1 to 100 (default 95)")


def image_config(options: argparse.Namespace) -> ImageConfig:
    """What they say.

    Raises:
        ValueError: They do not go together.
    """
    width, height = _size(options)
    alpha: Any = options.alpha or ("keep" if options.channels == 4 else "composite")
    return ImageConfig(
        resolution=width,
        height=height,
        crop=options.crop,
        face_model=options.face_model,
        channels=options.channels,
        alpha=alpha,
        background=options.background,
        animated=options.animated,
        levels=options.levels,
        downsampling=options.downsampling,
        encoding=options.encoding,
        lower_encoding=options.lower_encoding,
        quality=options.quality,
    )


def _size(options: argparse.Namespace) -> tuple[int, int]:
    if options.size is None:
        resolutions(options.resolution)
        return options.resolution, options.resolution
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", options.size)
    if match is None:
        raise ValueError(f"size {options.size} is not WxH; write it as 512x384")
    width, height = int(match[1]), int(match[2])
    level_sizes(width, height)
    return width, height
