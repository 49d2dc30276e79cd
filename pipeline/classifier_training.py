"""Training of one classifier: whether an image has an attribute.

    classifier = Classifier(data, has, split, config)
    while not classifier.done:
        print(classifier.advance())

The network is StyleGAN's discriminator without minibatch stddev, so that an image's answer depends
on it alone. Which image is shown when is a function of seed and place, so a training that was
stopped goes on as if nothing had been.

Legend: n images, c h w.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.manifest import Manifest
from pipeline.attribute_labels import Split
from pipeline.loader import Loader, Request
from pipeline.tasks import Device, choose_device, reproducible
from stylegan import losses
from stylegan.draws import MAX_SEED, Draws
from stylegan.networks.stylegan import Discriminator, DiscriminatorConfig
from stylegan.optimizer import Adam, OptimizerConfig, named
from stylegan.reals import prepare_reals
from stylegan.state import load_network

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Size of the network and length of its training."""

    resolution: int = 256
    """Width of the images it looks at, in pixels; a level of the data set."""
    fmap_base: int = 8192
    """Feature maps at a side of r pixels: 2 * fmap_base / r, at most `fmap_max`."""
    fmap_max: int = 512
    """Most feature maps of any layer."""
    batch: int = 32
    """Images in an update."""
    lr: float = 0.001
    """Of Adam, whose other options are those of the networks of StyleGAN."""
    total_kimg: float = 1000.0
    """Thousands of images after which it ends at the latest."""
    check_kimg: float = 10.0
    """Thousands of images between looks at the held-out ones."""
    patience: int = 5
    """Looks without a lower held-out loss after which it ends."""
    mirror: bool = False
    """Flip a keyed half of the images left to right."""
    seed: int = 0
    """Of weights, order, flips, and of which images are held out."""

    def __post_init__(self) -> None:
        for key in ("batch", "patience"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; choose at least 1")
        for key in ("lr", "total_kimg", "check_kimg"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}; choose a positive number")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; choose from 0 to {MAX_SEED}")

    def network(self, manifest: Manifest) -> DiscriminatorConfig:
        """The network for images of this data set.

        Raises:
            ValueError: It has no level of this resolution, or its images are no squares.
        """
        if manifest.height is not None:
            raise ValueError(
                f"the images of {manifest.name} are {manifest.resolution}x{manifest.height}, but "
                f"classifiers look at squares; rerun data_prep with --crop centre"
            )
        return DiscriminatorConfig(
            resolution=manifest.level(self.resolution).resolution,
            channels=manifest.channels,
            fmap_base=self.fmap_base,
            fmap_max=self.fmap_max,
            mbstd_group=0,
        )


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of the answers to held-out images."""

    loss: float
    """Cross-entropy in nats."""
    accuracy: float
    """Share of right answers."""
    images: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of one data set, with labels or not."""

    url: str
    manifest: Manifest


