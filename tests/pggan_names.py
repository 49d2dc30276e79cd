"""Official variable names and layouts of Progressive GAN (MANIFEST section 3) in our terms."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from stylegan.networks.pggan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from tests import official_names


def generator(
    static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray], *, original: bool
) -> Generator:
    """G with official variables (names without a leading `G/`).

    Args:
        static_kwargs: Official ones; without `latent_size` z is as large as the first layer allows.
        variables: All of G's.
        original: They are those of Progressive GAN's own repository, which stores `Conv0_up`
            as [kh kw o i]; StyleGAN's stores its copy as [kh kw i o].
    """
    fields = official_names.options(static_kwargs)
    defaults = {"fmap_base": GeneratorConfig.fmap_base, "fmap_max": GeneratorConfig.fmap_max}
    G = Generator(
        GeneratorConfig(**{"z_size": min({**defaults, **fields}[key] for key in defaults)} | fields)
    )
    load(G, variables, original=original)
    return G


def discriminator(
    static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray]
) -> Discriminator:
    """D with official variables (names without a leading `D/`)."""
    D = Discriminator(DiscriminatorConfig(**official_names.options(static_kwargs)))
    load(D, variables, original=True)
    return D


def names(network: nn.Module) -> dict[str, str]:
    """Official name of each of our parameters."""
    assert isinstance(network, Generator | Discriminator)
    name = _generator_name if isinstance(network, Generator) else _discriminator_name
    resolution = network.config.resolution
    return {ours: name(ours, resolution) for ours, _ in network.named_parameters()}


def load(network: nn.Module, variables: Mapping[str, np.ndarray], *, original: bool = True) -> None:
    """Set every parameter from `variables`; all but the scalar `lod` must have a place."""
    official = {name: array for name, array in variables.items() if name != "lod"}
    ours = names(network)
    assert set(ours.values()) == official.keys(), set(ours.values()) ^ official.keys()
    parameters = dict(network.named_parameters())
    for name, theirs in ours.items():
        array = official[theirs]
        if original and "Conv0_up/weight" in theirs:
            array = array.swapaxes(2, 3)
        value = official_names.to_ours(theirs, array)
        assert parameters[name].shape == value.shape, name
        parameters[name].data.copy_(value)


def original_shape(name: str, tensor: Tensor) -> list[int]:
    """Shape of the variable in Progressive GAN's own repository."""
    shape = official_names.official_shape(name, tensor)
    return [*shape[:2], shape[3], shape[2]] if "Conv0_up/weight" in name else shape


def _generator_name(ours: str, resolution: int) -> str:
    _, kind, side, layer, *leaf = ours.split(".")
    if kind == "to_rgb":
        return f"ToRGB_lod{_lod(side, resolution)}/{layer}"
    first, second = ("Dense", "Conv") if side == "4" else ("Conv0_up", "Conv1")
    if layer == "bias0":
        return f"{side}x{side}/{first}/bias"
    return f"{side}x{side}/{second if layer == 'conv1' else first}/{leaf[0]}"


def _discriminator_name(ours: str, resolution: int) -> str:
    kind, place, *_, leaf = ours.split(".")
    if kind == "from_rgb":
        return f"FromRGB_lod{_lod(place, resolution)}/{leaf}"
    if kind == "tail":
        return f"4x4/{place.capitalize()}/{leaf}"
    layer = {"conv0": "Conv0", "conv1": "Conv1_down"}[ours.split(".")[2]]
    return f"{place}x{place}/{layer}/{leaf}"


def _lod(side: str, resolution: int) -> int:
    return resolution.bit_length() - int(side).bit_length()
