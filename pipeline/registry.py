"""The one door to the model registry: finished generators in, verified files out.

    python -m pipeline.registry list
    python -m pipeline.registry pull faces@champion models/faces   # or faces/3

A version is a model MLflow can run by itself (`generator_model`), around the files of `bundle`. A
tag of the version, which is in the registry's database and not among the files, holds the digest
that stands for all of them.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.manifest import DigestError
from pipeline import bundle as bundles
from pipeline import packaging
from pipeline.bundle import Bundle, MetricValue
from pipeline.exits import fail
from pipeline.mlflow_client import TrackingError, asking, connect, first_line
from pipeline.model import Model, check_device, read
from pipeline.names import check_alias, check_name
from stylegan.objective import Precision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

ANCHOR = "digests_sha256"
"""Tag of a version: SHA-256 of its digests.json."""
_LISTED = ("nimg", "checkpoint", "code_revision")
VARIABLE = "MLFLOW_TRACKING_URI"

_MODEL = re.compile(r"(?:models:/)?(?P<name>[^@/:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


class RegistryError(ValueError):
    """There is no such model, or it is none of ours; the message says what there is."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A new version."""

    name: str
    version: int
    alias: str
    """The alias that was to move; empty for none."""
    alias_moved: bool
    reason: str
    """Why the alias moved or did not, in one sentence."""


def register(
    bundle: Bundle, *, uri: str, run_id: str, name: str, alias: str = "", decide_by: str = ""
) -> Registered:
    """Make a new version of the model `name`.

    Args:
        bundle: The generator; if it has no grid, samples are drawn.
        uri: Tracking URI.
        run_id: The run that trained it.
        name: Of the registered model, made if need be.
        alias: Moves to the new version if that is better than the one it names now: lower in
            `decide_by`, which was measured in the same way. Empty for no alias.
        decide_by: Name in `bundle.metrics`.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
        ValueError: The weights do not fit the network, a name is not allowed, ...
    """
    check_name(name)
    if alias:
        check_alias(alias)
    if alias and decide_by and decide_by not in bundle.metrics:
        raise ValueError(
            f"the alias {alias!r} is decided by {decide_by}, which was not measured; choose from "
            f"{', '.join(bundle.metrics) or 'no metric at all'}"
        )
    client = connect(uri)
    with tempfile.TemporaryDirectory(prefix="register-") as scratch:
        grid = bundle.grid or packaging.draw_grid(bundle)
        anchor = bundles.write(bundle, Path(scratch, "files"), grid=grid)
        model = packaging.save_model(bundle, Path(scratch))
        with asking(uri, f"take the files of {name}"):
            model_id = _upload(client, model, bundle, run_id=run_id, name=name)
    with asking(uri, f"make a version of {name}"):
        version = _create_version(client, bundle, name=name, model_id=model_id, anchor=anchor)
    moved, reason = False, "no alias was asked for"
    if alias:
        moved, reason = _decide(client, bundle, name=name, alias=alias, decide_by=decide_by)
        if moved:
            with asking(uri, f"move {alias} to version {version} of {name}"):
                client.set_registered_model_alias(name, alias, str(version))
        logger.info("%s version %d: %s", name, version, reason)
    return Registered(name=name, version=version, alias=alias, alias_moved=moved, reason=reason)


def pull(model: str, folder: Path, *, uri: str) -> Path:
    """Download the files of a registered version into `folder` and verify each of them.

    Nothing is unpickled and no code of the model is run.

    Args:
        model: NAME@ALIAS or NAME/VERSION, with or without models:/ before it.
        folder: Made if need be; nothing in it changes if anything is refused.
        uri: Tracking URI.

    Raises:
        DigestError: A file is not the one that was registered.
        RegistryError: There is no such version.
        TrackingError: MLflow does not answer.
    """
    parts = _MODEL.fullmatch(model)
    if not parts:
        raise RegistryError(f"model is {model!r}; write it as NAME@ALIAS or NAME/VERSION")
    client = connect(uri, create=False)
    version = _find(client, parts, uri)
    anchor = (version.tags or {}).get(ANCHOR)
    if not anchor:
        raise RegistryError(
            f"version {version.version} of {version.name} has no tag {ANCHOR}: it was not "
            f"registered by this pipeline, and nothing could be verified; choose another version"
        )
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        content = _download(client, version, bundles.DIGESTS, Path(scratch), sha256=anchor)
        for name, sha256 in bundles.read_digests(content, url=bundles.DIGESTS).items():
            _download(client, version, name, Path(scratch), sha256=sha256)
        folder.mkdir(exist_ok=True)
        for name in (*bundles.FILES, bundles.DIGESTS):
            Path(scratch, name).replace(folder / name)
    return folder


