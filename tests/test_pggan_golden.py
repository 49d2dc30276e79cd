"""Progressive GAN's networks against the official ones, set by set (MANIFEST sections 5, 7, 8).

Golden images and D's inputs are full-size at every lod; ours have the native size of the level.
"""

import functools
import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan.networks.pggan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
)
from stylegan.resample import blocky_up, box_down
from tests import goldens, official_names
from tests.goldens import GOLDEN_DIR, arrays, assert_close, entry, sets

TOLERANCE = 2e-5


@functools.lru_cache(maxsize=1)
def networks(name: str) -> tuple[Generator, Discriminator]:
    """G and D of a set; D4 is of StyleGAN's repository and does not store its variables."""
    values = arrays(name)
    if "shapes" in entry(name):
        seed = entry(name)["seeds"]["variables"]
        values = goldens.from_recipe(entry(name)["shapes"], entry(name)["sha256"], seed)
    kwargs = entry(name)["static_kwargs"]
    return official_names.pggan(kwargs, values, original=not name.startswith("D4_"))


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def outputs(pattern: str) -> list[tuple[str, str]]:
    return [
        (name, item["key"])
        for name in sets(pattern)
        for item in entry(name)["arrays"]
        if item["key"].startswith("out/")
    ]


@torch.no_grad()
@pytest.mark.parametrize(("name", "key"), [*outputs("D1_*"), *outputs("D4_*")])
def test_golden_images_scores_and_class_logits(name: str, key: str):
    golden = arrays(name)
    G, D = networks(name)
    match = re.fullmatch(r"out/(img|d_scores|d_labels)_lod([\d.]+)(?:_batch(\d+))?", key)
    assert match, f"nothing compares {name} {key}"
    kind, lod, batch = match[1], float(match[2]), match[3]

    if kind == "img":
        labels = tensor(golden["in/labels"]) if "in/labels" in golden else None
        images = G(tensor(golden["in/z"]), labels, lod=lod)
        actual = blocky_up(images, 2 ** int(lod))
    else:
        images = goldens.network_images(golden["in/d_images_u8"])[: int(batch) if batch else None]
        logits = D(box_down(tensor(images), 2 ** int(lod)), None, lod)
        assert logits.shape[1] == 1 + D.config.class_logits
        actual = logits[:, :1] if kind == "d_scores" else logits[:, 1:]
    assert_close(actual, golden[key], TOLERANCE, key)


def _original_shape(name: str, parameter: Tensor) -> list[int]:
    shape = official_names.official_shape(name, parameter)
    return list(official_names.transposed(name, np.empty(shape)).shape)


def _tables() -> list[tuple[str, str]]:
    found = []
    for name in sets("D3_*"):
        tables = json.loads((GOLDEN_DIR / entry(name)["file"]).read_text())["tables"]
        found += [(name, resolution) for resolution in tables]
    return found


@pytest.mark.parametrize(("name", "resolution"), _tables())
def test_golden_names_shapes_and_counts_of_default_networks(name: str, resolution: str):
    """1024 px: G has 23,079,115 parameters and D 23,087,249."""
    table = json.loads((GOLDEN_DIR / entry(name)["file"]).read_text())["tables"][resolution]
    for kind, network in (
        ("G", Generator(GeneratorConfig(resolution=int(resolution)))),
        ("D", Discriminator(DiscriminatorConfig(resolution=int(resolution)))),
    ):
        parameters = dict(network.named_parameters())
        actual = {
            theirs: _original_shape(theirs, parameters[ours])
            for ours, theirs in official_names.names(network).items()
        }
        assert actual == dict(table[kind]["trainables"])
        count = sum(p.numel() for p in parameters.values())
        assert count == table[kind]["num_trainable"] == entry(name)["counts"][resolution][kind]
