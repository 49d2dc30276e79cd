"""All networks by kind: from a configuration to the network it describes."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from stylegan.networks import dcgan, gan, interface, pggan, stylegan, stylegan2

KINDS: dict[str, ModuleType] = {
    "gan": gan,
    "dcgan": dcgan,
    "pggan": pggan,
    "stylegan": stylegan,
    "stylegan2": stylegan2,
}
"""One module a paper, each with GeneratorConfig, Generator, DiscriminatorConfig, Discriminator."""

GeneratorConfig = (
    gan.GeneratorConfig
    | dcgan.GeneratorConfig
    | pggan.GeneratorConfig
    | stylegan.GeneratorConfig
    | stylegan2.GeneratorConfig
)
DiscriminatorConfig = (
    gan.DiscriminatorConfig
    | dcgan.DiscriminatorConfig
    | pggan.DiscriminatorConfig
    | stylegan.DiscriminatorConfig
    | stylegan2.DiscriminatorConfig
)


def generator_config(options: Mapping[str, Any]) -> interface.GeneratorConfig:
    """A generator's configuration from its fields, `kind` among them.

    Raises:
        ValueError: The kind or an option of it is unknown.
    """
    config: interface.GeneratorConfig = _config("GeneratorConfig", options)
    return config


def generator(config: interface.GeneratorConfig, *, seed: int = 0) -> interface.Generator:
    """A generator with initial weights, a function of `config` and `seed` alone."""
    G: interface.Generator = _module(config.kind).Generator(config, seed=seed)
    return G


def discriminator_config(options: Mapping[str, Any]) -> interface.DiscriminatorConfig:
    """A discriminator's configuration from its fields, `kind` among them.

    Raises:
        ValueError: The kind or an option of it is unknown.
    """
    config: interface.DiscriminatorConfig = _config("DiscriminatorConfig", options)
    return config


def discriminator(
    config: interface.DiscriminatorConfig, *, seed: int = 0
) -> interface.Discriminator:
    """A discriminator with initial weights, a function of `config` and `seed` alone."""
    D: interface.Discriminator = _module(config.kind).Discriminator(config, seed=seed)
    return D


def _config(name: str, options: Mapping[str, Any]) -> Any:
    module = _module(options.get("kind"))
    try:
        return getattr(module, name)(**options)
    except TypeError as err:
        raise ValueError(
            f"the network does not have the options of kind {options['kind']!r} ({err}); read it "
            f"with the version that wrote it"
        ) from err


def _module(kind: Any) -> ModuleType:
    if kind not in KINDS:
        raise ValueError(f"the network is of kind {kind!r}; this version builds {', '.join(KINDS)}")
    return KINDS[kind]