def load(
    model: str,
    *,
    tracking_uri: str = "",
    device: str = "auto",
    precision: Precision = "float32",
) -> Model:
    """A generator ready for use.

        model = load("models:/faces@champion", device="cuda", precision="bfloat16")
        model.to_pil(model.sample(range(8), psi=0.7))

    Neither MLflow nor Ray is imported for what is not in the registry.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or a path or URL of a folder that
            `pull` has filled, of a committed checkpoint, of a run (its newest checkpoint), or of
            an official pickle (`.pkl`, `.pkl.gz`).
        tracking_uri: Where the registry is; empty for the environment's.
        device: `cpu`, `cuda`, `cuda:1` …, or `auto` for a GPU where there is one.
        precision: Of convolutions and dense layers.

    Raises:
        ValueError: There is none, its bytes are not those that were registered or committed, or
            there is no such device or precision.
        OSError: A server or store does not answer.
    """
    check_device(device)
    if not model.startswith("models:/"):
        return Model(read(model), name=model, device=device, precision=precision)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        folder = pull(model, Path(scratch, "model"), uri=choose_uri(tracking_uri))
        return Model(bundles.load(folder), name=model, device=device, precision=precision)


def list_versions(uri: str) -> list[dict[str, Any]]:
    """All versions of all models, newest first: name, version, aliases and tags."""
    client = connect(uri, create=False)
    with asking(uri, "list its models"):
        models = list(_paged(client.search_registered_models))
        versions = list(_paged(client.search_model_versions))
    aliases: dict[tuple[str, str], list[str]] = {}
    for model in models:
        for alias, number in model.aliases.items():
            aliases.setdefault((model.name, str(number)), []).append(alias)
    rows = [
        {
            "name": version.name,
            "version": int(version.version),
            "aliases": aliases.get((version.name, str(version.version)), []),
            "tags": dict(version.tags or {}),
        }
        for version in versions
    ]
    return sorted(rows, key=lambda row: (row["name"], -row["version"]))


