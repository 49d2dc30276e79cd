"""The configuration of a training: YAML presets and dotted overrides into frozen dataclasses.

    config = load("demo", ["schedule.total_kimg=10", "workers=1"])

A preset names another as its `base` and lists what differs. Every option lives in the dataclass
beside the class it configures; here they are gathered, checked (unknown keys, types, rules between
sections) and written out again. All that can be wrong is said before anything starts.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from data_prep.manifest import Manifest
from pipeline.checkpoint import CheckpointConfig
from pipeline.loader import LoaderConfig
from pipeline.measure import EvaluationConfig
from pipeline.names import check_alias, check_name
from pipeline.tracking import TrackingConfig, flatten
from stylegan.draws import Draws
from stylegan.networks import family
from stylegan.objective import LossConfig
from stylegan.optimizer import OptimizerConfig
from stylegan.schedule import ScheduleConfig, phases
from stylegan.split import Split, refusal
from stylegan.step import StepConfig

PRESETS = Path(__file__).parent / "configs"


class ConfigError(ValueError):
    """The configuration is wrong; the message names key, value, rule and remedy."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images are shown."""

    url: str
    """Folder or URL of a data set made by `python -m data_prep shard`."""
    mirror: bool = False
    """Flip a keyed half of the images left to right."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """G and D; what both share stands beside them."""

    kind: Literal["stylegan", "pggan"] = "stylegan"
    """The paper: stylegan or pggan."""
    resolution: int
    """Width and height of the finished generator's images, in pixels."""
    channels: int = 3
    """Of the images; 3 is RGB."""
    label_size: int = 0
    """Length of the labels; 0 is unconditional."""
    G: Annotated[family.GeneratorConfig, Field(discriminator="kind")]
    """Generator."""
    D: Annotated[family.DiscriminatorConfig, Field(discriminator="kind")]
    """Discriminator."""


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where the finished generator is registered."""

    name: str = ""
    """Name of the registered model; empty for the run's name."""
    alias: str = "champion"
    """Alias that moves to a version only if it is better, like for like; empty for none."""

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name, "registry.name")
        if self.alias:
            check_alias(self.alias, "registry.alias")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How Ray runs the group of workers."""

    address: str = "auto"
    """auto: the cluster of the job or of RAY_ADDRESS, else a local one; local: never another's."""
    max_failures: int = 10
    """Restarts of the group before the run fails."""

    def __post_init__(self) -> None:
        if self.max_failures < 0:
            raise ValueError(f"ray.max_failures is {self.max_failures}; choose 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a training (see the head of this file)."""

    name: str
    """Of the run, in tracking and registry."""
    run_url: str
    """Folder or URL for checkpoints, samples and cached statistics."""
    seed: int = 0
    """Of every random number."""
    workers: int = 1
    """Processes (GPUs) that train together; changes speed alone."""
    threads_per_worker: int = 1
    """Threads of torch in a worker; another value gives other last bits on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    commit_kimg: float = 100
    """Thousands of images between checkpoints; besides, the first and the last state."""
    accept_changes: tuple[str, ...] = ()
    """Keys that may differ from those the run was begun with, such as loss.r1_gamma."""
    init_from: str = ""
    """URL of a checkpoint whose G, D and Gs a new run begins with."""
    data: DataConfig
    network: NetworkConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    step: StepConfig = field(default_factory=StepConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if not self.registry.name:
            check_name(self.name, "name")
        for key in ("workers", "threads_per_worker"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; choose at least 1")
        Draws(seed=self.seed)  # refuses what would wrap
        if self.commit_kimg <= 0:
            raise ValueError(f"commit_kimg is {self.commit_kimg}; choose a positive number")
        for phase in phases(self.schedule, resolution=self.network.resolution):
            reason = refusal(
                phase.batch,
                world=self.workers,
                group=self.network.D.group,
                micro_batch=self.step.micro_batch,
            )
            if reason:
                raise ValueError(f"schedule.batch at {phase.resolution} px: {reason}")

    def split(self, rank: int) -> Split:
        """The share of one worker."""
        return Split(
            world=self.workers,
            rank=rank,
            group=self.network.D.group,
            micro_batch=self.step.micro_batch,
        )

    def check_data(self, manifest: Manifest) -> None:
        """Refuse data that do not fit.

        Raises:
            ConfigError: Levels, channels or labels are others.
        """
        network, url = self.network, self.data.url
        have = {level.resolution for level in manifest.levels}
        shown = phases(self.schedule, resolution=network.resolution)
        need = {network.resolution, *(phase.resolution for phase in shown)}
        if need - have:
            raise ConfigError(
                f"network.resolution is {network.resolution}, but {url} has no level of "
                f"{', '.join(f'{r} px' for r in sorted(need - have))}, only "
                f"{', '.join(map(str, sorted(have)))}; choose one of these or rerun data_prep "
                f"with --resolution {max(need)}"
            )
        if manifest.channels != network.channels:
            raise ConfigError(
                f"network.channels is {network.channels}, but the images of {url} have "
                f"{manifest.channels}; set network.channels={manifest.channels}"
            )
        labels = 0 if manifest.labels is None else manifest.labels.size
        if network.label_size not in (0, labels):
            raise ConfigError(
                f"network.label_size is {network.label_size}, but the labels of {url} have "
                f"{labels} numbers; set network.label_size={' or '.join({str(labels): 0, '0': 0})}"
            )

    def identity(self) -> dict[str, Any]:
        """The options that decide what a run computes, by dotted key."""
        free = {
            "accept_changes",
            "commit_kimg",
            "device",
            "init_from",
            "name",
            "run_url",
            "workers",
        }
        free |= {"step.micro_batch", "schedule.total_kimg", "data.url"}
        sections = ("checkpoint.", "evaluation.", "loader.", "ray.", "registry.", "tracking.")
        return {
            key: value
            for key, value in flatten(to_dict(self)).items()
            if key not in free and not key.startswith(sections)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of `identity`."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load(config: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset by name or a YAML file by path, and apply `dotted.key=value` overrides.

    Raises:
        ConfigError: Something is wrong with it; one sentence.
    """
    options = _read(_find(config), seen=())
    for override in overrides:
        _set(options, override)
    return parse(options)


def parse(options: Mapping[str, Any]) -> TrainConfig:
    """The configuration of nested options, as `to_dict` and the YAML files write them.

    Raises:
        ConfigError: Something is wrong with it; one sentence.
    """
    _refuse_unknown(TrainConfig, options, "")
    try:
        return TypeAdapter(TrainConfig).validate_python(_with_shared(options))
    except ValidationError as err:
        raise ConfigError(_sentence(err)) from err


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values, from which `parse` makes the same configuration."""
    options: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    for name in ("G", "D"):
        for key in _SHARED:
            options["network"][name].pop(key)
    return options


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as a file that can be given to --config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=100)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of two identities whose values differ, with both values."""
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }


