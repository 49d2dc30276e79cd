"""What one worker puts into the training step: its share of images and of random numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data_prep.manifest import Manifest
from pipeline.config import TrainConfig
from pipeline.loader import Loader, Request
from pipeline.minibatches import Minibatch, RunDraws, minibatches
from pipeline.order import SampleOrder
from stylegan.reals import prepare_reals
from stylegan.split import Split
from stylegan.state import TrainState
from stylegan.step import Part


class Feed:
    """Images and draws of one worker, from the state's nimg on; `close` ends it."""

    def __init__(
        self, config: TrainConfig, manifest: Manifest, state: TrainState, split: Split
    ) -> None:
        self.config = config
        self.split = split
        self.data_wait_s = 0.0
        """Seconds the step has waited for images."""
        self._samples = manifest.samples
        self._state = state
        self._draws = config.draws(state.attempt)
        order = SampleOrder(manifest.samples, config.seed)
        loader = Loader(config.data.url, manifest, order, config=config.loader)
        self._batches = loader.stream(self._requests(state.nimg))

    def close(self) -> None:
        """Let go of threads and files."""
        self._batches.close()

    def parts(self, minibatch: Minibatch) -> list[Part]:
        """This worker's reals of the next minibatch."""
        phase = minibatch.phase
        labelled = self.config.network.label_size > 0
        parts = []
        for offsets in self.split.parts(phase.batch):
            batch = next(self._batches)
            self.data_wait_s += batch.wait_s
            indices = torch.from_numpy(minibatch.nimg + offsets).to(self._state.device)
            mirror = self._draws.mirror(indices) if self.config.data.mirror else None
            images = batch.images.to(self._state.device, non_blocking=True)
            parts.append(
                Part(
                    reals=prepare_reals(images, mirror, phase.lod),
                    D_labels=self._to_device(batch.labels) if labelled else None,
                    G_labels=self._to_device(batch.extra_labels) if labelled else None,
                )
            )
        return parts

    def draws(self, minibatch: Minibatch) -> RunDraws:
        """This worker's random numbers of a minibatch."""
        return RunDraws(
            self.config,
            self._draws,
            self._state.G,
            minibatch,
            self.split.parts(minibatch.phase.batch),
        )

    def _requests(self, nimg: int) -> Iterator[Request]:
        labelled = self.config.network.label_size > 0
        for minibatch in minibatches(self.config, nimg):
            for offsets in self.split.parts(minibatch.phase.batch):
                indices = minibatch.nimg + offsets
                samples = None
                if labelled:
                    drawn = self._draws.samples(torch.from_numpy(indices), samples=self._samples)
                    samples = drawn.numpy()
                yield Request(
                    level_resolution=minibatch.phase.resolution,
                    positions=indices,
                    label_samples=samples,
                )

    def _to_device(self, labels: Tensor | None) -> Tensor:
        assert labels is not None, "check_data lets no unlabelled data through"
        return labels.to(self._state.device, non_blocking=True)