def _paged(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search of MLflow finds, which comes in pages."""
    token: str | None = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _upload(client: "MlflowClient", model: Path, bundle: Bundle, *, run_id: str, name: str) -> str:
    from mlflow.entities import LoggedModelOutput
    from mlflow.entities.logged_model_status import LoggedModelStatus

    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run_id,
        tags=packaging.facts(bundle),
        model_type="generator",
    )
    client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    step = int(bundle.lineage.get("nimg", 0))
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=step)])
    model_id: str = logged.model_id
    return model_id


def _create_version(
    client: "MlflowClient", bundle: Bundle, *, name: str, model_id: str, anchor: str
) -> int:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Generator trained by stylegan-pipeline.")
    model = client.get_logged_model(model_id)
    # Without a server MLflow would look models:/ up in whatever tracking URI is set globally.
    served = client.tracking_uri.startswith("http")
    version = client.create_model_version(
        name,
        source=f"models:/{model_id}" if served else model.artifact_location,
        run_id=model.source_run_id,
        tags={**packaging.facts(bundle), ANCHOR: anchor},
        description=packaging.description(bundle, name),
        model_id=model_id,
    )
    return int(version.version)


def _decide(
    client: "MlflowClient", bundle: Bundle, *, name: str, alias: str, decide_by: str
) -> tuple[bool, str]:
    """Whether the alias moves to the new version, and why."""
    holder = _found(client.get_model_version_by_alias, name, alias)
    if holder is None:
        return True, f"{alias} is new and names this version"
    kept = f"{alias} stays with version {holder.version}"
    if not decide_by:
        return False, f"{kept}: no metric was named to decide"
    mine = bundle.metrics[decide_by]
    try:
        theirs = _metrics(client, holder).get(decide_by)
    except DigestError as err:
        return False, f"{kept}: its metrics cannot be trusted ({err})"
    if theirs is None:
        return False, f"{kept}: it has no {decide_by} to compare with"
    better, why = mine.compare(theirs, decide_by)
    return (
        better,
        f"{alias} moves from version {holder.version}: {why}" if better else f"{kept}: {why}",
    )


def _metrics(client: "MlflowClient", version: "ModelVersion") -> dict[str, MetricValue]:
    """Verified metrics of a version."""
    with tempfile.TemporaryDirectory(prefix="metrics-") as scratch:
        anchor = (version.tags or {}).get(ANCHOR, "")
        content = _download(client, version, bundles.DIGESTS, Path(scratch), sha256=anchor)
        sha256 = bundles.read_digests(content, url=bundles.DIGESTS)[bundles.METRICS]
        return bundles.read_metrics(
            _download(client, version, bundles.METRICS, Path(scratch), sha256=sha256)
        )


def _download(
    client: "MlflowClient", version: "ModelVersion", name: str, folder: Path, *, sha256: str
) -> bytes:
    """Put a file of a version into `folder` and verify it; its content."""
    from mlflow.artifacts import download_artifacts

    source = f"{version.name}/{version.version}/artifacts/{name}"
    try:
        base = client.get_model_version_download_uri(version.name, str(version.version))
        got = download_artifacts(
            artifact_uri=f"{base.rstrip('/')}/artifacts/{name}",
            dst_path=str(folder),
            tracking_uri=client.tracking_uri,
        )
    except Exception as err:
        raise DigestError(
            f"{source} cannot be read, but was registered: {first_line(err)}"
        ) from err
    if Path(got) != folder / name:
        shutil.copyfile(got, folder / name)
    content = (folder / name).read_bytes()
    bundles.verify(content, sha256, url=source)
    return content


def _find(client: "MlflowClient", parts: re.Match[str], uri: str) -> "ModelVersion":
    if parts["alias"]:
        version = _found(client.get_model_version_by_alias, parts["name"], parts["alias"])
    else:
        version = _found(client.get_model_version, parts["name"], parts["version"])
    if version is None:
        # Those of this name first, then those with an alias.
        rows = list_versions(uri)
        rows.sort(key=lambda row: (row["name"] != parts["name"], not row["aliases"]))
        there = [_label(row) for row in rows]
        raise RegistryError(
            f"{uri} has no {parts[0].removeprefix('models:/')}; choose from "
            f"{', '.join(there[:10]) or 'nothing: no model is registered there'}"
        )
    return version


def _found(get: Callable[..., "ModelVersion"], name: str, which: str) -> "ModelVersion | None":
    """What a call of MLflow gets for a model and an alias or a number; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return get(name, which)
    except MlflowException as err:
        if err.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TrackingError(f"the registry cannot be asked for {name}: {first_line(err)}") from err


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.registry", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="models, versions, aliases, metrics")
    pulling = commands.add_parser("pull", help="download and verify the files of a version")
    pulling.add_argument("model", metavar="MODEL", help="NAME@ALIAS or NAME/VERSION")
    pulling.add_argument("folder", metavar="DIR", type=Path, help="where the files go")
    for command in (listing, pulling):
        add_uri(command)
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            for row in list_versions(choose_uri(args.tracking_uri)):
                print(_line(row))
        else:
            folder = pull(args.model, args.folder, uri=choose_uri(args.tracking_uri))
            print(f"{args.model}: {len(bundles.FILES)} files verified, in {folder}")
    except (ValueError, OSError) as err:
        return fail(1, err)
    return 0


def add_uri(parser: argparse.ArgumentParser) -> None:
    """The option that says which MLflow is meant."""
    parser.add_argument(
        "--tracking-uri", default="", metavar="URI", help=f"MLflow; default: {VARIABLE}"
    )


def choose_uri(given: str) -> str:
    """The URI of the command line or the environment."""
    uri = given or os.environ.get(VARIABLE, "")
    if not uri:
        raise ValueError(
            f"which MLflow? name it with --tracking-uri or {VARIABLE}: http://HOST:PORT or "
            f"sqlite:////FOLDER/mlflow.db"
        )
    return uri


def _line(row: dict[str, Any]) -> str:
    facts = [f"{key} {row['tags'][key]}" for key in _LISTED if key in row["tags"]]
    return "  ".join([_label(row), *facts])


def _label(row: dict[str, Any]) -> str:
    return f"{row['name']}/{row['version']}" + "".join(f" @{alias}" for alias in row["aliases"])


if __name__ == "__main__":
    sys.exit(main())
