"""Official network pickles as files that `generate` and the registry read.

    python -m pipeline.import_official stylegan-ffhq.pkl models/ffhq
    python -m pipeline.import_official s3://bucket/network.pkl.gz models/D --network D

FILE is a snapshot of PGGAN, StyleGAN or StyleGAN2 in TensorFlow form, or one of StyleGAN2 in
PyTorch form (stylegan2-ada, stylegan3). It is read as data: code in it is never executed. OUT holds
safetensors and JSON, with the SHA-256 of FILE among the lineage.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import safetensors.torch

from pipeline import bundle as bundles
from pipeline import packaging
from pipeline.exits import fail
from stylegan.networks.interface import Generator
from stylegan.official import snapshot
from stylegan.official.names import Imported

D_WEIGHTS = "D.safetensors"


def import_file(url: str, folder: Path, *, name: snapshot.Name = "Gs") -> Imported:
    """Write a network of the official pickle at `url` into `folder`; D as tensors and JSON alone.

    Raises:
        ArchiveError: The file is damaged, or asks for more than data.
        StorageError: It cannot be read.
        ValueError: The network cannot be represented here; says what of it.
    """
    imported, lineage = bundles.read_official(url, name)
    if isinstance(imported.network, Generator):
        bundle = bundles.from_official(imported, lineage)
        bundles.write(bundle, folder, grid=packaging.draw_grid(bundle))
    else:
        _write_D(imported, lineage, folder)
    return imported


def _write_D(imported: Imported, lineage: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    described = {"D": asdict(imported.network.config), "lod": imported.lod}
    safetensors.torch.save_file(imported.network.state_dict(), folder / D_WEIGHTS)
    for name, content in ((bundles.NETWORK, described), (bundles.LINEAGE, lineage)):
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.import_official", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", help="path or URL of the pickle, also packed (.gz)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument(
        "--network",
        choices=get_args(snapshot.Name),
        default="Gs",
        help="Gs: the averaged generator (%(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        imported = import_file(args.file, args.out, name=args.network)
    except (ValueError, OSError) as err:
        return fail(1, f"{args.file}: {err}")
    config = imported.network.config
    print(f"{args.network}: {config.kind} of {config.resolution} px, in {args.out}")
    for note in imported.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
