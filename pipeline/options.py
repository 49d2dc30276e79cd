"""Options as nested mappings: YAML presets, what they are based on, and dotted overrides.

    read(["stylegan-b", "small"], ["schedule.total_kimg=10"])

A preset names another as its `base` (or a list of them, each laid over those before it) and lists
what differs.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PRESETS = Path(__file__).parent / "configs"

_SECRET = re.compile(
    r"://[^/?#@]*:([^/?#@]+)@|[?&][\w.-]*(?:signature|token|secret|password|credential|sig|key)=([^&]+)",
    re.IGNORECASE,
)
"""Of a URL: user:password@host, and what signs a request."""


class ConfigError(ValueError):
    """The configuration is wrong; the message names key, value, rule and remedy."""


def read(configs: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Presets by name or files by path, each laid over those before it, and the overrides.

    Raises:
        ConfigError: A file or an override cannot be read.
    """
    options: dict[str, Any] = {}
    for config in configs:
        options = _merged(options, _read(_find(config), seen=()))
    for override in overrides:
        _set(options, override)
    _refuse_secrets(options, "")
    return options


def refuse_secret(option: str, url: str) -> None:
    """Refuse a URL that carries a secret, which would stand in checkpoints, logs and the tracking.

    Raises:
        ConfigError: It does; the message does not repeat it.
    """
    found = _SECRET.search(url)
    if found:
        start, end = found.span(1 if found[1] else 2)
        raise ConfigError(
            f"{option} is {url[:start]}***{url[end:]}, a URL with a secret, which would be stored "
            f"with the run; leave it out and give credentials in the environment (AWS_*, "
            f"MLFLOW_TRACKING_USERNAME and _PASSWORD)"
        )


def _refuse_secrets(value: Any, key: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_secrets(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_secrets(inner, key)
    elif isinstance(value, str):
        refuse_secret(key, value)


def _find(config: str) -> Path:
    path = Path(config)
    preset = PRESETS / f"{config}.yaml"
    if path.is_file():
        return path
    if preset.is_file():
        return preset
    names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    raise ConfigError(f"--config {config} is neither a file nor a preset; choose from {names}")


def _read(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A YAML file merged over its bases."""
    if path in seen:
        raise ConfigError(f"{path} is its own base; remove `base: {path.stem}` from one of the two")
    try:
        options = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"{path} cannot be read as YAML: {err}") from err
    if not isinstance(options, dict):
        raise ConfigError(f"{path} holds {type(options).__name__}; write `key: value` lines")
    base = options.pop("base", None)
    if base is None:
        return options
    merged: dict[str, Any] = {}
    for name in [base] if isinstance(base, str) else base:
        beside = path.parent / f"{name}.yaml"
        parent = beside if beside.is_file() else _find(str(name))
        merged = _merged(merged, _read(parent, seen=(*seen, path)))
    return _merged(merged, options)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merged(old, value) if both and old is not None else value
    return merged


def _set(options: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write dotted.key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as err:
        raise ConfigError(f"the value of {override!r} is not YAML; quote it") from err
    *path, last = key.split(".")
    for name in path:
        options = options.setdefault(name, {})
        if not isinstance(options, dict):
            raise ConfigError(f"{override!r}: {name} is no section; it has the value {options!r}")
    # Resolutions are numbers, as in the files: schedule.batch.64=32.
    options[int(last) if last.isdecimal() else last] = value
