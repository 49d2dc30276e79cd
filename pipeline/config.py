"""The configuration of a training: YAML presets and dotted overrides into frozen dataclasses.

    config = load("demo", ["schedule.total_kimg=10", "workers=1"])

Files and overrides are read by `pipeline.options`. Every option lives in the dataclass
beside the class it configures; here they are gathered, checked (unknown keys, types, rules between
sections) and written out again. All that can be wrong is said before anything starts.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from data_prep.manifest import Manifest
from pipeline import options
from pipeline.checkpoint import CheckpointConfig
from pipeline.divergence import DivergenceConfig
from pipeline.evaluation_config import EvaluationConfig
from pipeline.loader import LoaderConfig
from pipeline.names import check_name
from pipeline.options import ConfigError
from pipeline.pulse import WatchdogConfig
from pipeline.sections import DataConfig, NetworkConfig, RayConfig, RegistryConfig
from pipeline.tracking import TrackingConfig, flatten
from stylegan.draws import Draws
from stylegan.networks import family, stylegan2
from stylegan.objective import LossConfig
from stylegan.optimizer import OptimizerConfig
from stylegan.schedule import ScheduleConfig, phases
from stylegan.split import Split, refusal
from stylegan.step import StepConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a training (see the head of this file)."""

    name: str
    """Of the run, in tracking and registry."""
    run_url: str
    """Folder or URL for checkpoints, samples and cached statistics."""
    seed: int = 0
    """Of every random number."""
    workers: int | tuple[int, int] = 1
    """Processes (GPUs) that train together; changes speed alone. [LEAST, MOST]: as many as there
    are at each moment."""
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
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)

    def __post_init__(self) -> None:
        if not self.registry.name:
            check_name(self.name, "name")
        least, most = self.worker_range
        if not 1 <= least <= most:
            raise ValueError(
                f"workers is {self.workers}; choose at least 1, or [LEAST, MOST] in this order"
            )
        if self.threads_per_worker < 1:
            raise ValueError(f"threads_per_worker is {self.threads_per_worker}; choose at least 1")
        Draws(seed=self.seed)  # refuses what would wrap
        if not 0 < self.commit_kimg < math.inf:
            raise ValueError(f"commit_kimg is {self.commit_kimg}; choose a positive number")
        if not self.run_url:
            raise ValueError("run_url is empty; name a folder or URL for the checkpoints")
        if self.step.speed != "eager" and self.network.kind in ("gan", "dcgan"):
            raise ValueError(
                f"step.speed is {self.step.speed}, but networks of kind {self.network.kind} have "
                "no blocks to compile; set step.speed=eager"
            )
        self._check_networks()
        if not self.network.G.grows:
            full = replace(self.schedule, first_resolution=self.network.resolution)
            object.__setattr__(self, "schedule", full)
        self._check_split()

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    def _check_networks(self) -> None:
        """See that G and D grow together, and that there are styles where they are to be mixed."""
        G, D = self.network.G, self.network.D
        if isinstance(G, stylegan2.GeneratorConfig) and G.grows != D.grows:
            assert isinstance(D, stylegan2.DiscriminatorConfig), "both are of one kind"
            remedy = "network.D.architecture=growing or network.G.architecture=skip"
            if D.grows:
                remedy = "network.G.architecture=growing or network.D.architecture=residual"
            raise ValueError(
                f"network.G.architecture is {G.architecture} and network.D.architecture is "
                f"{D.architecture}; both must grow or neither: set {remedy}"
            )
        # The default mixes nothing where there are no styles; another number was asked for.
        mixing_prob = self.step.mixing_prob
        if mixing_prob not in (0, StepConfig.mixing_prob) and G.layers() == 1:
            raise ValueError(
                f"step.mixing_prob is {mixing_prob}, but this generator of kind {G.kind} has no "
                "styles to mix; set step.mixing_prob=0"
            )

    def _check_split(self) -> None:
        """See that every minibatch can be shared out among any number of workers there may be."""
        D, micro_batch = self.network.D, self.step.micro_batch
        if micro_batch and D.batch_statistics:
            raise ValueError(
                f"step.micro_batch is {micro_batch}, but {self.network.kind} normalizes over whole "
                "minibatches; set step.micro_batch=0"
            )
        for phase in phases(self.schedule, resolution=self.network.resolution):
            # What can be shared out among the most workers can be among fewer.
            reason = refusal(
                phase.batch,
                world=self.worker_range[1],
                group=D.group,
                micro_batch=micro_batch,
            )
            group = min(D.group, phase.batch)
            if self.loss.path_weight > 0 and group % self.loss.path_shrink:
                raise ValueError(
                    f"loss.path_shrink is {self.loss.path_shrink}; it must divide the {group} "
                    "images of a minibatch-stddev group (network.D.mbstd_group): choose 1"
                )
            if reason:
                raise ValueError(
                    f"at {phase.resolution} px {reason} (schedule.batch, workers, "
                    "step.micro_batch, network.D.mbstd_group)"
                )

    def draws(self, attempt: int) -> Draws:
        """The random numbers of the run after so many rollbacks."""
        return Draws(seed=self.seed, attempt=attempt, fused=self.step.speed != "eager")

    def split(self, rank: int, world: int) -> Split:
        """The share of one worker of so many."""
        return Split(
            world=world,
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
        if manifest.height is not None:
            raise ConfigError(
                f"the images of {url} are {manifest.resolution}x{manifest.height}, but networks "
                f"make squares; rerun data_prep with --resolution {network.resolution} and "
                f"--crop centre or centre-wide"
            )
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
            "threads_per_worker",
            "workers",
        }
        free |= {"step.micro_batch", "step.speed", "schedule.total_kimg", "data.url"}
        sections = (
            "schedule.tick_kimg",
            "checkpoint.",
            "divergence.",
            "evaluation.",
            "loader.",
            "ray.",
            "registry.",
            "tracking.",
            "watchdog.",
        )
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


