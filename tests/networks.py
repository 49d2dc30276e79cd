"""A tiny G and D of every kind of network, with weights that all matter."""

from collections.abc import Mapping
from typing import Any

import torch

from stylegan.draws import (
    D_STEP,
    PATH_STEP,
    DiscriminatorDraws,
    Draws,
    GeneratorDraws,
    Purpose,
)
from stylegan.networks import family
from stylegan.networks.interface import Discriminator, Generator

RESOLUTION = 16
_GROWING = {"fmap_base": 64, "fmap_max": 8}
_MAPPED = {**_GROWING, "z_size": 8, "w_size": 8, "mapping_width": 8, "mapping_layers": 2}

VARIANTS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gan": ({"kind": "gan", "z_size": 8, "widths": [16]}, {"kind": "gan", "widths": [6, 6]}),
    "dcgan": ({"kind": "dcgan", "z_size": 8, "width": 4}, {"kind": "dcgan", "width": 4}),
    "pggan": ({"kind": "pggan", "z_size": 8, **_GROWING}, {"kind": "pggan", **_GROWING}),
    "stylegan": ({"kind": "stylegan", **_MAPPED}, {"kind": "stylegan", **_GROWING}),
    **{
        f"stylegan2-{G}-{D}": (
            {"kind": "stylegan2", "architecture": G, **_MAPPED},
            {"kind": "stylegan2", "architecture": D, **_GROWING},
        )
        for G, D in (
            ("skip", "residual"),
            ("residual", "skip"),
            ("plain", "plain"),
            ("growing", "growing"),
        )
    },
}
"""Options of G and of D by name."""


def networks(
    name: str, *, label_size: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Generator, Discriminator]:
    """The variant of this name; strengths of noise and biases are drawn, too."""
    shared = {"resolution": RESOLUTION, "label_size": label_size}
    G_options, D_options = VARIANTS[name]
    G = family.generator(family.generator_config({**shared, **G_options}), seed=1)
    config = family.KINDS[D_options["kind"]].DiscriminatorConfig(**shared, **D_options)
    D = family.discriminator(config, seed=2)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in [*G.parameters(), *D.parameters()]:
            drawn = torch.randn(parameter.shape, generator=rng)
            if parameter.ndim < 2:
                parameter.add_(drawn, alpha=0.1)
    return G.to(dtype), D.to(dtype)


class SplitDraws:
    """Our own random numbers for the parts of one worker (`stylegan.step.MinibatchDraws`)."""

    def __init__(
        self, G: Generator, D: Discriminator, parts: list[torch.Tensor], lod: float
    ) -> None:
        self.G, self.D, self.lod = G, D, lod
        self.indices = parts
        self.draws = Draws(seed=0)

    def fakes(self, step: int, part: int) -> GeneratorDraws:
        return self.draws.generator(
            step,
            self._indices(step, part),
            first_index=0,
            z_size=self.G.config.z_size,
            noise_sides=self.G.noise_sides(self.lod),
            layers=self.G.layers(self.lod),
            mixing_prob=1.0,
        )

    def judging(self, step: int, part: int) -> DiscriminatorDraws:
        indices, count = self.indices[part], self.D.config.dropout_size

        def dropout(purpose: Purpose) -> torch.Tensor:
            return self.draws.uniform(purpose, step=step, indices=indices, count=count)

        return DiscriminatorDraws(
            gp_mix=self.draws.gp_mix(indices),
            real_dropout=dropout(Purpose.REAL_DROPOUT) if count and step == D_STEP else None,
            fake_dropout=dropout(Purpose.FAKE_DROPOUT) if count else None,
        )

    def path_noise(self, part: int) -> torch.Tensor:
        side = RESOLUTION >> int(self.lod)
        noise = self.draws.normal(
            Purpose.PATH_NOISE, indices=self._indices(PATH_STEP, part), count=3 * side * side
        )
        return noise.unflatten(1, (3, side, side))

    def _indices(self, step: int, part: int) -> torch.Tensor:
        indices = self.indices[part]
        return indices[: len(indices) // 2] if step == PATH_STEP else indices


def reals_of(lod: float, dtype: torch.dtype, batch: int) -> torch.Tensor:
    """Images that a D of this lod takes, in [-1, 1]."""
    side = RESOLUTION >> int(lod)
    rng = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, side, side, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1
