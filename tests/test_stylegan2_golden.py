"""StyleGAN2's networks against the official ones, array by array (MANIFEST sections 3, 6 and 8).

Golden images and D's inputs are full-size at every lod; ours have the native size of the level.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan.draws import GeneratorDraws
from stylegan.networks.stylegan2 import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.objective import generate
from stylegan.official.tensorflow import BUILDS, build_network
from stylegan.resample import blocky_up, box_down
from tests import goldens, official_names
from tests.goldens import GOLDEN_DIR, arrays, assert_close, entry, from_recipe, sets, under

TOLERANCE, TOLERANCE_FULL_SIZE = 2e-5, 3e-5
FULL_SIZE = sets("E6_*")
NETWORKS = [
    *sets("E1_*"),
    *sets("E2_*"),
    *sets("E3_*"),
    *FULL_SIZE,
]
FMAP_BASE = {"e": 8192, "f": 16384}
W_AVG_BETA = 0.995

pytestmark = pytest.mark.usefixtures("_without_gradients")


@pytest.fixture
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Case:
    """A set with its networks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.golden = arrays(name)
        self.kwargs = entry(name)["static_kwargs"]

    @functools.cached_property
    def variables(self) -> dict[str, np.ndarray]:
        described = entry(self.name)
        if "shapes" not in described:
            return self.golden
        return from_recipe(
            described["shapes"],
            described["sha256"],
            described["seeds"]["variables"],
            lrmul_mapping=self.kwargs["G"].get("mapping_lrmul", 0.01),
        )

    @functools.cached_property
    def G(self) -> Generator:
        kwargs = self.kwargs["G"]
        synthesis = kwargs.get("synthesis_func", "G_synthesis_stylegan2")
        build = BUILDS["G_main", "G_mapping", synthesis]
        return build_network(build, kwargs, under(self.variables, "G/"))

    @functools.cached_property
    def D(self) -> Discriminator:
        """The variables tell whether it grows, the options do not."""
        variables = under(self.variables, "D/")
        grows = any(name.startswith("FromRGB_lod") for name in variables)
        build = BUILDS["D_stylegan" if grows else "D_stylegan2",]
        return build_network(build, self.kwargs["D"], variables)

    def labels(self, n: int) -> Tensor | None:
        labels = self.golden.get("in/labels")
        return None if labels is None else tensor(labels[:n])

    def ws(self, n: int, z: str = "z") -> Tensor:
        return self.G.broadcast(self.G.mapping(tensor(self.golden[f"in/{z}"][:n]), self.labels(n)))

    def images(self, ws: Tensor, lod: float = 0.0) -> Tensor:
        return blocky_up(self.G.synthesis(ws, lod=lod), 2 ** int(lod))


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def mapped(case: Case, n: int, match: re.Match[str]) -> Tensor:
    return case.ws(n, match["z"].replace("w", "z"))[:, 0]


def images_of_level(case: Case, n: int, match: re.Match[str]) -> Tensor:
    return case.images(case.ws(n), float(match["lod"] or 0))


def truncated_images(case: Case, n: int, match: re.Match[str]) -> Tensor:
    """Without a cutoff all layers are truncated (quirk 9)."""
    cutoff = int(match["cutoff"] or case.G.layers())
    return case.images(case.G.truncate(case.ws(n), psi=float(match["psi"]), cutoff=cutoff))


def mixed_images(case: Case, n: int, match: re.Match[str]) -> Tensor:
    cutoff = int(match["cutoff"])
    return case.images(torch.cat([case.ws(n)[:, :cutoff], case.ws(n, "z2")[:, cutoff:]], dim=1))


def scores(case: Case, n: int, match: re.Match[str]) -> Tensor:
    assert n == int(match["batch"] or n)
    lod = float(match["lod"] or 0)
    images = tensor(goldens.network_images(case.golden["in/d_images_u8"][:n]))
    return case.D(box_down(images, 2 ** int(lod)), case.labels(n), lod)


OUTPUTS: dict[str, Callable[[Case, int, re.Match[str]], Tensor]] = {
    r"(?P<z>w2?)": mapped,
    r"img(_lod(?P<lod>[\d.]+))?": images_of_level,
    r"img_psi(?P<psi>-?[\d.]+)(_cut(?P<cutoff>\d+))?": truncated_images,
    r"img_mix_c(?P<cutoff>\d+)": mixed_images,
    r"d_scores(_lod(?P<lod>[\d.]+))?(_batch(?P<batch>\d+))?": scores,
}
"""How to compute n rows of each output; together they are all that a set may have."""


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_outputs_of_every_architecture(name: str):
    case = Case(name)
    tolerance = TOLERANCE_FULL_SIZE if name in FULL_SIZE else TOLERANCE
    outputs = under(case.golden, "out/")
    assert outputs
    for key, expected in outputs.items():
        found = [(f, m) for p, f in OUTPUTS.items() if (m := re.fullmatch(p, key))]
        assert len(found) == 1, f"{name} has out/{key}, which no pattern knows"
        compute, match = found[0]
        assert_close(compute(case, len(expected), match), expected, tolerance, key)


@pytest.mark.parametrize("name", sets("E5_*"))
def test_golden_training_images_with_mixing_and_noise_per_image(name: str):
    case = Case(name)
    golden, G, n = case.golden, case.G, len(case.golden["in/z"])
    draws = GeneratorDraws(
        z=tensor(golden["in/z"]),
        z_mix=tensor(golden["in/z2"]),
        cutoff=torch.full((n,), int(goldens.said(name, "out/img", r"cutoff (\d+)"))),
        noise=[tensor(golden[f"in/noise{layer}"]) for layer in range(len(G.noise_sides()))],
    )
    seen: list[Tensor] = []
    G.synthesis.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    images, w_sum = generate(G, draws, case.labels(n), 0.0)

    actual = {
        "img": images,
        "dlatents": seen[0],
        "dlatent_avg": torch.lerp(w_sum / n, G.w_avg, W_AVG_BETA),
    }
    expected = under(golden, "out/")
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert_close(value, expected[key], TOLERANCE, key)


def _tables() -> list[tuple[str, str]]:
    return [(name, config) for name in sets("E7_*") for config in _table_of(name)]


@functools.cache
def _table_of(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN_DIR / entry(name)["file"]).read_text())["tables"]


@pytest.mark.parametrize(("name", "config"), _tables())
def test_golden_names_shapes_and_counts(name: str, config: str):
    """Configurations e and f differ in the number of feature maps at large sizes."""
    letter, side = config.removeprefix("config-").split("-")
    sizes = {"resolution": int(side), "fmap_base": FMAP_BASE[letter]}
    for kind, network in (
        ("G", Generator(GeneratorConfig(**sizes))),
        ("D", Discriminator(DiscriminatorConfig(**sizes))),
    ):
        table = _table_of(name)[config][kind]
        theirs = official_names.names(network)
        for group, ours in (
            ("trainables", dict(network.named_parameters())),
            ("non_trainables", dict(network.named_buffers())),
        ):
            expected = {n: s for n, s in table[group] if n.split("/")[-1] != "lod"}
            actual = {
                theirs[n]: official_names.official_shape(theirs[n], t)
                for n, t in ours.items()
                if n in theirs
            }
            assert actual == expected
        count = sum(p.numel() for p in network.parameters())
        assert count == table["num_trainable"] == entry(name)["counts"][config][kind]
