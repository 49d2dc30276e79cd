"""Official variable names, layouts and options (MANIFEST section 3) in terms of our networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stylegan.networks.stylegan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)

_OPTIONS = {
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
    "normalize_latents": "normalize_z",
    "use_styles": "use_styles",
    "use_noise": "use_noise",
    "use_instance_norm": "use_instance_norm",
    "use_pixel_norm": "use_pixel_norm",
    "const_input_layer": "const_input",
    "use_wscale": "use_wscale",
    "blur_filter": "blur",
    "fused_scale": "fused_scale",
    "mbstd_group_size": "mbstd_group",
    "mbstd_num_features": "mbstd_features",
}
_NOT_OF_THE_NETWORK = {
    "truncation_psi",
    "truncation_cutoff",
    "style_mixing_prob",
    "randomize_noise",
}
_VALUES: dict[str, dict[Any, Any]] = {
    "activation": {"lrelu": "leaky_relu", "relu": "relu"},
    "mapping_activation": {"lrelu": "leaky_relu", "relu": "relu"},
    "fused_scale": {True: "always", False: "never", "auto": "auto"},
    "blur": {None: ()},
}


def options(static_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our config fields for official static kwargs; an unknown one is an error."""
    ours: dict[str, Any] = {}
    for key, value in static_kwargs.items():
        if key in _NOT_OF_THE_NETWORK:
            continue
        field = _OPTIONS[key]
        ours[field] = value if isinstance(value, list) else _VALUES.get(field, {}).get(value, value)
    return ours


def generator(static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray]) -> Generator:
    """G with official variables (names without a leading `G/`)."""
    G = Generator(GeneratorConfig(**options(static_kwargs)))
    load(G, variables)
    return G


def discriminator(
    static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray]
) -> Discriminator:
    """D with official variables (names without a leading `D/`).

    `fused_scale` changes nothing in D: it computes the same function either way.
    """
    fields = options(static_kwargs)
    fields.pop("fused_scale", None)
    D = Discriminator(DiscriminatorConfig(**fields))
    load(D, variables)
    return D


def names(network: nn.Module) -> dict[str, str]:
    """Official name of each of our parameters and stored buffers."""
    if isinstance(network, Generator):
        return {ours: _generator_name(ours, network.config) for ours in network.state_dict()}
    assert isinstance(network, Discriminator)
    return {ours: _discriminator_name(ours, network.config) for ours in network.state_dict()}


def load(network: nn.Module, variables: Mapping[str, np.ndarray]) -> None:
    """Set everything in `network` from `variables`; all but the scalars `lod` must have a place."""
    official = {name: array for name, array in variables.items() if name.split("/")[-1] != "lod"}
    ours = names(network)
    assert set(ours.values()) == official.keys(), set(ours.values()) ^ official.keys()
    tensors = {name: to_ours(theirs, official[theirs]) for name, theirs in ours.items()}
    network.load_state_dict(tensors)


def to_ours(name: str, array: np.ndarray) -> Tensor:
    """An official variable in our layout: [kh kw i o] to [o i kh kw], [i o] to [o i]."""
    array = array.transpose(_order(name, array.ndim))
    return torch.from_numpy(np.ascontiguousarray(array))


def official_shape(name: str, tensor: Tensor) -> list[int]:
    """Shape of the official variable that our tensor corresponds to."""
    shape = list(tensor.shape)
    order = _order(name, len(shape))
    return [shape[order.index(axis)] for axis in range(len(shape))]


def gradients(network: nn.Module) -> dict[str, np.ndarray]:
    """Gradients under official names and in our layout; zeros where there is none."""
    theirs = names(network)
    return {
        theirs[name]: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for name, p in network.named_parameters()
    }


def _order(name: str, ndim: int) -> tuple[int, ...]:
    """Axes of the official array in the order of ours."""
    *_, scope, leaf = ["", *name.split("/")]
    if leaf == "weight" and scope != "LabelConcat":
        return {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[ndim]
    return tuple(range(ndim))


def _generator_name(ours: str, config: GeneratorConfig) -> str:
    parts = ours.split(".")
    if ours == "w_avg":
        return "dlatent_avg"
    if ours == "mapping.label_weight":
        return "G_mapping/LabelConcat/weight"
    if parts[0] == "mapping":
        return f"G_mapping/Dense{parts[1]}/{parts[2]}"
    if parts[1] == "to_rgb":
        return f"G_synthesis/ToRGB_lod{_lod(parts[2], config.resolution)}/{parts[3]}"
    if parts[1] != "blocks":
        return f"G_synthesis/{parts[1]}"  # noise0, noise1, ...

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
    return f"G_synthesis/{side}x{side}/{official_layer}/{leaf}"


def _discriminator_name(ours: str, config: DiscriminatorConfig) -> str:
    parts = ours.split(".")
    leaf = parts[-1]
    if parts[0] == "from_rgb":
        return f"FromRGB_lod{_lod(parts[1], config.resolution)}/{leaf}"
    if parts[0] == "tail":
        layer = {"conv": "Conv", "dense0": "Dense0", "dense1": "Dense1"}[parts[1]]
        return f"4x4/{layer}/{leaf}"
    layer = {"conv0": "Conv0", "conv1": "Conv1_down"}[parts[2]]
    return f"{parts[1]}x{parts[1]}/{layer}/{leaf}"


def _lod(side: str, resolution: int) -> int:
    return resolution.bit_length() - int(side).bit_length()
