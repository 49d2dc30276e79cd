"""What people do with a generator.

    python -m pipeline.generate images --model models:/faces@champion --seeds 0-31 --out out
    python -m pipeline.generate mix --model models/faces --out mixing.png
    python -m pipeline.generate COMMAND --help      # each with examples

MODEL is models:/NAME@ALIAS or models:/NAME/VERSION of the registry, a folder that
`pipeline.registry pull` has filled, the URL of a committed checkpoint or of a run (its newest
checkpoint), or an official pickle (.pkl). Whatever it is, its bytes are verified before they are
used, and code in it is never run. Exit codes: 0 done, 1 something cannot be read or written, 2 what
was asked for is wrong.
"""
# ruff: noqa: T201 (a command line prints)

import sys
from collections.abc import Sequence

from data_prep.manifest import DigestError
from pipeline import registry
from pipeline.exits import fail
from pipeline.generate import (
    arithmetic,
    figures,
    images,
    interpolate,
    mix,
    noise,
    project,
    truncation,
)
from pipeline.generate.options import Parser

COMMANDS = (images, mix, truncation, noise, interpolate, arithmetic, project, figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = Parser(prog="python -m pipeline.generate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    args = parser.parse_args(argv)
    try:
        model = registry.load(
            args.model,
            tracking_uri=args.tracking_uri,
            device=args.device,
            precision=args.precision,
        )
        print(model)
        print(args.run(model, args))
    except (OSError, DigestError, registry.RegistryError) as err:
        return fail(1, err)
    except ValueError as err:
        return fail(2, err)
    return 0


if __name__ == "__main__":
    sys.exit(main())
