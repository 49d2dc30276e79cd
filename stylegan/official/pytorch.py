"""StyleGAN2's networks of the PyTorch code (stylegan2-ada, stylegan3) as ours, and G the other way.

A pickled module keeps the arguments it was made with, and below it the modules of its layers with
their tensors. Convolutions have our layout, but those that enlarge are stored flipped; the bias of
a style begins at 1, where ours adds that 1 itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan.data_pickle import ArchiveError, brief
from stylegan.networks import family
from stylegan.networks.interface import Generator
from stylegan.official.names import Imported, Network, build, compare, value_of
from stylegan.official.unpickler import TorchModule

_KIND, _MAX_DEPTH, _MAX_NAME = "stylegan2", 8, 100
_SIZES = {"channel_base": "fmap_base", "channel_max": "fmap_max", "architecture": "architecture"}
_BLOCK = {"resample_filter": "fir", "activation": "activation"}
_MAPPING = {
    "num_layers": "mapping_layers",
    "layer_features": "mapping_width",
    "activation": "mapping_activation",
    "lr_multiplier": "mapping_lr_multiplier",
}
_ACTIVATIONS = {"leaky_relu": "lrelu", "relu": "relu"}
_ARCHITECTURES = {"skip": "skip", "residual": "resnet", "plain": "orig"}
_MBSTD = {"mbstd_group_size": "mbstd_group", "mbstd_num_channels": "mbstd_features"}

_OF_PRECISION = {
    "num_fp16_res",
    "fp16_channels_last",
    "conv_clamp",
    "fused_modconv_default",
}
_ALSO_FIELDS = {"z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"}
_OF_LABELS = {"embed_features", "cmap_dim", "mapping_kwargs"}
_OF_TRAINING = {"w_avg_beta", "freeze_layers"}
_FIXED = {"use_noise": True, "kernel_size": 3}


def convert(record: TorchModule) -> Imported:
    """A pickled generator or discriminator as ours.

    Raises:
        ArchiveError: It lacks what every such module has.
        ValueError: It cannot be represented; names the class, option or tensor.
    """
    modules = dict(_modules(record))
    tensors = {
        name: tensor
        for name, tensor in tensors_of(record).items()
        if name.rpartition(".")[2] != "resample_filter"
    }
    _refuse_others(record, tensors)
    module = family.KINDS[_KIND]
    config = (
        module.GeneratorConfig(**_generator_options(record))
        if record.class_name == "Generator"
        else module.DiscriminatorConfig(**_discriminator_options(record))
    )
    clamps = {module.fields.get("conv_clamp") for module in modules.values()}
    return Imported(
        network=build(config, lambda network: _fitting(network, tensors)),
        lod=0.0,
        facts={"source_format": f"PyTorch, {record.class_name}"},
        notes=[
            f"activations beyond {clamp} are not clamped to it as officially"
            for clamp in clamps
            if isinstance(clamp, int | float)
        ],
    )


def state_dict(Gs: Generator) -> dict[str, Tensor]:
    """All that `G_ema.state_dict()` has in the PyTorch code, by its names and in its layout.

    Raises:
        ValueError: That code has no such network; says what of it.
    """
    config = _exportable(Gs)
    tensors = {_generator_name(ours): _theirs(ours, t) for ours, t in Gs.state_dict().items()}
    taps = torch.tensor(config.fir, dtype=torch.float32)
    kernel = torch.outer(taps, taps) / taps.sum().square()
    # Each block and each of its convolutions but those to RGB stores the filter once more.
    filtered = {f"synthesis.b{side}" for side in config.resolutions()}
    for name in tensors:
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer.endswith(("conv0", "conv1", "skip")):
            filtered.add(layer)
    return tensors | {f"{path}.resample_filter": kernel.clone() for path in sorted(filtered)}


def arguments(Gs: Generator) -> dict[str, Any]:
    """What the PyTorch code's Generator is made with, so that `state_dict` fits it."""
    config = _exportable(Gs)
    return {
        "z_dim": config.z_size,
        "c_dim": 0,
        "w_dim": config.w_size,
        "img_resolution": config.resolution,
        "img_channels": config.channels,
        "mapping_kwargs": {
            "num_layers": config.mapping_layers,
            "layer_features": config.mapping_width,
            "activation": _ACTIVATIONS[config.mapping_activation],
            "lr_multiplier": config.mapping_lr_multiplier,
        },
        "synthesis_kwargs": {
            "channel_base": 2 * config.fmap_base,
            "channel_max": config.fmap_max,
            "architecture": _ARCHITECTURES[config.architecture],
            "resample_filter": list(config.fir),
            "activation": _ACTIVATIONS[config.activation],
        },
    }


