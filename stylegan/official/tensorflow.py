"""Networks of the TensorFlow code: build function, options and variables to ours.

A pickled network knows the name of the function that built it, the options that function was called
with, its variables, and for generators two networks of their own, `mapping` and `synthesis`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from stylegan.data_pickle import ArchiveError, brief
from stylegan.networks import family
from stylegan.networks.interface import Generator
from stylegan.official import names
from stylegan.official.names import SCOPES, SYNTHESIS, Imported, Network, value_of
from stylegan.official.unpickler import Array, TensorFlowNetwork


@dataclass(frozen=True, kw_only=True)
class Build:
    """What a build function makes."""

    kind: str
    """Our name of the paper."""
    generator: bool
    """Or a discriminator."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of our configuration, where the function itself decides."""
    indifferent: frozenset[str] = frozenset()
    """Options that change how its outputs are computed, but not the outputs."""
    truncation: tuple[float | None, int | None] = (None, None)
    """psi and cutoff that it uses unless told otherwise; None = none, and all layers."""


BUILDS = {
    ("G_paper",): Build(kind="pggan", generator=True),
    ("D_paper",): Build(kind="pggan", generator=False),
    ("G_style", "G_mapping", "G_synthesis"): Build(
        kind="stylegan", generator=True, truncation=(0.7, 8)
    ),
    ("D_basic",): Build(kind="stylegan", generator=False, indifferent=frozenset({"fused_scale"})),
    ("G_main", "G_mapping", "G_synthesis_stylegan2"): Build(
        kind="stylegan2", generator=True, truncation=(0.5, None)
    ),
    ("D_stylegan2",): Build(kind="stylegan2", generator=False),
    ("G_main", "G_mapping", "G_synthesis_stylegan_revised"): Build(
        kind="stylegan2",
        generator=True,
        fields={"architecture": "growing"},
        truncation=(0.5, None),
    ),
    ("D_stylegan",): Build(kind="stylegan2", generator=False, fields={"architecture": "growing"}),
}
"""By the name of the function and those that built the parts."""

OPTIONS = {
    "resolution": "resolution",
    "num_channels": "channels",
    "label_size": "label_size",
    "fmap_base": "fmap_base",
    "fmap_max": "fmap_max",
    "latent_size": "z_size",
    "dlatent_size": "w_size",
    "mapping_layers": "mapping_layers",
    "mapping_fmaps": "mapping_width",
    "mapping_lrmul": "mapping_lr_multiplier",
    "mapping_nonlinearity": "mapping_activation",
    "nonlinearity": "activation",
    "use_leakyrelu": "activation",
    "normalize_latents": "normalize_z",
    "use_styles": "use_styles",
    "use_noise": "use_noise",
    "use_instance_norm": "use_instance_norm",
    "use_pixel_norm": "use_pixel_norm",
    "const_input_layer": "const_input",
    "use_wscale": "use_wscale",
    "blur_filter": "blur",
    "fused_scale": "fused_scale",
    "architecture": "architecture",
    "resample_kernel": "fir",
    "mbstd_group_size": "mbstd_group",
    "mbstd_num_features": "mbstd_features",
}
"""Our field for each option; not all networks have all."""

_FIXED = {
    "dtype": "float32",
    "fmap_decay": 1.0,
    "fused_scale": True,
    "normalize_latents": True,
    "pixelnorm_epsilon": 1e-8,
    "use_pixelnorm": True,
    "use_wscale": True,
}
"""The one value of options for which a network of ours has no field."""

_NOT_OF_THE_NETWORK = {
    "truncation_psi",
    "truncation_cutoff",
    "dlatent_avg_beta",
    "style_mixing_prob",
    "randomize_noise",
    "is_training",
    "is_validation",
    "is_template_graph",
    "structure",
    "force_clean_graph",
    "fused_modconv",
    "mapping_func",
    "synthesis_func",
}


def build_network(
    build: Build, static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray]
) -> Network:
    """The network of these options with these variables (names without a leading `G/` or `D/`).

    Raises:
        ValueError: Options or variables do not fit our networks.
    """
    module = family.KINDS[build.kind]
    config = module.GeneratorConfig if build.generator else module.DiscriminatorConfig
    options = _options(build, config, static_kwargs)
    return names.build(config(**options), lambda network: names.fitting(network, variables))


