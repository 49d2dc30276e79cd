"""Kubernetes manifests checked as its server would, and more strictly: no unknown field passes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "schemas"))
"""Of the operator's own CustomResourceDefinitions."""

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
    },
}
"""The operator's schemas leave metadata to the server."""


def validators(folder: Path = FOLDER) -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """By apiVersion and kind, for all definitions of the folder."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
            found[key] = jsonschema.Draft202012Validator(schema)
    return found


def errors(validator: jsonschema.Draft202012Validator, document: Any) -> list[str]:
    """What is wrong with a document, as sentences with their places."""
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def free_maps(schema: Any, document: Any, place: str = "$") -> Iterator[str]:
    """Places of the document whose keys are the user's: labels, limits, rayStartParams."""
    if isinstance(document, dict):
        if not schema.get("properties"):
            yield place
        for key, value in document.items():
            yield from free_maps(schema.get("properties", {}).get(key, {}), value, f"{place}.{key}")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from free_maps(schema.get("items", {}), value, f"{place}[{index}]")


def _strict(schema: dict[str, Any], name: str = "") -> dict[str, Any]:
    """The JSON schema of an OpenAPI one, closed to what it does not name.

    Raises:
        ValueError: Somewhere it lets everything through, which nobody would check.
    """
    if schema.get("x-kubernetes-preserve-unknown-fields") or (
        schema.get("type") == "object"
        and not schema.get("properties")
        and "additionalProperties" not in schema
        and name != "metadata"
    ):
        raise ValueError(
            f"{name or 'the schema'} accepts anything; check it against another schema"
        )
    if schema.get("x-kubernetes-int-or-string"):
        either = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
        return {**either, **{key: schema[key] for key in ("pattern",) if key in schema}}
    strict = {key: value for key, value in schema.items() if not key.startswith("x-")}
    if name == "metadata" and not schema.get("properties"):
        return METADATA
    if "properties" in schema:
        strict["additionalProperties"] = False
        strict["properties"] = {key: _strict(s, key) for key, s in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    return strict