def _theirs(ours: str, tensor: Tensor) -> Tensor:
    """What `_fitting` turns into ours."""
    tensor = tensor.detach().cpu()
    if ours.endswith(".style.bias"):
        return tensor + 1
    if ours.endswith(".conv0.weight"):
        return tensor.flip(2, 3).contiguous()
    if ours.endswith(".const"):
        return tensor[0].contiguous()
    return tensor[0, 0].contiguous() if ours.startswith("synthesis.noise") else tensor.contiguous()


def _exportable(Gs: Generator) -> Any:
    """The network's configuration, if the PyTorch code has such networks."""
    config: Any = Gs.config
    lacks = {
        f"is {config.kind}": config.kind != _KIND,
        "grows": config.grows,
        "has labels": config.label_size > 0,
        "takes z as it is": not getattr(config, "normalize_z", True),
    }
    if reasons := [reason for reason, applies in lacks.items() if applies]:
        raise ValueError(
            f"the network {' and '.join(reasons)}, and stylegan2-ada-pytorch has no such "
            f"generator; StyleGAN2 of a fixed size without labels can be exported, all others as "
            f"ONNX"
        )
    return config


def tensors_of(record: TorchModule) -> dict[str, Tensor]:
    """Tensors of a module and of all below it, by their dotted names.

    Raises:
        ArchiveError: It is no module as PyTorch pickles it.
    """
    return {
        f"{path}{name}": tensor
        for path, module in _modules(record)
        for name, tensor in _tensors(module)
    }


def _refuse_others(record: TorchModule, tensors: Mapping[str, Tensor]) -> None:
    expected = {"Generator": "synthesis.b4.const", "Discriminator": "b4.out.weight"}
    if expected.get(record.class_name) not in tensors:
        raise ValueError(
            f"the file's {record.class_name} with {', '.join(list(tensors)[:2])} ... is none of "
            "StyleGAN2 (the alias-free networks of StyleGAN3 do not exist here); of PyTorch "
            "pickles those of stylegan2-ada, and of stylegan3 with cfg=stylegan2, can be imported"
        )
    if record.fields.get("c_dim"):
        raise ValueError(
            f"the file's {record.class_name} has c_dim={brief(record.fields['c_dim'])}, labels "
            "that the PyTorch code embeds in its own way; networks with c_dim=0 can be imported"
        )


def _modules(record: TorchModule) -> Iterator[tuple[str, TorchModule]]:
    """A module and all below it, by their dotted paths with a dot behind."""
    seen: set[int] = set()
    waiting = [("", 0, record)]
    while waiting:
        path, depth, module = waiting.pop()
        if id(module) in seen:
            raise ArchiveError(f"module {path} stands in two places: the file is no snapshot")
        seen.add(id(module))
        yield path, module
        for name, part in _named(module, "_modules"):
            if part is None:
                continue
            if not isinstance(part, TorchModule) or depth > _MAX_DEPTH:
                raise ArchiveError(f"module {path}{name} is {type(part).__name__}, or too deep")
            waiting.append((f"{path}{name}.", depth + 1, part))


def _tensors(record: TorchModule) -> Iterator[tuple[str, Tensor]]:
    for group in ("_parameters", "_buffers"):
        for name, tensor in _named(record, group):
            if isinstance(tensor, Tensor):
                yield name, tensor


def _named(record: TorchModule, group: str) -> Iterator[tuple[str, Any]]:
    for name, value in record.field(group, dict).items():
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            raise ArchiveError(f"{group} of a module has the name {brief(name)}")
        yield name, value


def _generator_options(record: TorchModule) -> dict[str, Any]:
    arguments = _arguments(record)
    mapping, synthesis = (arguments.pop(f"{part}_kwargs", {}) for part in ("mapping", "synthesis"))
    w_size = record.field("w_dim", int)
    options = {
        **_shared_options(record),
        "z_size": record.field("z_dim", int),
        "w_size": w_size,
        **_known(arguments, _SIZES | _BLOCK),  # where stylegan3 has those of the synthesis
        **_known(synthesis, _SIZES | _BLOCK),
        **_known(mapping, _MAPPING),
    }
    return options | {"mapping_width": options.get("mapping_width") or w_size}


