"""Official variable names and layouts of what our networks store.

Weights are [kh kw i o] and [i o] officially, [o i kh kw] and [o i] here. RGB heads are named by how
many levels they lie below the full size.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stylegan.data_pickle import brief
from stylegan.layers import Activation
from stylegan.networks import family
from stylegan.networks.interface import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.official.unpickler import MAX_BYTES

MAPPING, SYNTHESIS = "G_mapping", "G_synthesis"
SCOPES = {"mapping": MAPPING, "synthesis": SYNTHESIS}
"""Of a generator's two parts."""

Network = Generator | Discriminator
Config = GeneratorConfig | DiscriminatorConfig

_MAX_LAYERS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """A network of an official file as ours."""

    network: Network
    lod: float
    """Level of detail that it was trained up to; 0 = full size."""
    facts: Mapping[str, Any]
    """What else the file says, as JSON holds it."""
    notes: Sequence[str] = ()
    """In what ours differs; a sentence each."""
    psi: float | None = None
    """Truncation of its images unless told otherwise; None = ours."""
    cutoff: int | None = None
    """Layers that are truncated then, from the coarsest; None = all."""


def names(network: Network) -> dict[str, str]:
    """Official name of each of our parameters and stored buffers that has one."""
    name = _NAMES[network.config.kind, network.config.name]
    every = {ours: name(ours, network.config) for ours in network.state_dict()}
    return {ours: official for ours, official in every.items() if official}


def load(network: Network, variables: Mapping[str, np.ndarray]) -> None:
    """Set everything in a network from official variables; all but `lod` must have a place.

    Raises:
        ValueError: Names or shapes are others than the network's.
    """
    network.load_state_dict(network.state_dict() | fitting(network, variables))


def fitting(network: Network, variables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """What `load` sets; the network may be without content."""
    theirs = names(network)
    given = {name for name in variables if name.rpartition("/")[2] != "lod"}
    return compare(
        network,
        theirs,
        given,
        lambda ours: to_ours(theirs[ours], np.asarray(variables[theirs[ours]])),
    )


def build(config: Config, fitting: Callable[[Network], Mapping[str, Tensor]]) -> Network:
    """The network of a configuration that comes from a file.

    Nothing is made before the file's tensors have been found to be those of the network, nor a
    network of more than MAX_BYTES: a file may name one tensor many times.

    Args:
        config: Its sizes may be anything.
        fitting: The file's tensors for a network; refuses one that they do not fit.

    Raises:
        ValueError: They do not fit, or the sizes are beyond all networks.
    """
    make: Callable[[Any], Network] = (
        family.generator if isinstance(config, GeneratorConfig) else family.discriminator
    )
    sizes = "the file's options describe a network larger than any official one"
    layers = config.resolution.bit_length() + getattr(config, "mapping_layers", 0)
    taps = max(len(getattr(config, name, ())) for name in ("blur", "fir"))
    if max(layers, taps) > _MAX_LAYERS:
        raise ValueError(f"{sizes}: of {layers} layers, with filters of {taps} taps")
    try:
        with _WithoutContent():
            outline = make(config)
    except (RuntimeError, TypeError, OverflowError) as err:  # torch has no such sizes
        raise ValueError(f"{sizes}, which cannot be made") from err
    needed = sum(t.nbytes for t in (*outline.parameters(), *outline.buffers()))
    if needed > MAX_BYTES:
        raise ValueError(f"{sizes}: {needed} bytes")
    tensors = fitting(outline)
    network = make(config)
    network.load_state_dict(network.state_dict() | dict(tensors))
    return network


class _WithoutContent(TorchFunctionMode):
    """New tensors have a shape alone, whatever device they are asked for.

    A factor changes no shape, and torch loads its compiler to multiply on the meta device.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.ones, torch.rand, torch.randn, torch.zeros):
            return torch.empty(*args, device="meta")
        if func is torch.Tensor.mul and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def compare(
    network: Network,
    theirs: Mapping[str, str],
    given: Set[str],
    tensor_of: Callable[[str], Tensor],
) -> dict[str, Tensor]:
    """Whatever a file has for a network, by our names.

    Args:
        network: Of ours.
        theirs: The file's name of each of our tensors.
        given: All names in the file.
        tensor_of: The file's tensor in our layout by our name; asked if all names are there.

    Raises:
        ValueError: Names or shapes are others than the network's.
    """
    state, tensors = network.state_dict(), dict[str, Tensor]()
    differences = [
        f"{name} {'has no place' if name in given else 'is missing'}"
        for name in sorted(given ^ set(theirs.values()))
    ]
    for ours, name in theirs.items() if not differences else ():
        tensor = tensor_of(ours)
        if tensor.shape != state[ours].shape:
            shapes = f"{list(tensor.shape)} instead of {list(state[ours].shape)}"
            differences.append(f"{name} is {shapes} in our order of axes")
        else:
            tensors[ours] = tensor
    if differences:
        raise ValueError(
            f"tensors of the file do not fit {network.config.name} as the file's options describe "
            f"it: {', '.join(differences[:4])}{' ...' if len(differences) > 4 else ''}"
        )
    return tensors


def value_of(our_field: str, value: Any) -> Any:
    """An official option's value as our field takes it.

    Raises:
        ValueError: An activation that networks here do not have.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str | bool | None):
        value = _VALUES.get(our_field, {}).get(value, value)
    if our_field.endswith("activation") and value not in get_args(Activation):
        raise ValueError(
            f"the file's network has the activation {brief(value)}; networks here have "
            f"{' or '.join(get_args(Activation))}"
        )
    return value


