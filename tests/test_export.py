"""Generators in files that others read: ONNX, and StyleGAN2 as stylegan2-ada-pytorch has it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline import bundle as bundles
from pipeline import export, onnx_files
from pipeline.bundle import Bundle
from stylegan import sample
from stylegan.networks import stylegan, stylegan2
from stylegan.networks.interface import Generator
from stylegan.official import pytorch, snapshot
from tests.goldens import GOLDEN_DIR
from tests.official_pickles import dumps
from tests.test_official_pytorch import G_SHAPES, drawn, torch_G

SIZES = {"resolution": 8, "fmap_base": 32, "fmap_max": 6, "z_size": 5, "w_size": 7}
SIZES |= {"mapping_width": 6, "mapping_layers": 2}

EXPORT = """
import sys
from pipeline import export
assert export.main(["onnx", "stylegan", "stylegan-onnx", "--cutoff", "1"]) == 0
assert export.main(["onnx", "stylegan2", "stylegan2-onnx", "--noise", "none"]) == 0
"""


def network(kind: str, **options) -> Generator:
    """Weights that make every part of it visible."""
    module = {"stylegan": stylegan, "stylegan2": stylegan2}[kind]
    Gs = module.Generator(module.GeneratorConfig(**SIZES, **options), seed=1).eval()
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in Gs.state_dict().items():
            if name.endswith(("bias", "noise_strength", "w_avg")):
                tensor.normal_(generator=rng)
    return Gs.requires_grad_(requires_grad=False)


def write(Gs: Generator, folder: Path, **network) -> Path:
    bundle = Bundle(
        tensors=Gs.state_dict(), network={**sample.describe(Gs.config), **network}, lineage={}
    )
    bundles.write(bundle, folder, grid=Image.new("RGB", (8, 8)))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """What the command writes, in a process without the checks of annotations that tests have."""
    folder = tmp_path_factory.mktemp("export")
    write(network("stylegan", label_size=3), folder / "stylegan", lod=0.5)
    write(network("stylegan2"), folder / "stylegan2")
    done = subprocess.run(
        [sys.executable, "-c", EXPORT], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("largest difference from PyTorch") == 2
    return folder


def run(path: Path, **inputs) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return torch.from_numpy(output)


@pytest.mark.parametrize("count", [1, 5], ids="{} images".format)
@pytest.mark.parametrize("psi", [1.0, 0.3], ids="psi {}".format)
def test_both_files_compute_what_the_network_computes(exported, psi, count):
    for kind, cutoff, lod, options in (
        ("stylegan", 1, 0.5, {"label_size": 3}),
        ("stylegan2", 4, 0.0, {}),
    ):
        Gs, folder = network(kind, **options), exported / f"{kind}-onnx"
        z = sample.latents(range(50, 50 + count), 5)
        labels = torch.eye(3)[torch.arange(count) % 3] if options else None
        inputs = {"z": z, "psi": np.float32(psi), **({"labels": labels} if options else {})}

        ws = run(folder / onnx_files.MAPPING, **inputs)
        images = run(folder / onnx_files.SYNTHESIS, ws=ws)

        expected = Gs.truncate(Gs.broadcast(Gs.mapping(z, labels)), psi=psi, cutoff=cutoff)
        torch.testing.assert_close(ws, expected, rtol=0, atol=onnx_files.TOLERANCE)
        none = [torch.zeros(1, 1, side, side) for side in Gs.noise_sides()]
        noise = none if kind == "stylegan2" else None
        expected = Gs.synthesis(expected, noise=noise, lod=lod)
        torch.testing.assert_close(images, expected, rtol=0, atol=onnx_files.TOLERANCE)


def test_the_files_say_what_they_are(exported):
    path = exported / "stylegan-onnx" / onnx_files.MAPPING
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {"z": ["n", 5], "psi": [], "labels": ["n", 3], "ws": ["n", 4, 7]}
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["cutoff"], facts["psi"], facts["lod"]) == ("1", "0.7", "0.5")
    assert json.loads(facts["network"])["G"]["kind"] == "stylegan"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_go_back_under_the_names_they_were_imported_from(tmp_path, suffix):
    arguments = {"channel_base": 32, "channel_max": 6}
    filters = {"synthesis.b8.resample_filter": (4, 4)}
    imported = snapshot.read(
        dumps({"G": None, "D": None, "G_ema": torch_G({**G_SHAPES, **filters})}), "Gs"
    )
    model, out = write(imported.network, tmp_path / "model"), tmp_path / f"G{suffix}"

    assert export.main(["ada", str(model), str(out)]) == 0

    load = safetensors.torch.load_file if suffix == ".safetensors" else torch.load
    found = load(out)
    weights = {name: t for name, t in found.items() if not name.endswith("resample_filter")}
    assert weights.keys() == G_SHAPES.keys()
    for name, shape in G_SHAPES.items():
        # Ours holds a style's bias less 1, which may cost the last bit.
        atol = 1.2e-7 if name.endswith("affine.bias") else 0
        torch.testing.assert_close(weights[name], drawn(name, shape), rtol=0, atol=atol)
    taps = torch.tensor([1.0, 3, 3, 1])
    torch.testing.assert_close(found["synthesis.b8.conv0.resample_filter"], taps.outer(taps) / 64)
    told = json.loads(out.with_suffix(".json").read_text())
    assert (told["z_dim"], told["w_dim"], told["img_resolution"]) == (3, 4, 8)
    assert told["synthesis_kwargs"].items() >= arguments.items()


@pytest.mark.parametrize(
    "path", sorted(GOLDEN_DIR.glob("H1_stylegan2*.pkl.gz")), ids=lambda path: path.name
)
def test_golden_pickles_of_stylegan2_read_alike_by_way_of_the_other_names(path):
    """TensorFlow's file -> ours -> names of PyTorch -> ours."""
    Gs = snapshot.read(path.read_bytes(), "Gs").network

    tensors = pytorch.state_dict(Gs)

    tensors = {n: t for n, t in tensors.items() if not n.endswith("resample_filter")}
    back = pytorch._fitting(Gs, tensors)
    torch.testing.assert_close(back, dict(Gs.state_dict()), rtol=0, atol=2.5e-7)


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, capsys):
    stylegan_, stylegan2_ = (
        write(network(kind), tmp_path / kind) for kind in ("stylegan", "stylegan2")
    )
    for argv, message in (
        (
            ["ada", stylegan_, "G.pt"],
            "the network is stylegan and grows, and stylegan2-ada-pytorch",
        ),
        (["ada", stylegan2_, "G.pkl"], "G.pkl ends in '.pkl'; choose .safetensors or .pt"),
        (
            ["onnx", stylegan2_, tmp_path / "o", "--cutoff", "9"],
            "cutoff is 9, but the network has 4",
        ),
        (["onnx", tmp_path / "none", tmp_path / "o"], "none is no model"),
    ):
        assert export.main([str(part) for part in argv]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert message in lines[0]
