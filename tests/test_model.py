"""The Python API: what a generator does, whatever kind it is and wherever it comes from."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import bundle as bundles
from pipeline import registry
from pipeline.bundle import Bundle
from pipeline.model import Model
from pipeline.registry import load
from stylegan import sample
from tests import generators
from tests.networks import networks

ROOT = Path(registry.__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def of_kind(name, *, label_size=0, **options) -> Model:
    G, _ = networks(name, label_size=label_size)
    network = sample.describe(G.config)
    return Model(Bundle(tensors=G.state_dict(), network=network, lineage={}), **options)


@pytest.fixture(scope="module")
def model():
    return Model(generators.bundle())


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pulled")
    bundles.write(generators.bundle(), folder, grid=Image.new("RGB", (8, 8)))
    return folder


def test_samples_are_mapping_then_synthesis(model):
    images = model.sample([3, 5], psi=0.5, noise="random")
    ws = model.mapping(model.z([3, 5]), psi=0.5)
    by_hand = model.synthesis(ws, noise="random", noise_seeds=[3, 5])

    assert torch.equal(images, sample.to_uint8(by_hand))
    assert torch.equal(images, sample.sample(model.Gs, [3, 5], psi=0.5, noise="random"))
    assert torch.equal(model.sample([3]), model.sample([3], psi=0.7)), "psi is the usual one"
    one, two = model.to_pil(images)
    np.testing.assert_array_equal(np.asarray(two), images[1].permute(1, 2, 0))
    np.testing.assert_array_equal(np.asarray(model.to_pil(by_hand)[0]), np.asarray(one))


def test_images_of_many_latents_are_those_of_each(model):
    """More than are made at a time; another batch size may round another way."""
    ws = model.styles(range(11))
    noise = [torch.randn(11, 1, side, side) for side in model.Gs.noise_sides()]
    together = model.synthesis(ws, noise=noise)
    alone = model.synthesis(ws[9:10], noise=[m[9:10] for m in noise])
    torch.testing.assert_close(together[9:10], alone, rtol=1e-4, atol=1e-5)
    shared = model.synthesis(ws, noise=[m[:1] for m in noise])
    torch.testing.assert_close(shared[:1], together[:1], rtol=1e-4, atol=1e-5)


def test_noise_is_stored_drawn_or_none():
    model = Model(generators.bundle())
    with torch.no_grad():
        for name, parameter in model.Gs.named_parameters():
            if "noise" in name:
                parameter.fill_(0.3)
    ws = model.styles([1]).expand(2, -1, -1)
    fixed, random, none = (model.synthesis(ws, noise=n) for n in ("fixed", "random", "none"))

    assert torch.equal(fixed[0], fixed[1])
    assert torch.equal(none[0], none[1])
    assert not torch.equal(random[0], random[1])
    assert not torch.equal(fixed[0], none[0])
    zero = [torch.zeros(1, 1, side, side) for side in model.Gs.noise_sides()]
    assert torch.equal(model.synthesis(ws, noise=zero), none)
    with pytest.raises(ValueError, match="noise is 'some'; choose from fixed, random, none"):
        model.synthesis(ws, noise="some")
    with pytest.raises(ValueError, match="1 noise_seeds for 2 ws"):
        model.synthesis(ws, noise_seeds=[1])


def test_mixing_takes_the_layers_of_b_and_the_rest_of_a(model):
    a, b = model.styles([1]), model.styles([3, 4, 5])
    coarse = model.mix(a, b, layers="coarse")

    assert torch.equal(coarse[:, :4], b[:, :4])
    assert torch.equal(coarse[:, 4:], a[:, 4:].expand(3, -1, -1))
    assert torch.equal(model.mix(a, b, layers=range(8)), b)
    assert torch.equal(model.mix(b, a, layers="2-5")[:, 2:6], a[:, 2:6].expand(3, -1, -1))
    with pytest.raises(ValueError, match="mix as many ws as there are, or one with each"):
        model.mix(model.styles([1, 2]), b, layers="coarse")


@pytest.mark.parametrize("name", ["gan", "dcgan", "pggan", "stylegan", "stylegan2-skip-residual"])
def test_every_kind_of_network_is_a_model_and_says_what_it_cannot_do(name):
    model = of_kind(name)
    ws = model.styles([0, 1, 2])
    assert model.sample([0, 1, 2]).shape == (3, 3, 16, 16)
    assert model.synthesis(ws.mean(dim=0, keepdim=True)).shape == (1, 3, 16, 16)
    if "stylegan" in name:
        assert model.mix(ws[:1], ws[1:], layers="middle").shape == (2, 6, 8)
        return
    with pytest.raises(ValueError, match="this network has no styles to mix"):
        model.mix(ws[:1], ws[1:], layers="middle")
    with pytest.raises(ValueError, match=f"psi is 0.5, but a network of kind {name} has no w"):
        model.sample([0], psi=0.5)
    for noise in ("random", "none"):
        with pytest.raises(ValueError, match=f"kind {name} has no noise inputs; leave it at fixed"):
            model.sample([0], noise=noise)


def test_labels_are_a_class_for_all_or_one_each_or_vectors():
    model = of_kind("stylegan", label_size=3)
    each = model.sample([0, 1], torch.tensor([2, 0]))
    assert torch.equal(each[:1], model.sample([0], 2))
    assert torch.equal(each, model.sample([0, 1], torch.tensor([[0.0, 0, 1], [1, 0, 0]])))
    with pytest.raises(ValueError, match="this network has 3 classes; choose one"):
        model.sample([0])
    with pytest.raises(ValueError, match="the network has no labels; leave the label out"):
        of_kind("stylegan").sample([0], 1)


def test_a_lower_precision_gives_nearly_the_same_images(model):
    low = Model(generators.bundle(), precision="bfloat16")
    difference = (low.sample([0, 1]).float() - model.sample([0, 1]).float()).abs()
    assert 0 < difference.mean() < 4
    with pytest.raises(ValueError, match="precision is 'half'; choose from float32, bfloat16"):
        Model(generators.bundle(), precision="half")
    with pytest.raises(ValueError, match="device is 'tpu', but torch sees"):
        load("anywhere", device="tpu")


def test_gradients_reach_the_styles(model):
    ws = model.styles([0]).requires_grad_()
    model.synthesis(ws).square().sum().backward()
    assert ws.grad is not None
    assert ws.grad.abs().sum(dim=(0, 2)).min() > 0


def test_a_model_is_loaded_from_the_registry_a_folder_and_a_bucket(
    s3, pulled, tmp_path, monkeypatch
):
    """And the README's example, from pull to a mixed image, does what it says."""
    from data_prep import storage
    from pipeline.tracking import Tracker, TrackingConfig

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker.open(
        TrackingConfig(uri=uri, system_metrics=False), run_id=None, spool=tmp_path / "spool"
    )
    tracker.finish("FINISHED")
    bundle = generators.bundle()
    registry.register(bundle, uri=uri, run_id=tracker.run_id, name="faces", alias="champion")
    for path in pulled.iterdir():
        storage.write_atomic(f"{s3.url}/model/{path.name}", path.read_bytes())
    committed, _ = generators.checkpoint(f"{s3.url}/run", lod=1.0)

    expected = Model(bundle).sample([3])
    assert torch.equal(load("models:/faces@champion", tracking_uri=uri).sample([3]), expected)
    assert torch.equal(load(str(pulled)).sample([3]), expected)
    assert torch.equal(load(f"{s3.url}/model").sample([3]), expected)
    for url in (committed.url, f"{s3.url}/run"):
        assert load(url).sample([3]).shape == (1, 3, 16, 16)

    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(example.replace("http://mlflow:5000", uri), {})
    model = Model(bundle)
    mixed = model.mix(model.styles([3]), model.styles([7]), layers="coarse")
    with Image.open("mixed.png") as image:
        drawn = np.asarray(image)
    np.testing.assert_array_equal(drawn, np.asarray(model.to_pil(model.synthesis(mixed))[0]))


WITHOUT_RAY_AND_MLFLOW = """
import sys
from pipeline import registry
model = registry.load(sys.argv[1], device="cpu")
print(model)
model.to_pil(model.sample([0]))[0].save(sys.argv[2])
print(*sorted({"ray", "mlflow", "pandas", "matplotlib"} & set(sys.modules)), "imported")
"""


def test_a_folder_needs_neither_ray_nor_mlflow(pulled, tmp_path):
    out = tmp_path / "out.png"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY_AND_MLFLOW, str(pulled), str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{pulled}: stylegan, 32x32 px, 64 kimg", "imported"]
    with Image.open(out) as image:
        assert image.size == (32, 32)
