"""Golden variables and gradients in terms of our networks, by the importer's own mapping."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stylegan.networks import pggan as pggan_networks
from stylegan.networks.stylegan import Discriminator, Generator
from stylegan.official import tensorflow
from stylegan.official.names import load, names, to_ours, value_of
from tests.goldens import under

__all__ = ["load", "names", "to_ours"]

_NOT_OF_THE_NETWORK = {
    "truncation_psi",
    "truncation_cutoff",
    "style_mixing_prob",
    "randomize_noise",
}


def options(static_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our config fields for official static kwargs; an unknown one is an error."""
    return {
        tensorflow.OPTIONS[key]: value_of(tensorflow.OPTIONS[key], value)
        for key, value in static_kwargs.items()
        if key not in _NOT_OF_THE_NETWORK
    }


def generator(static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray]) -> Generator:
    """G with official variables (names without a leading `G/`)."""
    G = tensorflow.build_network(
        tensorflow.BUILDS["G_style", "G_mapping", "G_synthesis"], static_kwargs, variables
    )
    assert isinstance(G, Generator)
    return G


def discriminator(
    static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray]
) -> Discriminator:
    """D with official variables (names without a leading `D/`)."""
    D = tensorflow.build_network(tensorflow.BUILDS["D_basic",], static_kwargs, variables)
    assert isinstance(D, Discriminator)
    return D


def pggan(
    static_kwargs: Mapping[str, Any], variables: Mapping[str, np.ndarray], *, original: bool
) -> tuple[pggan_networks.Generator, pggan_networks.Discriminator]:
    """Progressive GAN's G and D with official variables (names with `G/` and `D/`).

    Args:
        static_kwargs: Of both.
        variables: Of both.
        original: They are of Progressive GAN's own repository, see `transposed`.
    """
    built = []
    for network, build in (("G", "G_paper"), ("D", "D_paper")):
        values = under(dict(variables), f"{network}/")
        if original:
            values = {name: transposed(name, array) for name, array in values.items()}
        built.append(
            tensorflow.build_network(tensorflow.BUILDS[build,], static_kwargs[network], values)
        )
    G, D = built
    assert isinstance(G, pggan_networks.Generator)
    assert isinstance(D, pggan_networks.Discriminator)
    return G, D


def transposed(name: str, array: np.ndarray) -> np.ndarray:
    """To and from Progressive GAN's own repository, which has [kh kw o i] here, not [kh kw i o]."""
    return array.swapaxes(2, 3) if name.endswith("Conv0_up/weight") else array


def official_shape(name: str, tensor: Tensor) -> list[int]:
    """Shape of the official variable that our tensor corresponds to."""
    axes = range(1, tensor.ndim + 1)
    order = to_ours(name, np.zeros(tuple(axes))).shape
    return [tensor.shape[order.index(axis)] for axis in axes]


def gradients(network: nn.Module) -> dict[str, np.ndarray]:
    """Gradients under official names and in our layout; zeros where there is none."""
    theirs = names(network)
    return {
        theirs[name]: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for name, p in network.named_parameters()
    }
