"""Classifiers of attributes, for linear separability: official pickles, read as data.

    found = find("")  # celebahq-classifier-*.pkl below a folder of weights
    logits = answers(images, found.urls[0], "cpu")

Each file is one discriminator of Progressive GAN or StyleGAN whose logit says whether an image has
the attribute; its name ends in that of the attribute.
"""

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep import storage
from pipeline import weights
from pipeline.known_weights import CLASSIFIER_SUFFIX
from stylegan.metrics.weights_reader import ArchiveError
from stylegan.networks.interface import Discriminator
from stylegan.official import snapshot
from stylegan.resample import box_down


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
        names = (url.rpartition("/")[2].removesuffix(CLASSIFIER_SUFFIX) for url in self.urls)
        return tuple(name.removeprefix("celebahq-classifier-") for name in names)


@functools.lru_cache(maxsize=4)
def find(folder: str) -> Classifiers:
    """The classifiers in `celebahq-classifiers` below this folder, or where weights are.

    Raises:
        MissingWeightsError: There are none.
    """
    urls = weights.find_classifiers([*filter(None, [folder]), *weights.search_folders()])
    digests = "\n".join(storage.sha256(url) for url in urls)
    sha256 = hashlib.sha256(digests.encode()).hexdigest()
    return Classifiers(url=urls[0].rpartition("/")[0], urls=urls, sha256=sha256)


@torch.inference_mode()
def answers(images: Tensor, url: str, device: str) -> Tensor:
    """Logit of each image in [-1, 1]; images larger than the classifier's are averaged down.

    Raises:
        ValueError: Images of another size or colour.
    """
    network = _load(url, device)
    side, channels = network.config.resolution, network.config.channels
    if images.shape[2] > side and images.shape[2] % side == 0:
        images = box_down(images, images.shape[2] // side)
    if images.shape[2] != side or images.shape[1] != channels:
        raise ValueError(
            f"the classifier {url} looks at {channels} x {side} x {side} px, but the generator "
            f"gives {images.shape[1]} x {images.shape[2]} x {images.shape[3]}; leave ls out"
        )
    # One minibatch-stddev group at a time, as officially.
    size = network.config.group if network.config.group > 1 else len(images)
    return torch.cat([network(part)[:, 0] for part in images.split(size)])


@functools.lru_cache(maxsize=64)
def _load(url: str, device: str) -> Discriminator:
    network = snapshot.read_network(storage.read_bytes(url)).network
    if not isinstance(network, Discriminator):
        raise ArchiveError(f"{url} holds a generator, not a classifier")
    return network.to(device).eval().requires_grad_(requires_grad=False)
