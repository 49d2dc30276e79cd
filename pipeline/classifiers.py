"""Classifiers of attributes, for linear separability: trained ones, or official pickles.

    found = find("models/attributes")  # or a folder of weights with celebahq-classifiers in it
    logits = answers(images, found.urls[0], "cpu")

    smiling.classifier.safetensors    weights of one that `python -m pipeline.attributes` has made
    smiling.classifier.json           what they are the weights of, their SHA-256, how good it is

Each is a discriminator of Progressive GAN or StyleGAN whose logit says whether an image has the
attribute, which its file is named after. Official ones are read as data.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data_prep import storage
from pipeline import weights
from pipeline.known_weights import OFFICIAL_SUFFIX, TRAINED_SUFFIX
from pipeline.weights import WeightsDigestError
from stylegan.data_pickle import ArchiveError
from stylegan.networks import family
from stylegan.networks.interface import Discriminator
from stylegan.official import snapshot
from stylegan.resample import box_down
from stylegan.state import load_network

FORMAT = 1
_WEIGHTS_SUFFIX = TRAINED_SUFFIX.replace("json", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Classifiers:
    """A folder of them."""

    url: str
    urls: tuple[str, ...]
    """Of their files, by name."""
    sha256: str
    """Of their digests."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """What each of them tells, by its file's name."""
        names = (url.rpartition("/")[2].removesuffix(TRAINED_SUFFIX) for url in self.urls)
        names = (name.removesuffix(OFFICIAL_SUFFIX) for name in names)
        return tuple(name.removeprefix("celebahq-classifier-") for name in names)


@functools.lru_cache(maxsize=4)
def find(folder: str) -> Classifiers:
    """The classifiers in this folder or its `celebahq-classifiers`, or where weights are.

    Raises:
        MissingWeightsError: There are none.
    """
    urls = weights.find_classifiers([*filter(None, [folder]), *weights.search_folders()])
    digests = "\n".join(storage.sha256(url) for url in urls)
    sha256 = hashlib.sha256(digests.encode()).hexdigest()
    return Classifiers(url=urls[0].rpartition("/")[0], urls=urls, sha256=sha256)


def classifier_url(folder: str, attribute: str) -> str:
    """URL of the JSON of a trained classifier."""
    return storage.join(folder, f"{attribute}{TRAINED_SUFFIX}")


def write(url: str, network: Discriminator, told: Mapping[str, Any]) -> None:
    """Write a trained classifier: its weights, then the JSON that vouches for them."""
    content = safetensors.torch.save({k: t.contiguous() for k, t in network.state_dict().items()})
    record = {
        "format": FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "network": dataclasses.asdict(network.config),
        **told,
    }
    storage.write_atomic(_weights_url(url), content)
    storage.write_atomic(url, (json.dumps(record, indent=1) + "\n").encode())


def read_record(url: str) -> dict[str, Any]:
    """The JSON of a trained classifier.

    Raises:
        MissingError: There is none.
        ArchiveError: It is no such JSON.
    """
    content = storage.read_bytes(url)
    try:
        record: dict[str, Any] = json.loads(content)
        if record["format"] != FORMAT or not {"sha256", "network"} <= record.keys():
            raise ValueError(f"format {record['format']}")
    except (ValueError, KeyError, TypeError) as err:
        raise ArchiveError(
            f"{url} is no classifier of format {FORMAT} ({err!r}); delete it and train it again "
            f"with `python -m pipeline.attributes`"
        ) from err
    return record


@torch.inference_mode()
def answers(images: Tensor, url: str, device: str) -> Tensor:
    """Logit of each image in [-1, 1]; images larger than the classifier's are averaged down.

    Raises:
        ValueError: Images of another size or colour.
        WeightsDigestError: The weights are not those that the JSON vouches for.
    """
    network = _load(url, device)
    side, channels = network.config.resolution, network.config.channels
    if images.shape[2] > side and images.shape[2] % side == 0:
        images = box_down(images, images.shape[2] // side)
    if images.shape[2] != side or images.shape[1] != channels:
        raise ValueError(
            f"the classifier {url} looks at {channels} x {side} x {side} px, but the generator "
            f"gives {images.shape[1]} x {images.shape[2]} x {images.shape[3]}; leave ls out, or "
            f"train classifiers on its data with `python -m pipeline.attributes`"
        )
    # One minibatch-stddev group at a time, as officially.
    size = network.config.group if network.config.group > 1 else len(images)
    return torch.cat([network(part)[:, 0] for part in images.split(size)])


@functools.lru_cache(maxsize=64)
def _load(url: str, device: str) -> Discriminator:
    if url.endswith(TRAINED_SUFFIX):
        network = _trained(url)
    else:
        imported = snapshot.read_network(storage.read_bytes(url)).network
        if not isinstance(imported, Discriminator):
            raise ArchiveError(f"{url} holds a generator, not a classifier")
        network = imported
    return network.to(device).eval().requires_grad_(requires_grad=False)


def _trained(url: str) -> Discriminator:
    record, weights_url = read_record(url), _weights_url(url)
    try:
        content = storage.read_bytes(weights_url)
    except storage.MissingError as err:
        raise weights.MissingWeightsError(
            f"{weights_url} is missing, but {url} vouches for it; train the classifier again"
        ) from err
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != record["sha256"]:
        raise WeightsDigestError(
            f"{weights_url} has SHA-256 {sha256}, but {url} says {record['sha256']}; delete both "
            f"and train the classifier again"
        )
    try:
        network = family.discriminator(family.discriminator_config(record["network"]))
        load_network(network, safetensors.torch.load(content), "classifier")
    except (SafetensorError, TypeError, ValueError) as err:
        raise ArchiveError(f"{url} and its weights do not fit together: {err}") from err
    return network


def _weights_url(url: str) -> str:
    return url.removesuffix(TRAINED_SUFFIX) + _WEIGHTS_SUFFIX
