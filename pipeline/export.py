"""A generator for other tools.

    python -m pipeline.export onnx models/faces faces-onnx
    python -m pipeline.export ada models/faces faces.safetensors    # or faces.pt

`onnx` writes mapping.onnx (z and psi to ws) and synthesis.onnx (ws to images in [-1, 1]), compared
with PyTorch. `ada` writes the weights of a StyleGAN2 under the names that G_ema has in
stylegan2-ada-pytorch, and beside them as .json the arguments of its Generator:

    G = Generator(**json.load(open("faces.json")))
    G.load_state_dict(torch.load("faces.pt", weights_only=True))

MODEL is what `pipeline.generate` takes: models:/NAME@ALIAS, a folder, a checkpoint or a run. Such a
folder is the native form, safetensors and JSON, and needs no export.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import safetensors.torch
import torch

from pipeline import onnx_files, registry
from pipeline.exits import fail
from stylegan.networks.interface import Generator
from stylegan.official import pytorch

SUFFIXES = (".safetensors", ".pt")


def write_ada(Gs: Generator, path: Path) -> int:
    """Write the weights under their names in stylegan2-ada-pytorch; how many tensors they are.

    Raises:
        ValueError: That code has no such network, or `path` has another ending.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}; choose {' or '.join(SUFFIXES)}")
    tensors = pytorch.state_dict(Gs)
    arguments = pytorch.arguments(Gs)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(arguments, indent=1) + "\n")
    return len(tensors)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    onnx = commands.add_parser("onnx", help="mapping.onnx and synthesis.onnx in the folder OUT")
    ada = commands.add_parser("ada", help="StyleGAN2's weights for other PyTorch code")
    for command in (onnx, ada):
        command.add_argument("model", metavar="MODEL", help="see above")
        command.add_argument("out", metavar="OUT", type=Path, help="what is written")
        registry.add_uri(command)
    onnx.add_argument(
        "--cutoff", type=int, metavar="LAYERS", help="layers that psi truncates; default: usual"
    )
    onnx.add_argument(
        "--noise",
        choices=get_args(onnx_files.Noise),
        default="fixed",
        help="noise stored with the network, or none (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        model = registry.load(args.model, tracking_uri=args.tracking_uri, device="cpu")
        if args.command == "onnx":
            written = onnx_files.write(
                model.Gs,
                args.out,
                lod=model.lod,
                cutoff=model.Gs.usual_cutoff if args.cutoff is None else args.cutoff,
                noise=args.noise,
                facts={"source": str(model)},
            )
            print(*written.paths, sep="\n")
            print(f"largest difference from PyTorch: {written.difference:.1e}")
        else:
            count = write_ada(model.Gs, args.out)
            print(f"{count} tensors in {args.out}, arguments in {args.out.with_suffix('.json')}")
    except (ValueError, OSError, ModuleNotFoundError) as err:
        return fail(1, err)
    return 0


if __name__ == "__main__":
    sys.exit(main())