def load(config: str | Sequence[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """Read presets by name or YAML files by path, and apply `dotted.key=value` overrides.

    Args:
        config: One, or several of which each is laid over those before it.
        overrides: What differs from them.

    Raises:
        ConfigError: Something is wrong with it; one sentence.
    """
    names = [config] if isinstance(config, str) else config
    return parse(options.read(names, overrides))


def parse(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration of nested values, as `to_dict` and the YAML files write them.

    Raises:
        ConfigError: Something is wrong with it; one sentence.
    """
    _refuse_unknown(TrainConfig, values, "")
    try:
        config = TypeAdapter(TrainConfig).validate_python(_with_shared(values))
    except ValidationError as err:
        raise ConfigError(_sentence(err)) from err
    known = config.identity()
    for key in config.accept_changes:
        if key not in known:
            raise ConfigError(
                f"accept_changes names {key}, which is no option that decides what a run computes"
                f"{_near(key, known)}; leave it out"
            )
    return config


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values, from which `parse` makes the same configuration."""
    values: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    for name in ("G", "D"):
        for key in _SHARED:
            values["network"][name].pop(key)
    return values


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
            raise ConfigError(
                f"unknown option {prefix}{key}{_near(str(key), known, prefix)}; "
                f"choose from {', '.join(sorted(known))}"
            )
        numbers = {hints[key], *get_args(hints[key])} & {int, float}
        if isinstance(value, bool) and numbers and bool not in get_args(hints[key]):
            raise ConfigError(f"{prefix}{key} is {value}; it takes a number")
        section = _section(hints[key], options.get("kind", "stylegan"))
        if section is not None and value is not None:
            _refuse_unknown(section, value, f"{prefix}{key}.")


def _near(key: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _section(hint: Any, kind: str) -> type | None:
    """The dataclass of a section; of networks that of this kind."""
    choices = [c for c in (hint, *get_args(hint)) if dataclasses.is_dataclass(c)]
    if len(choices) > 1:
        choices = [c for c in choices if getattr(c, "kind", None) == kind]
    return next((c for c in choices if isinstance(c, type)), None)


_TYPE = re.compile(r"\[key\]|int|float|str|bool|(list|tuple|dict)\[.*")
"""What pydantic puts among the keys."""


def _sentence(err: ValidationError) -> str:
    """The first thing pydantic found, in one sentence."""
    first = err.errors()[0]
    kinds = family.KINDS if first["loc"][:1] == ("network",) else ()
    parts = [str(part) for part in first["loc"] if part not in kinds]
    key = ".".join(part for part in parts if not _TYPE.fullmatch(part))
    sentence = _said(first, key)
    for name in _SHARED:
        for network in ("G", "D"):
            sentence = sentence.replace(f"network.{network}.{name}", f"network.{name}")
    return sentence


def _said(first: ErrorDetails, key: str) -> str:
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        if key in ("network.G", "network.D"):
            return f"network.{message}"
        return message if not key or "." in message.split(" ", 1)[0] else f"{key}.{message}"
    if first["type"] == "missing":
        return f"{key} is missing; set it in the file or on the command line as {key}=…"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} is {first['input']!r}; {message}: set another with {key}=…"
