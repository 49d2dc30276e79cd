"""Networks against the official ones, set by set (MANIFEST sections 3, 4, 7 and 8).

Golden images and D's inputs are full-size at every lod; ours have the native size of the level.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan.draws import GeneratorDraws
from stylegan.networks.stylegan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.objective import generate
from stylegan.resample import blocky_up, box_down
from stylegan.sample import to_uint8
from tests import goldens, official_names
from tests.goldens import GOLDEN_DIR, arrays, assert_close, entry, sets, under

TOLERANCE, TOLERANCE_FULL_SIZE = 2e-5, 3e-5

pytestmark = pytest.mark.usefixtures("_without_gradients")


@pytest.fixture
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def generator_of(name: str, static: str = "G") -> Generator:
    kwargs = entry(name)["static_kwargs"][static]
    return official_names.generator(kwargs, under(arrays(name), "G/"))


def discriminator_of(name: str) -> Discriminator:
    return official_names.discriminator(
        entry(name)["static_kwargs"]["D"], under(arrays(name), "D/")
    )


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def full_size_images(G: Generator, ws: Tensor, lod: float = 0.0, **kwargs: Any) -> Tensor:
    return blocky_up(G.synthesis(ws, lod=lod, **kwargs), 2 ** int(lod))


def scores(D: Discriminator, images_u8: np.ndarray, lod: float = 0.0, labels: Any = None) -> Tensor:
    images = box_down(tensor(goldens.network_images(images_u8)), 2 ** int(lod))
    return D(images, None if labels is None else tensor(labels), lod)


def matching(values: dict[str, Any], pattern: str) -> list[tuple[str, re.Match[str]]]:
    found = [(key, match) for key in values if (match := re.fullmatch(pattern, key))]
    assert found, f"no array matches {pattern}"
    return found


@pytest.mark.parametrize("name", sets("A1_*"))
def test_golden_w_truncation_and_mixing(name: str):
    golden = arrays(name)
    G = generator_of(name)
    w, w2 = (G.mapping(tensor(golden[f"in/{z}"])) for z in ("z", "z2"))
    truncation = entry(name)["truncation"]

    assert_close(w, golden["out/w"], TOLERANCE, "w")
    assert_close(w2, golden["out/w2"], TOLERANCE, "w2")
    truncated = G.truncate(G.broadcast(w), psi=truncation["psi"], cutoff=truncation["cutoff"])
    assert_close(truncated, golden["out/dlatents_trunc"], TOLERANCE, "truncated ws")
    for key, match in matching(golden, r"out/img_mix_c(\d+)"):
        cutoff = int(match[1])
        n = len(golden[key])
        ws = torch.cat([G.broadcast(w)[:n, :cutoff], G.broadcast(w2)[:n, cutoff:]], dim=1)
        assert_close(full_size_images(G, ws), golden[key], TOLERANCE, key)
    for key, match in matching(golden, r"out/img_noise_ge(\d+)"):
        noise = [G.synthesis.get_buffer(f"noise{layer}") for layer in range(len(G.noise_sides()))]
        noise = [n * (layer >= int(match[1])) for layer, n in enumerate(noise)]
        ws = G.broadcast(w)[: len(golden[key])]
        assert_close(full_size_images(G, ws, noise=noise), golden[key], TOLERANCE, key)


@pytest.mark.parametrize("name", sets("A1_*"))
def test_golden_images_at_every_lod_and_truncation(name: str):
    golden = arrays(name)
    G = generator_of(name)
    ws = G.broadcast(G.mapping(tensor(golden["in/z"])))
    pattern = r"out/img_lod([\d.]+)_psi(-?[\d.]+)(?:_cut(\d+|all))?(_uint8_nhwc)?"
    for key, match in matching(golden, pattern):
        lod, psi, cutoff = float(match[1]), float(match[2]), match[3]
        layers = G.layers() if cutoff == "all" else int(cutoff) if cutoff else None
        mine = G.truncate(ws[: len(golden[key])], psi=psi, cutoff=layers)
        images = full_size_images(G, mine, lod)
        if match[4]:
            exact = tensor(golden[key.removesuffix(match[4])][: len(images)])
            assert np.array_equal(to_uint8(exact).permute(0, 2, 3, 1), golden[key]), key
            apart = to_uint8(images).permute(0, 2, 3, 1).int() - tensor(golden[key])
            assert int(apart.abs().max()) <= 1, key
        else:
            assert_close(images, golden[key], TOLERANCE, key)


@pytest.mark.parametrize("name", sets("A1_*"))
def test_golden_scores_at_every_lod_and_batch(name: str):
    golden = arrays(name)
    D = discriminator_of(name)
    images = golden["in/d_images_u8"]
    for key, match in matching(golden, r"out/d_scores_lod([\d.]+)(?:_batch(\d+))?"):
        batch = int(match[2] or len(images))
        assert_close(scores(D, images[:batch], float(match[1])), golden[key], TOLERANCE, key)
    permuted = images[golden["in/d_perm"]]
    assert_close(scores(D, permuted), golden["out/d_scores_lod0_perm"], TOLERANCE, "permuted")


def fused_sets() -> list[str]:
    """Sets whose variables, which lie in the file of another set, are there."""
    return [n for n in sets("A3_*") if (GOLDEN_DIR / entry(n)["variables_from"]).exists()]


@pytest.mark.parametrize("name", fused_sets())
def test_golden_fused_scaling_flips_the_kernel_of_G_and_not_of_D(name: str):
    golden = arrays(name)
    source = goldens.load(entry(name)["variables_from"])
    for key, match in matching(golden, r"out/(img|d_scores)_fused(True|False)_lod([\d.]+)"):
        fused, lod = {"fused_scale": match[2] == "True"}, float(match[3])
        kwargs = entry(name)["static_kwargs"]
        if match[1] == "img":
            G = official_names.generator(kwargs["G"] | fused, under(source, "G/"))
            ws = G.broadcast(G.mapping(tensor(golden["in/z"])))
            assert_close(full_size_images(G, ws, lod), golden[key], TOLERANCE, key)
        else:
            D = official_names.discriminator(kwargs["D"] | fused, under(source, "D/"))
            actual = scores(D, golden["in/d_images_u8"], lod)
            assert_close(actual, golden[key], TOLERANCE, key)


@pytest.mark.parametrize("name", sets("A4_*"))
def test_golden_ablations_of_the_paper(name: str):
    golden = arrays(name)
    G = generator_of(name)
    ws = G.broadcast(G.mapping(tensor(golden["in/z"])))
    assert ws.shape[1] == entry(name)["num_styles"]
    assert_close(ws, golden["out/dlatents"], TOLERANCE, "ws")
    for key, match in matching(golden, r"out/img_lod([\d.]+)"):
        assert_close(full_size_images(G, ws, float(match[1])), golden[key], TOLERANCE, key)


def _switches() -> list[tuple[str, str]]:
    return [
        (name, variation)
        for name in sets("A5_*")
        for variation in entry(name)["static_kwargs"]["variations"]
    ]


@pytest.mark.parametrize(("name", "variation"), _switches())
def test_golden_switches(name: str, variation: str):
    golden = under(arrays(name), f"{variation}/")
    static = entry(name)["static_kwargs"]
    changes = static["variations"][variation]
    G_kwargs = static["base_G"] | (changes.get("G") or {})
    D_kwargs = static["base_D"] | (changes.get("D") or {})
    shapes, seed = entry(name)["shapes"][variation], entry(name)["variation_seeds"][variation]
    variables = goldens.from_recipe(
        shapes,
        entry(name)["sha256"][variation],
        seed,
        lrmul_mapping=G_kwargs.get("mapping_lrmul", 0.01),
        use_wscale=G_kwargs.get("use_wscale", True),
    )

    D = official_names.discriminator(D_kwargs, under(variables, "D/"))
    actual = scores(D, golden["in/d_images_u8"])
    assert_close(actual, golden["out/d_scores"], TOLERANCE, "scores")
    if changes.get("G") is not None:
        G = official_names.generator(G_kwargs, under(variables, "G/"))
        w = G.mapping(tensor(golden["in/z"]))
        assert_close(w, golden["out/w"], TOLERANCE, "w")
        images = full_size_images(G, G.broadcast(w))
        assert_close(images, golden["out/img"], TOLERANCE, "images")


@pytest.mark.parametrize("name", sets("A6_*"))
def test_golden_labels(name: str):
    golden = arrays(name)
    G, D = generator_of(name), discriminator_of(name)
    labels = golden["in/labels"]
    w = G.mapping(tensor(golden["in/z"]), tensor(labels))
    assert_close(w, golden["out/w"], TOLERANCE, "w")
    assert_close(full_size_images(G, G.broadcast(w)), golden["out/img"], TOLERANCE, "images")
    images = golden["in/d_images_u8"]
    assert_close(scores(D, images, labels=labels), golden["out/d_scores"], TOLERANCE, "scores")
    zero = scores(D, images, labels=np.zeros_like(labels))
    assert_close(zero, golden["out/d_scores_zero_labels"], TOLERANCE, "scores of no label")


@pytest.mark.parametrize("name", sets("A7_*"))
def test_golden_training_images_with_mixing_and_noise_per_image(name: str):
    golden = arrays(name)
    G = generator_of(name)
    noise = [tensor(golden[f"in/noise{layer}"]) for layer in range(len(G.noise_sides()))]
    for key, match in matching(golden, r"out/img_lod([\d.]+)_(mix|nomix)"):
        lod = float(match[1])
        reached = G.layers(lod)
        cutoff = _cutoff_of(name, key) if match[2] == "mix" else reached
        n = len(golden["in/z"])
        draws = GeneratorDraws(
            z=tensor(golden["in/z"]),
            z_mix=tensor(golden["in/z2"]),
            cutoff=torch.full((n,), cutoff),
            noise=noise[:reached],
        )
        images, w_sum = generate(G, draws, None, lod)
        assert_close(blocky_up(images, 2 ** int(lod)), golden[key], TOLERANCE, key)
        w_avg = torch.lerp(w_sum / n, G.w_avg, 0.995)
        after = golden[key.replace("img", "dlatent_avg")]
        assert_close(w_avg, after, TOLERANCE, "w_avg after one call")
    assert_close(G.mapping(draws.z), golden["out/w"], TOLERANCE, "w")
    assert_close(G.mapping(tensor(golden["in/z2"])), golden["out/w2"], TOLERANCE, "w2")


def _cutoff_of(name: str, key: str) -> int:
    """First layer of the second latents, which the set gives in its description of the array."""
    return int(goldens.said(name, key, r"layers >= (\d+) from w2"))


@pytest.mark.parametrize("name", sets("A8_*"))
def test_golden_networks_of_default_size(name: str):
    golden, seeds = arrays(name), entry(name)["seeds"]
    variables = goldens.from_recipe(
        entry(name)["shapes"], entry(name)["sha256"], seeds["variables"]
    )
    kwargs = entry(name)["static_kwargs"]
    G = official_names.generator(kwargs["G"], under(variables, "G/"))
    D = official_names.discriminator(kwargs["D"], under(variables, "D/"))
    side = G.config.resolution

    w = G.mapping(tensor(golden["in/z"]))
    assert_close(w, golden["out/w"], TOLERANCE_FULL_SIZE, "w")
    images_at: dict[float, Tensor] = {}
    for key, match in matching(golden, r"out/img_lod([\d.]+)(?:_(\w+))?"):
        lod, part = float(match[1]), match[2]
        if lod not in images_at:
            images_at[lod] = full_size_images(G, G.broadcast(w), lod)
        mine = _part(images_at[lod], part, golden[key].shape[-1])
        assert_close(mine, golden[key], TOLERANCE_FULL_SIZE, key)
    for key, match in matching(golden, r"out/d_scores_lod([\d.]+)"):
        images = golden.get("in/d_images_u8")
        if images is None:
            n, c = len(golden[key]), kwargs["D"]["num_channels"]
            images = goldens.recipe().rand_images_u8(n, c, side, seeds["images"])
        actual = scores(D, images, float(match[1]))
        assert_close(actual, golden[key], TOLERANCE_FULL_SIZE, key)


def _part(images: Tensor, part: str | None, size: int) -> Tensor:
    """A crop of the images, or all of them box-averaged."""
    if part is None:
        return images
    if part.startswith("box"):
        return box_down(images, images.shape[-1] // size)
    start = {"tl": 0, "br": images.shape[-1] - size, "ctr": (images.shape[-1] - size) // 2}[part]
    return images[:, :, start : start + size, start : start + size]


def _tables() -> list[tuple[str, str]]:
    found = []
    for name in sets("A9_*"):
        tables = json.loads((GOLDEN_DIR / entry(name)["file"]).read_text())["tables"]
        found += [(name, resolution) for resolution in tables]
    return found


@pytest.mark.parametrize(("name", "resolution"), _tables())
def test_golden_names_shapes_and_counts_of_default_networks(name: str, resolution: str):
    """1024 px: G has 26,219,627 trainable parameters."""
    table = json.loads((GOLDEN_DIR / entry(name)["file"]).read_text())["tables"][resolution]
    side = int(resolution)
    for kind, network in (
        ("G", Generator(GeneratorConfig(resolution=side))),
        ("D", Discriminator(DiscriminatorConfig(resolution=side))),
    ):
        theirs = official_names.names(network)
        for group, ours in (
            ("trainables", dict(network.named_parameters())),
            ("non_trainables", dict(network.named_buffers())),
        ):
            expected = {n: s for n, s in table[kind][group] if n.split("/")[-1] != "lod"}
            actual = {
                theirs[n]: official_names.official_shape(theirs[n], t)
                for n, t in ours.items()
                if n in theirs
            }
            assert actual == expected
        count = sum(p.numel() for p in network.parameters())
        assert count == table[kind]["num_trainable"]
        assert count == entry(name)["counts"][resolution][kind]