def to_ours(name: str, array: np.ndarray) -> Tensor:
    """The official variable of this name in our layout."""
    return torch.from_numpy(np.array(array.transpose(_order(name, array.ndim)), order="C"))


def _order(name: str, ndim: int) -> tuple[int, ...]:
    """Axes of the official array in the order of ours."""
    *_, scope, leaf = ["", *name.split("/")]
    if leaf in ("weight", "mod_weight") and scope != "LabelConcat":
        return {2: (1, 0), 4: (3, 2, 0, 1)}.get(ndim, tuple(range(ndim)))
    return tuple(range(ndim))


def _mapping(parts: list[str]) -> str:
    """Of what lies below `mapping`."""
    if parts[0] == "label_weight":
        return f"{MAPPING}/LabelConcat/weight"
    return f"{MAPPING}/Dense{parts[0]}/{parts[1]}"


def _stylegan_generator(ours: str, config: Any) -> str:
    parts = ours.split(".")
    if ours == "w_avg":
        return "dlatent_avg"
    if parts[0] == "mapping":
        return _mapping(parts[1:])
    if parts[1] == "to_rgb":
        return f"{SYNTHESIS}/ToRGB_lod{_lod(parts[2], config)}/{parts[3]}"
    if parts[1] != "blocks":
        return f"{SYNTHESIS}/{parts[1]}"  # noise0, noise1, ...

    # synthesis.blocks.<side>.<layer>...
    side, layer = parts[2], parts[3]
    first = "Conv0_up" if side != "4" else "Const" if config.const_input else "Dense"
    second = "Conv1" if side != "4" else "Conv"
    official_layer = second if layer.endswith("1") else first
    leaf = {
        "const": "const",
        "noise_strength": "Noise/weight",
        "weight": "StyleMod/weight" if "style" in parts else "weight",
        "bias": "StyleMod/bias" if "style" in parts else "bias",
    }[parts[-1]]
    return f"{SYNTHESIS}/{side}x{side}/{official_layer}/{leaf}"


def _stylegan_discriminator(ours: str, config: Any) -> str:
    parts = ours.split(".")
    leaf = parts[-1]
    if parts[0] == "from_rgb":
        return f"FromRGB_lod{_lod(parts[1], config)}/{leaf}"
    if parts[0] == "tail":
        layer = {"conv": "Conv", "dense0": "Dense0", "dense1": "Dense1"}[parts[1]]
        return f"4x4/{layer}/{leaf}"
    layer = {"conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip"}[parts[2]]
    return f"{parts[1]}x{parts[1]}/{layer}/{leaf}"


def _pggan_generator(ours: str, config: Any) -> str:
    if ours == "w_avg":
        return ""  # the mean of its latents is 0
    _, kind, side, layer, *leaf = ours.split(".")
    if kind == "to_rgb":
        return f"ToRGB_lod{_lod(side, config)}/{layer}"
    first, second = ("Dense", "Conv") if side == "4" else ("Conv0_up", "Conv1")
    if layer == "bias0":
        return f"{side}x{side}/{first}/bias"
    return f"{side}x{side}/{second if layer == 'conv1' else first}/{leaf[0]}"


def _stylegan2_generator(ours: str, config: Any) -> str:
    parts = ours.split(".")
    if parts[0] != "synthesis":
        return _stylegan_generator(ours, config)
    leaf = f"mod_{parts[-1]}" if parts[-2] == "style" else parts[-1]
    if parts[1] == "to_rgb":
        side, layer = parts[2], "ToRGB"
        if config.grows:
            return f"{SYNTHESIS}/ToRGB_lod{_lod(side, config)}/{leaf}"
    elif parts[1] == "blocks":
        side = parts[2]
        names = {"const": "Const", "conv0": "Conv0_up", "conv1": "Conv1", "skip": "Skip"}
        layer = "Conv" if parts[3] == "conv1" and side == "4" else names[parts[3]]
    else:
        return f"{SYNTHESIS}/{parts[1]}"  # noise0, noise1, ...
    return f"{SYNTHESIS}/{side}x{side}/{layer}/{leaf}"


def _stylegan2_discriminator(ours: str, config: Any) -> str:
    parts = ours.split(".")
    if parts[:2] == ["tail", "dense1"]:
        return f"Output/{parts[2]}"
    if parts[0] == "from_rgb" and not config.grows:
        return f"{parts[1]}x{parts[1]}/FromRGB/{parts[2]}"
    return _stylegan_discriminator(ours, config)


def _lod(side: str, config: Any) -> int:
    resolution: int = config.resolution
    return resolution.bit_length() - int(side).bit_length()


_NAMES: dict[tuple[str, str], Callable[[str, Any], str]] = {
    ("pggan", "G"): _pggan_generator,
    ("pggan", "D"): _stylegan_discriminator,
    ("stylegan", "G"): _stylegan_generator,
    ("stylegan", "D"): _stylegan_discriminator,
    ("stylegan2", "G"): _stylegan2_generator,
    ("stylegan2", "D"): _stylegan2_discriminator,
}

_VALUES: dict[str, dict[Any, Any]] = {
    "activation": {"lrelu": "leaky_relu", True: "leaky_relu", False: "relu"},
    "mapping_activation": {"lrelu": "leaky_relu"},
    "fused_scale": {True: "always", False: "never"},
    "blur": {None: ()},
    "architecture": {"orig": "plain", "resnet": "residual"},
    "fir": {None: (1, 1)},
}
