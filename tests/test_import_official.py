"""`python -m pipeline.import_official`: what it writes, who reads that, and what it refuses."""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline import bundle as bundles
from pipeline import grids, import_official, packaging
from pipeline.generate.__main__ import main as generate
from pipeline.registry import load
from stylegan import sample
from stylegan.official import snapshot, tensorflow
from tests.official_pickles import dumps
from tests.official_records import SIZES, STYLE, network_of, options_of, pickled


@pytest.fixture(scope="module")
def pickle_file(tmp_path_factory) -> Path:
    """G, D and Gs of StyleGAN."""
    build = tensorflow.BUILDS[STYLE]
    options = options_of(build, label_size=0, truncation_cutoff=3)
    G, Gs = (network_of(build, label_size=0) for _ in range(2))
    Gs.synthesis.blocks["4"].const.data += 1
    D = network_of(tensorflow.BUILDS["D_basic",], label_size=0)
    path = tmp_path_factory.mktemp("official") / "network.pkl"
    records = (
        pickled(G, STYLE, static_kwargs=options),
        pickled(D, ("D_basic",), static_kwargs={**SIZES, "label_size": 0}),
        pickled(Gs, STYLE, static_kwargs=options),
    )
    path.write_bytes(dumps(records))
    return path


def run(*argv: Any) -> int:
    return import_official.main([str(arg) for arg in argv])


def test_the_command_writes_what_generate_and_the_registry_read(pickle_file, tmp_path, capsys):
    assert run(pickle_file, tmp_path / "model") == 0
    assert "Gs: stylegan of 16 px, in" in capsys.readouterr().out

    bundle = bundles.load(tmp_path / "model")
    assert bundle.lineage["source"] == str(pickle_file)
    assert bundle.lineage["source_sha256"] == hashlib.sha256(pickle_file.read_bytes()).hexdigest()
    assert bundle.lineage["source_network"] == "Gs"
    assert bundle.lineage["truncation_psi"] == 0.7
    command = ["images", "--model", str(tmp_path / "model"), "--seeds", "3", "--psi", "1"]
    assert generate([*command, "--out", str(tmp_path / "images")]) == 0
    Gs = snapshot.read(pickle_file.read_bytes(), "Gs").network.eval()
    with Image.open(tmp_path / "images" / "seed0003.png") as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, sample.sample(Gs, [3])[0].permute(1, 2, 0))
    assert torch.equal(load(str(pickle_file)).sample([3], psi=1), sample.sample(Gs, [3]))


def test_imported_networks_are_truncated_as_their_file_says(pickle_file, tmp_path):
    """psi 0.7 of the first 3 layers: in samples, generate, the registry's signature and model."""
    assert run(pickle_file, tmp_path / "model") == 0
    bundle = bundles.load(tmp_path / "model")
    Gs = snapshot.read(pickle_file.read_bytes(), "Gs").network.eval()
    expected = sample.sample(Gs, range(32), psi=0.7, cutoff=3)
    assert not torch.equal(expected, sample.sample(Gs, range(32), psi=0.7))

    assert (bundle.generator().usual_psi, bundle.generator().usual_cutoff) == (0.7, 3)
    np.testing.assert_array_equal(bundle.grid, grids.sheet(expected, columns=8))
    command = ["images", "--model", str(tmp_path / "model"), "--seeds", "1"]
    for more, cutoff in (([], 3), (["--cutoff", "5"], 5)):
        assert generate([*command, *more, "--out", str(tmp_path / "images")]) == 0
        with Image.open(tmp_path / "images" / "seed0001.png") as image:
            drawn = sample.sample(Gs, [1], psi=0.7, cutoff=cutoff)[0]
            np.testing.assert_array_equal(np.asarray(image), drawn.permute(1, 2, 0))
    for others in (["mix"], ["arithmetic", "--plus", "0-1"]):
        paths = [tmp_path / f"{others[0]}-{name}.png" for name in ("own", "given", "all")]
        options = ([], ["--cutoff", "3"], ["--cutoff", "6"])
        for path, more in zip(paths, options, strict=True):
            argv = [*others, "--model", str(tmp_path / "model"), *more, "--out", str(path)]
            assert generate(argv) == 0
        own, given, everything = (path.read_bytes() for path in paths)
        assert own == given != everything
    assert packaging._params(bundle) == {"psi": 0.7, "cutoff": 3, "noise": "fixed"}
    with warnings.catch_warnings(action="ignore"):  # MLflow's import warns of its own type hints
        from pipeline.generator_model import GeneratorModel
    model = GeneratorModel()
    files = {"weights": "G.safetensors", "network": "network.json", "digests": "digests.json"}
    artifacts = {name: str(tmp_path / "model" / file) for name, file in files.items()}
    model.load_context(SimpleNamespace(artifacts=artifacts))
    for params, drawn in (({}, expected[1]), ({"cutoff": -1}, sample.sample(Gs, [1], psi=0.7)[0])):
        (png,) = model.predict(None, pd.DataFrame({"seed": [1]}), params)["png"]
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            np.testing.assert_array_equal(np.asarray(image), drawn.permute(1, 2, 0))


def test_the_command_takes_any_url_and_other_networks(pickle_file, tmp_path):
    url = "memory://official/network.pkl.gz"
    with fsspec.open(url, "wb") as file:
        file.write(gzip.compress(pickle_file.read_bytes()))

    assert run(url, tmp_path / "G", "--network", "G") == 0
    assert run(url, tmp_path / "D", "--network", "D") == 0

    assert bundles.load(tmp_path / "G").lineage["source"] == url
    D = snapshot.read(pickle_file.read_bytes(), "D").network
    described = json.loads((tmp_path / "D" / "network.json").read_text())
    assert described == {"lod": 0.0, "D": json.loads(json.dumps(dataclasses.asdict(D.config)))}
    tensors = safetensors.torch.load_file(tmp_path / "D" / "D.safetensors")
    torch.testing.assert_close(tensors, dict(D.state_dict()), rtol=0, atol=0)
    lineage = json.loads((tmp_path / "D" / "lineage.json").read_text())
    assert len(lineage["source_sha256"]) == 64


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")

    assert run(tmp_path / "evil.pkl", tmp_path / "out") == 1
    assert run(tmp_path / "missing.pkl", tmp_path / "out") == 1

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "evil.pkl: the pickle asks for os.system, which is not data" in lines[0]
    assert "missing.pkl" in lines[1]
    assert not (tmp_path / "out").exists()
