"""What the commands have in common: options, seeds, labels, progress."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from PIL import Image
from rich.console import Console
from rich.progress import track

from pipeline import registry
from pipeline.model import Model
from stylegan.objective import Precision
from stylegan.sample import MAX_SEED

MAX_IMAGES = 100_000
CELL_PX = 96
"""Smaller images are enlarged to this width in figures."""

Run = Callable[[Model, argparse.Namespace], str]
"""Carries out a command; says what was made."""

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one sentence."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows what there is\n")


def add_command(commands: Any, name: str, *, run: Run, summary: str, examples: str) -> Parser:
    """A subcommand with the options that all have."""
    parser: Parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=examples
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--model",
        required=True,
        help="models:/NAME@ALIAS, pulled folder, checkpoint or run, official .pkl",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (%(default)s)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="float32", help="(%(default)s)"
    )
    registry.add_uri(parser)
    return parser


def add_truncation(parser: argparse.ArgumentParser, *, labels: Callable[[str], Any] = int) -> None:
    """Options of truncation and class."""
    parser.add_argument(
        "--psi",
        type=float,
        help="truncation (0.7, or what an imported file says; 1 without styles)",
    )
    parser.add_argument(
        "--cutoff",
        type=int,
        help="truncate only so many layers, coarsest first (all, or what a file says)",
    )
    parser.add_argument("--label", type=labels, help="class, where the network has labels")


def truncation(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_truncation` was given, as `Model.styles` takes it."""
    return {"labels": args.label, "psi": args.psi, "cutoff": args.cutoff}


def parse_seeds(text: str) -> list[int]:
    """Seeds from a text such as 0-31 or 1,5,20-22."""
    seeds: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
        if first > last or last > MAX_SEED:
            raise argparse.ArgumentTypeError(
                f"seeds are {text!r}; write numbers from 0 to {MAX_SEED} and ranges like 0-31 or "
                f"1,5,20-22"
            )
        if len(seeds) + last - first >= MAX_IMAGES:
            raise argparse.ArgumentTypeError(
                f"seeds are {text!r}; ask for at most {MAX_IMAGES} images at a time"
            )
        seeds.extend(range(first, last + 1))
    return seeds


def tracked(items: Sequence[T] | Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar where somebody looks at a terminal."""
    yield from track(
        items,
        description=what,
        total=total,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def save(image: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, whatever its name ends with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")
    return path
