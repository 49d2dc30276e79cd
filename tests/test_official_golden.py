"""Official pickles, imported, give the official images and scores (golden set H1)."""

import re

import numpy as np
import pytest
import torch

from stylegan import sample
from stylegan.official import snapshot
from tests import goldens

PICKLES = {
    (name, key): entry["file"]
    for name in goldens.sets("H1_*")
    for key, entry in goldens.entry(name)["pickles"].items()
}
OUTPUTS = [(name, key) for name in goldens.sets("H1_*") for key in goldens.arrays(name)]
OUTPUTS = [(name, key) for name, key in OUTPUTS if "/out/" in key]
OUTPUT = re.compile(r"out/(?:(?P<G>G|Gs)_img(?P<truncated>_default_truncation)?|(?P<D>D)_scores)")


def imported(name: str, pickle: str, network: snapshot.Name) -> snapshot.Imported:
    return snapshot.read((goldens.GOLDEN_DIR / PICKLES[name, pickle]).read_bytes(), network)


def test_every_golden_pickle_has_outputs():
    assert set(PICKLES) == {(name, key.split("/")[0]) for name, key in OUTPUTS}


@pytest.mark.parametrize(("name", "key"), OUTPUTS)
def test_golden_images_and_scores_of_pickles(name: str, key: str):
    golden, (pickle, _, output) = goldens.arrays(name), key.partition("/")
    match = OUTPUT.fullmatch(output)
    assert match, f"unknown output {key}"
    found = imported(name, pickle, match["G"] or match["D"])
    network = found.network.eval()
    with torch.no_grad():
        if match["D"]:
            images = goldens.network_images(golden[f"{pickle}/in/d_images_u8"])
            got = network(torch.from_numpy(images), lod=found.lod).numpy()
            assert_close(got, golden[key])
            return
        ws = network.broadcast(network.mapping(torch.from_numpy(golden[f"{pickle}/in/z"])))
        if match["truncated"]:
            psi, cutoff = (found.facts[f"truncation_{part}"] for part in ("psi", "cutoff"))
            ws = network.truncate(ws, psi=psi, cutoff=ws.shape[1] if cutoff is None else cutoff)
        images = network.synthesis(ws, lod=found.lod)

    assert_close(images.numpy(), golden[key])
    bytes_apart = sample.to_uint8(images).int() - sample.to_uint8(torch.from_numpy(golden[key]))
    assert bytes_apart.abs().max() <= 1


@pytest.mark.parametrize("part", ["G", "D", "Gs"])
@pytest.mark.parametrize(("name", "pickle"), PICKLES)
def test_golden_pickles_are_described(name: str, pickle: str, part: snapshot.Name):
    described = goldens.entry(name)["pickles"][pickle]["networks"][part]

    found = imported(name, pickle, part)

    config, kwargs = found.network.config, described["static_kwargs"]
    assert (config.resolution, config.channels) == (kwargs["resolution"], kwargs["num_channels"])
    assert f"version {described['version']}, " in found.facts["source_format"]
    assert found.facts["source_format"].endswith(described["build_func_name"])


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """1e-4, as the requirement has it, and the tolerance of the sets of networks."""
    assert np.abs(got - expected).max() <= 1e-4
    goldens.assert_close(got, expected, 2e-5)