def _options(build: Build, config: type, static_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    ours = {item.name for item in fields(config)}
    options: dict[str, Any] = {}
    for key, value in static_kwargs.items():
        if key in _NOT_OF_THE_NETWORK or key in build.indifferent:
            continue
        if OPTIONS.get(key) in ours:
            options[OPTIONS[key]] = value_of(OPTIONS[key], value)
        elif key not in _FIXED or value != _FIXED[key]:
            here = f"only {key}={_FIXED[key]!r}" if key in _FIXED else "no such option"
            raise ValueError(
                f"the file's network has the option {key}={brief(value)}, but {build.kind} has "
                f"{here} here; it cannot be imported"
            )
    if build.kind == "pggan" and build.generator and options.get("z_size") is None:
        sizes: dict[str, Any] = {item.name: item.default for item in fields(config)} | options
        options["z_size"] = min(sizes["fmap_base"], sizes["fmap_max"])
    return {**options, **build.fields}


def convert(record: TensorFlowNetwork) -> Imported:
    """A pickled network as ours.

    Raises:
        ArchiveError: It lacks what every pickled network has.
        ValueError: It cannot be represented; names the option or variable.
    """
    parts = dict(_parts(record))
    built_by = tuple(part.field("build_func_name", str) for part in (record, *parts.values()))
    if built_by not in BUILDS:
        raise ValueError(
            f"the network was built by {_joined(built_by)}, but those that can be imported are of "
            f"{'; '.join(_joined(known) for known in BUILDS)}"
        )
    build, static_kwargs = BUILDS[built_by], record.field("static_kwargs", dict)
    for key in static_kwargs:
        if not isinstance(key, str):
            raise ArchiveError(f"an option of a network is a {type(key).__name__}, not a name")
    variables = dict(variables_of(record))
    psi, cutoff = _truncation(build, static_kwargs)
    network = build_network(build, static_kwargs, variables)
    lod = float(variables.get(f"{SYNTHESIS}/lod", variables.get("lod", 0.0)))
    lod = lod if network.config.grows else 0.0
    network.active_parameters(lod)  # refuses what is no lod of the network
    usual_psi, usual_cutoff = _usual_truncation(network, psi, cutoff)
    return Imported(
        network=network,
        lod=lod,
        psi=usual_psi,
        cutoff=usual_cutoff,
        facts={
            "source_format": f"TensorFlow, version {record.field('version', int)}, {built_by[0]}",
            "truncation_psi": psi,
            "truncation_cutoff": cutoff,
        },
    )


def _truncation(build: Build, static_kwargs: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """The file's psi and cutoff."""
    psi, cutoff = (
        value_of(key, static_kwargs.get(f"truncation_{key}", default))
        for key, default in zip(("psi", "cutoff"), build.truncation, strict=True)
    )
    if not (psi is None or (isinstance(psi, int | float) and math.isfinite(psi))):
        raise ValueError(
            f"the file's network has truncation_psi={brief(psi)}; it must be a finite "
            "number, or None"
        )
    if not (cutoff is None or (isinstance(cutoff, int) and cutoff >= 0)):
        raise ValueError(
            f"the file's network has truncation_cutoff={brief(cutoff)}; it must be 0 or "
            "more, or None"
        )
    return psi, cutoff


def _usual_truncation(
    network: Network, psi: float | None, cutoff: int | None
) -> tuple[float | None, int | None]:
    """The same as ours: psi 1 is no truncation, and cutoff None all layers."""
    if not isinstance(network, Generator) or network.config.kind == "pggan":
        return None, None
    if psi is None or (cutoff is None and network.config.kind == "stylegan"):
        return 1.0, None
    return float(psi), cutoff if cutoff is None or cutoff < network.layers() else None


_TRANSPOSED_UP_TO_VERSION = 2


def variables_of(record: TensorFlowNetwork, scope: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Variables of a network and of its parts under their full names, as StyleGAN lays them out."""
    transposed = record.field("version", int) <= _TRANSPOSED_UP_TO_VERSION
    for variable in record.field("variables", list):
        pair = isinstance(variable, tuple) and len(variable) == 2
        name, value = variable if pair else (None, variable)
        known = isinstance(value, Array | np.generic | int | float)
        array = np.asarray(value.value if isinstance(value, Array) else value if known else None)
        if not isinstance(name, str) or array.dtype.kind not in "fiu":
            name = name if isinstance(name, str) else ""
            raise ArchiveError(f"variable {scope}{name} is {type(value).__name__}, not an array")
        if transposed and name.endswith("/Conv0_up/weight"):
            array = array.swapaxes(2, 3)  # [kh kw o i] in Progressive GAN's own repository
        yield f"{scope}{name}", array
    for name, part in _parts(record):
        yield from variables_of(part, f"{SCOPES[name]}/")


def _parts(record: TensorFlowNetwork) -> Iterator[tuple[str, TensorFlowNetwork]]:
    """The networks of which a network is made, in order of their names."""
    parts = record.field("components", dict) if "components" in record.fields else {}
    if not parts.keys() <= SCOPES.keys():
        raise ArchiveError(
            f"parts of a network are {brief(list(parts))}, not {' and '.join(SCOPES)}"
        )
    for name, part in sorted(parts.items()):
        if not isinstance(part, TensorFlowNetwork):
            raise ArchiveError(f"part {name} of a network is {type(part).__name__}, not a network")
        if part.fields.get("components"):
            raise ArchiveError(f"part {name} of a network has parts of its own")
        yield name, part


def _joined(built_by: tuple[str, ...]) -> str:
    return " with ".join(built_by[:1] + (" and ".join(built_by[1:]),) * (len(built_by) > 1))