def _discriminator_options(record: TorchModule) -> dict[str, Any]:
    arguments = _arguments(record)
    block, epilogue = (arguments.pop(f"{part}_kwargs", {}) for part in ("block", "epilogue"))
    options = {
        **_shared_options(record),
        **_known(arguments, _SIZES),
        **_known(block, _BLOCK),
        **_known({"mbstd_group_size": 4, **epilogue}, _MBSTD | _BLOCK),
    }
    if block.get("activation", "lrelu") != epilogue.get("activation", "lrelu"):
        raise ValueError(
            "the file's discriminator has one activation in its blocks and another behind them; "
            "here it has one"
        )
    if options["mbstd_group"] is None:
        raise ValueError(
            "the file's discriminator has the option mbstd_group_size=None, a group as large as "
            "the minibatch; here groups have a size, so that it cannot be imported"
        )
    if options.get("mbstd_features") == 0:
        options |= {"mbstd_group": 0, "mbstd_features": 1}
    return options


def _shared_options(record: TorchModule) -> dict[str, Any]:
    return {
        "resolution": record.field("img_resolution", int),
        "channels": record.field("img_channels", int),
    }


def _arguments(record: TorchModule) -> dict[str, Any]:
    """What a module was made with, by name."""
    if record.fields.get("_init_args"):
        raise ValueError(
            f"the file's {record.class_name} was made with arguments without names, "
            f"{brief(record.fields['_init_args'])}, which cannot be told apart"
        )
    arguments = record.field("_init_kwargs", dict)
    return {key: value for key, value in arguments.items() if key not in _ALSO_FIELDS}


def _known(arguments: Any, known: Mapping[str, str]) -> dict[str, Any]:
    """Our fields for arguments; those that change nothing here are left out."""
    if not isinstance(arguments, dict):
        raise ArchiveError(f"arguments of a module are {type(arguments).__name__}, not by name")
    options: dict[str, Any] = {}
    for key, value in arguments.items():
        if not isinstance(key, str):
            raise ArchiveError(f"an argument of a module is a {type(key).__name__}, not a name")
        if key in known:
            options[known[key]] = value_of(known[key], value)
        elif key in _FIXED and value == _FIXED[key]:
            continue
        elif key not in _OF_PRECISION | _OF_LABELS | _OF_TRAINING:
            here = f"only {key}={_FIXED[key]!r}" if key in _FIXED else "no such option"
            raise ValueError(
                f"the file's network has the option {key}={brief(value)}, but {_KIND} has {here} "
                "here; it cannot be imported"
            )
    if "fmap_base" in options:
        options["fmap_base"] //= 2
    return options


def _fitting(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of a file's tensors in a network's names and layout; each must have a place."""
    name = _generator_name if network.config.name == "G" else _discriminator_name
    state = network.state_dict()
    theirs = {ours: name(ours) for ours in state}

    def tensor_of(ours: str) -> Tensor:
        tensor = tensors[theirs[ours]]
        if ours.endswith(".style.bias"):
            return tensor - 1
        if ours.startswith("synthesis.") and ours.endswith(".conv0.weight"):
            return tensor.flip(2, 3)
        return tensor[(None,) * max(state[ours].ndim - tensor.ndim, 0)]  # constant and noise

    return compare(network, theirs, tensors.keys(), tensor_of)


def _generator_name(ours: str) -> str:
    """In the PyTorch code."""
    part, *names = ours.split(".")
    if part == "w_avg":
        return "mapping.w_avg"
    if part == "mapping":
        return f"mapping.fc{names[0]}.{names[1]}"
    if names[0].startswith("noise"):
        layer = int(names[0].removeprefix("noise"))
        side = 4 << (layer + 1) // 2
        return f"synthesis.b{side}.conv{(layer + 1) % 2}.noise_const"
    layers = ["torgb", *names[2:]] if names[0] == "to_rgb" else names[2:]
    return ".".join([f"synthesis.b{names[1]}", *layers]).replace(".style.", ".affine.")


def _discriminator_name(ours: str) -> str:
    """In the PyTorch code."""
    part, name, *names = ours.split(".")
    if part == "tail":
        layer = {"conv": "conv", "dense0": "fc", "dense1": "out"}[name]
        return ".".join(["b4", layer, *names])
    return ".".join([f"b{name}", *(["fromrgb"] if part == "from_rgb" else []), *names])