_SHARED = ("kind", "resolution", "channels", "label_size")
"""Of both networks; they stand in `network` alone."""


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
    beside = path.parent / f"{base}.yaml"
    parent = beside if beside.is_file() else _find(str(base))
    return _merged(_read(parent, seen=(*seen, path)), options)


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
        value = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"the value of {override!r} is not YAML; quote it") from err
    *path, last = key.split(".")
    for name in path:
        options = options.setdefault(name, {})
        if not isinstance(options, dict):
            raise ConfigError(f"{override!r}: {name} is no section; it has the value {options!r}")
    # Resolutions are numbers, as in the files: schedule.batch.64=32.
    options[int(last) if last.isdecimal() else last] = value


def _with_shared(options: Mapping[str, Any]) -> dict[str, Any]:
    network = dict(options.get("network") or {})
    shared = {key: network[key] for key in _SHARED if key in network}
    # Without a resolution its absence in `network` is what is to be reported.
    shared.setdefault("resolution", 8)
    shared.setdefault("kind", "stylegan")
    for name in ("G", "D"):
        network[name] = {**(network.get(name) or {}), **shared}
    return {**options, "network": network}


def _refuse_unknown(kind: type, options: Any, prefix: str) -> None:
    """Raise for the first key that no dataclass has."""
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.') or 'the configuration'} is {options!r}; it takes options, "
            f"written `key: value`"
        )
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    if prefix in ("network.G.", "network.D."):
        known = [name for name in known if name not in _SHARED]
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(
                f"unknown option {prefix}{key}{hint}; choose from {', '.join(sorted(known))}"
            )
        section = _section(hints[key], options.get("kind", "stylegan"))
        if section is not None and value is not None:
            _refuse_unknown(section, value, f"{prefix}{key}.")


def _section(hint: Any, kind: str) -> type | None:
    """The dataclass of a section; of networks that of this kind."""
    choices = [c for c in (hint, *get_args(hint)) if dataclasses.is_dataclass(c)]
    if len(choices) > 1:
        choices = [c for c in choices if getattr(c, "kind", None) == kind]
    return next((c for c in choices if isinstance(c, type)), None)


def _sentence(err: ValidationError) -> str:
    """The first thing pydantic found, in one sentence."""
    first = err.errors()[0]
    kinds = family.KINDS if first["loc"][:1] == ("network",) else ()
    key = ".".join(str(p) for p in first["loc"] if p != "[key]" and p not in kinds)
    for name in _SHARED:
        for network in ("G", "D"):
            key = key.replace(f"network.{network}.{name}", f"network.{name}")
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        if key in ("network.G", "network.D"):
            return f"network.{message}"
        prefix = key.split(".", 1)[0] if key else ""
        named = not prefix or prefix in message
        return message if named else f"{key}: {message}"
    if first["type"] == "missing":
        return f"{key} is missing; set it in the file or on the command line as {key}=…"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} is {first['input']!r}; {message}"