class Classifier:
    """A classifier in training (see the head of this file)."""

    def __init__(
        self,
        data: Data,
        has: NDArray[np.bool_],
        split: Split,
        config: ClassifierConfig,
        *,
        device: Device = "auto",
        threads: int = 1,
    ) -> None:
        """Begin anew; `load` goes on."""
        self.data, self.split, self.config = data, split, config
        self.device, self.threads = choose_device(device, "--device"), threads
        self.has = torch.from_numpy(has)
        self.network = Discriminator(config.network(data.manifest), seed=config.seed)
        self.network.to(self.device)
        self.optimizer = Adam(named(self.network, self.network.parameters()), OptimizerConfig())
        self.best: Tensors = _copies(self.network.state_dict())
        self.best_loss, self.stale, self.nimg = math.inf, 0, 0
        self._draws = Draws(seed=config.seed)

    @property
    def total_nimg(self) -> int:
        """Images after which the training ends at the latest."""
        return round(self.config.total_kimg * 1000)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.nimg >= self.total_nimg or self.stale >= self.config.patience

    def advance(self) -> Quality:
        """Train up to the next look at the held-out images.

        Raises:
            ValueError: The loss is not finite.
        """
        config = self.config
        end = min(self.nimg + max(round(config.check_kimg * 1000), config.batch), self.total_nimg)
        starts = range(self.nimg, end, config.batch)
        with reproducible(self.threads):
            for nimg, (images, has) in zip(starts, self._minibatches(starts), strict=True):
                self._update(images, has, nimg)
                self.nimg = nimg + config.batch
            found = self._measure(self.split.stop)
        if not math.isfinite(found.loss):
            raise ValueError(
                f"the classifier has diverged at {self.nimg / 1000:g} kimg: its held-out loss is "
                f"{found.loss}; choose a lower --lr than {config.lr:g}"
            )
        self.stale += 1
        if found.loss < self.best_loss:
            self.best, self.best_loss, self.stale = (
                _copies(self.network.state_dict()),
                found.loss,
                0,
            )
        return found

    def finish(self) -> Quality:
        """Take the best weights, and say how good they are on images that decided nothing."""
        load_network(self.network, self.best, "classifier")
        with reproducible(self.threads):
            return self._measure(self.split.test)

    def tensors(self) -> Tensors:
        """The tensors of its state, by name."""
        state = {f"D.{name}": tensor for name, tensor in self.network.state_dict().items()}
        state |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        return state | {f"D_opt.{name}": t for name, t in self.optimizer.tensors().items()}

    def scalars(self) -> dict[str, Any]:
        """The rest of its state."""
        best_loss = None if math.isinf(self.best_loss) else self.best_loss
        return {"nimg": self.nimg, "stale": self.stale, "best_loss": best_loss}

    def load(self, tensors: Tensors, scalars: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `scalars` gave.

        Raises:
            ValueError: They are of another network.
        """
        groups: dict[str, Tensors] = {"D": {}, "best": {}, "D_opt": {}}
        for name, tensor in tensors.items():
            group, _, inner = name.partition(".")
            groups[group][inner] = tensor.to(self.device)
        load_network(self.network, groups["D"], "classifier")
        self.best = groups["best"]
        self.optimizer.load(groups["D_opt"])
        self.nimg, self.stale = int(scalars["nimg"]), int(scalars["stale"])
        self.best_loss = math.inf if scalars["best_loss"] is None else scalars["best_loss"]

    def _update(self, images: Tensor, has: Tensor, nimg: int) -> None:
        mirror = None
        if self.config.mirror:
            indices = torch.arange(nimg, nimg + len(images))
            mirror = self._draws.mirror(indices).to(self.device)
        logits = self.network(prepare_reals(images, mirror, 0.0))
        self.optimizer.zero_grad()
        losses.attribute(logits, has).mean().backward()
        self.optimizer.step(self.config.lr)

    @torch.inference_mode()
    def _measure(self, samples: NDArray[np.int64]) -> Quality:
        """Answers to some images, all alike whatever was shown before."""
        batch = self.config.batch
        requests = (samples[start : start + batch] for start in range(0, len(samples), batch))
        loss, right = 0.0, 0
        for images, has in self._images(requests):
            logits = self.network(prepare_reals(images, None, 0.0))
            loss += float(losses.attribute(logits, has).double().sum())
            right += int(((logits[:, 0] > 0) == has).sum())
        count = len(samples)
        return Quality(loss=loss / count, accuracy=right / count, images=count)

    def _minibatches(self, starts: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Images drawn for each place, with repetitions."""
        train = self.split.train
        for_each = (torch.arange(start, start + self.config.batch) for start in starts)
        drawn = (self._draws.samples(places, samples=len(train)) for places in for_each)
        return self._images(train[places.numpy()] for places in drawn)

    def _images(self, requests: Iterator[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes of images by their sample numbers, and whether each has the attribute."""
        loader = Loader(self.data.url, self.data.manifest, _AsNumbered())
        side = self.network.config.resolution
        asked = (Request(level_resolution=side, positions=samples) for samples in requests)
        with closing(loader.stream(asked)) as stream:
            for batch in stream:
                has = self.has[torch.from_numpy(batch.sample_ids)]
                yield batch.images.to(self.device), has.to(self.device)


class _AsNumbered:
    """Position i is sample i."""

    def samples_at(self, positions: NDArray[np.int64], /) -> NDArray[np.int64]:
        return positions


def _copies(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}
