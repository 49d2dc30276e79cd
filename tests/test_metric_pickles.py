"""Metric networks of the official repositories as sources, in files of their formats.

The files themselves are not on pip, so formats are written here: TorchScript by torch, pickles by
stand-ins of the official classes. Whether StyleGAN3's pickles call their tensors as one of the two
known editions does is not known here; another name is refused with what was found.
"""

import pickle

import pytest
import torch

from pipeline import weights
from stylegan.metrics import inception_names
from tests.official_pickles import Module, Network, dumps, torch_fields
from tests.test_inception import random_tensors
from tests.test_lpips import graph_variables

INCEPTION, LOGITS = "inception-2015-12-05", "inception-2015-12-05-logits"


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def logits():
    return torch.randn(1008, 2048, generator=torch.Generator().manual_seed(1))


class Nothing(torch.nn.Module):
    """A part with tensors; what it computes is never asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("code of a file was run")


def scripted(named):
    """A TorchScript file with these tensors by their dotted names."""
    root = Nothing()
    for name, tensor in named.items():
        *path, last = name.split(".")
        part = root
        for step in path:
            if step not in dict(part.named_children()):
                part.add_module(step, Nothing())
            part = getattr(part, step)
        part.register_buffer(last, tensor)
    return torch.jit.script(root).save_to_buffer()


def in_modules(named):
    return dumps(Module("InceptionV3", torch_fields(named), "raise SystemExit"))


def in_tensorflow(tensors, logits):
    """Variables of a network of dnnlib.tflib."""
    graph = {"softmax/weights": logits.T, **graph_variables(tensors)}
    variables = [(name, value.numpy()) for name, value in graph.items()]
    state = {"version": 3, "variables": variables, "build_module_src": "raise SystemExit"}
    return dumps(Network(state))


def content(form, tensors, logits):
    script = {f"layers.{name}": value for name, value in tensors.items()}
    script["output.weight"] = logits
    if form == "pt":
        return scripted(script)
    if form == "TensorFlow":
        return in_tensorflow(tensors, logits)
    if form == "module":
        return in_modules({f"net.{name}": value for name, value in script.items()})
    named = {"fc.weight": logits}
    for theirs, ours in inception_names._torch_names():
        named[f"{theirs}.conv.weight"] = tensors[f"{ours}.weight"]
        named[f"{theirs}.bn.weight"] = torch.ones_like(tensors[f"{ours}.beta"])
        named[f"{theirs}.bn.bias"] = tensors[f"{ours}.beta"]
        named[f"{theirs}.bn.running_mean"] = tensors[f"{ours}.mean"]
        named[f"{theirs}.bn.running_var"] = tensors[f"{ours}.var"]
    return in_modules(named)


# What writes TorchScript is deprecated; files of it are there.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", ["pt", "TensorFlow", "module", "module of torchvision"])
def test_official_metric_networks_are_read_as_tensors_and_their_code_is_not_run(
    form, tensors, logits, tmp_path
):
    suffix = "pt" if form == "pt" else "pkl"
    (tmp_path / f"{INCEPTION}.{suffix}").write_bytes(content(form, tensors, logits))
    where = {"folders": [str(tmp_path)], "cache": tmp_path / "cache"}

    torch.testing.assert_close(weights.load(INCEPTION, **where), tensors, rtol=0, atol=0)
    found = weights.load(LOGITS, **where)
    torch.testing.assert_close(found, {"logits": logits}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (in_modules({"features.0.weight": torch.zeros(2)}), "features.0.weight"),
        (dumps({"G": 1}), "the pickle is a dict"),
        (pickle.dumps(print), "asks for builtins.print"),
    ],
    ids=["another network", "no network", "code"],
)
def test_other_pickles_are_refused_with_what_they_are(tmp_path, pickled, words):
    (tmp_path / f"{INCEPTION}.pkl").write_bytes(pickled)

    with pytest.raises(ValueError, match=words):
        weights.load(INCEPTION, folders=[str(tmp_path)], cache=tmp_path / "cache")
