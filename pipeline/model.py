"""A generator ready for use: seeds, latents, styles and images, as tensors or PIL images.

    model = pipeline.registry.load("models:/faces@champion")
    images = model.sample(range(8), psi=0.7)                  # uint8 [8, c, h, w]
    a, b = model.styles([3]), model.styles([7])               # one w per layer: [1, l, w]
    mixed = model.synthesis(model.mix(a, b, layers="coarse"))  # float in [-1, 1]
    model.to_pil(mixed)[0].save("mixed.png")

Every kind of generator is one; what a network cannot do is said in a sentence.

Legend: n images, c h w, l layers, z w latent sizes, d label components.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep import storage
from pipeline import bundle as bundles
from pipeline import grids, weights
from pipeline.bundle import Bundle
from pipeline.checkpoint import Checkpoints
from pipeline.marker import MARKER
from stylegan import projection, sample
from stylegan.metrics.lpips import LPIPS
from stylegan.objective import Precision, autocast
from stylegan.projection import Projection, ProjectionConfig, Watch
from stylegan.sample import Noise

Labels = int | Tensor | None
"""A class for all images; or int64 [n], a class for each; or float [n d], a label for each."""

_TOGETHER = 8
"""Images per call of the network, whose feature maps take memory."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PICKLES = (".pkl", ".pkl.gz")


class Model:
    """A generator on a device, in a precision."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        name: str = "model",
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """Build the network; see `pipeline.registry.load` for the arguments."""
        if precision not in get_args(Precision):
            raise ValueError(
                f"precision is {precision!r}; choose from {', '.join(get_args(Precision))}"
            )
        self.device = check_device(device)
        self.Gs = bundle.generator().to(self.device)
        self.lod = bundle.lod
        self.lineage = bundle.lineage
        self.name = name
        self.precision: Precision = precision

    @property
    def resolution(self) -> int:
        """Side of its images in pixels."""
        return self.Gs.config.resolution >> int(self.lod)

    @property
    def layers(self) -> int:
        """Rows of `ws`; 1 where all layers take the same w."""
        return self.Gs.layers()

    def __str__(self) -> str:
        kind, side = self.Gs.config.kind, self.resolution
        kimg = f", {int(self.lineage['nimg']) / 1000:g} kimg" if "nimg" in self.lineage else ""
        return f"{self.name}: {kind}, {side}x{side} px{kimg}"

    def z(self, seeds: Sequence[int]) -> Tensor:
        """Latents of seeds, [n z]; those that the official tools draw for them."""
        return sample.latents(seeds, self.Gs.config.z_size).to(self.device)

    def mapping(
        self, z: Tensor, labels: Labels = None, *, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Latents [n z] to one w per layer, [n l w]; a network without w passes on z.

        Args:
            z: Latents.
            labels: Where the network has labels.
            psi: Truncation: 1 = none, 0 = the mean image.
            cutoff: Layers that are truncated, from the coarsest; None = as the model's pictures
                usually are, which is all unless an imported file says otherwise.
        """
        with autocast(self.device, self.precision):
            w = self.Gs.mapping(z.to(self.device), self._labels(labels, len(z)))
        cutoff = self.Gs.usual_cutoff if cutoff is None else cutoff
        return sample.truncate(self.Gs, self.Gs.broadcast(w.float()), psi=psi, cutoff=cutoff)

    def styles(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        psi: float | None = None,
        cutoff: int | None = None,
    ) -> Tensor:
        """One w per layer of each seed, [n l w]; psi None = as the model's pictures usually are."""
        psi = self.Gs.usual_psi if psi is None else psi
        return self.mapping(self.z(seeds), labels, psi=psi, cutoff=cutoff)

    def synthesis(
        self,
        ws: Tensor,
        *,
        noise: Noise | Sequence[Tensor] = "fixed",
        noise_seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Styles [n l w] to images in about [-1, 1], [n c h w]; gradients reach `ws`.

        Args:
            ws: One w per layer.
            noise: `fixed`: stored with the network; `random`; `none`; or maps [n 1 h w], or
                [1 1 h w] for all images, of each noise input.
            noise_seeds: What random noise is drawn from, one per image; None = 0, 1, 2 …
        """
        seeds = range(len(ws)) if noise_seeds is None else noise_seeds
        if isinstance(noise, str) and noise not in get_args(Noise):
            raise ValueError(f"noise is {noise!r}; choose from {', '.join(get_args(Noise))}")
        if len(seeds) != len(ws):
            raise ValueError(f"there are {len(seeds)} noise_seeds for {len(ws)} ws; give one each")
        images = []
        for start in range(0, len(ws), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            if isinstance(noise, str):
                maps = sample.noise_inputs(self.Gs, seeds[part], noise, lod=self.lod)
            else:
                maps = [(m if len(m) == 1 else m[part]).to(self.device) for m in noise]
            with autocast(self.device, self.precision):
                image = self.Gs.synthesis(ws[part].to(self.device), noise=maps, lod=self.lod)
            images.append(image.float())
        if not images:
            raise ValueError("there are no ws to make images of; pass one or more")
        return torch.cat(images)

    def sample(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        psi: float | None = None,
        cutoff: int | None = None,
        noise: Noise = "fixed",
    ) -> Tensor:
        """Images of seeds as bytes on the CPU, uint8 [n c h w]; arguments as in `styles`."""
        parts = []
        for start in range(0, len(seeds), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            own = labels[part] if isinstance(labels, Tensor) else labels
            ws = self.styles(seeds[part], own, psi=psi, cutoff=cutoff)
            images = self.synthesis(ws, noise=noise, noise_seeds=seeds[part])
            parts.append(sample.to_uint8(images).cpu())
        if not parts:
            raise ValueError("there is no seed; give one or more")
        return torch.cat(parts)

    def mix(self, a: Tensor, b: Tensor, *, layers: str | range) -> Tensor:
        """Styles [n l w] of `a` with those of `b` in `layers`: coarse, middle, fine or 2-5."""
        if isinstance(layers, str) and self.layers > 1:
            layers = sample.style_layers(self.Gs, layers)
        return sample.mix(a, b, layers=range(0) if isinstance(layers, str) else layers)

    def project(
        self,
        images: Tensor,
        *,
        config: ProjectionConfig | None = None,
        label: int | None = None,
        weights_url: str | None = None,
        watch: Watch | None = None,
    ) -> Projection:
        """Styles and noise of images, uint8 [n c h w] of the model's size (`to_bytes` makes them).

        Needs the weights of LPIPS, which `make weights` fetches.

        Args:
            images: Targets.
            config: Space, steps and the rest; None = w, 1000 steps, as in the paper.
            label: Class of all, where the network has labels.
            weights_url: File with the weights of LPIPS, if they are elsewhere.
            watch: Sees the number and the images of every step.
        """
        lpips = LPIPS(weights.load("lpips-vgg16", url=weights_url), net="vgg16").to(self.device)
        return projection.project(
            self.Gs,
            images,
            lpips=lpips,
            config=config,
            label=self._labels(label, 1),
            lod=self.lod,
            watch=watch,
        )

    def to_bytes(self, image: Image.Image) -> Tensor:
        """A picture as a target of `project`, uint8 [1 c h w]: its middle square, resized."""
        side, short = self.resolution, min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        square = image.convert(_MODES[self.Gs.config.channels]).crop(
            (left, top, left + short, top + short)
        )
        square = square.resize((side, side), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square).reshape(side, side, -1))
        return pixels.permute(2, 0, 1)[None].contiguous()

    def to_pil(self, images: Tensor) -> list[Image.Image]:
        """Images as bytes or in [-1, 1], [n c h w], for everything that draws and saves."""
        if images.dtype != torch.uint8:
            images = sample.to_uint8(images.detach())
        return [grids.to_image(image) for image in images]

    def _labels(self, labels: Labels, count: int) -> Tensor | None:
        size = self.Gs.config.label_size
        if labels is None and size:
            raise ValueError(f"this network has {size} classes; choose one as its label")
        if labels is None:
            return None
        if isinstance(labels, int):
            labels = torch.full((count,), labels)
        if labels.ndim == 1:
            labels = sample.one_hot(labels.long(), size)
        return labels.to(self.device)


def read(url: str) -> Bundle:
    """The verified generator of a pulled folder, a checkpoint, a run or an official pickle.

    Raises:
        DigestError: Its bytes are not those that were registered or committed.
        StorageError: It cannot be read.
        ValueError: There is none.
    """
    if url.endswith(_PICKLES):
        return bundles.from_official(*bundles.read_official(url))
    if storage.exists(storage.join(url, bundles.DIGESTS)):
        return bundles.load(url)
    if storage.exists(storage.join(url, MARKER)):
        return bundles.from_checkpoint(url)
    latest = Checkpoints(url).latest()
    if latest is None:
        raise ValueError(
            f"{url} is no model: neither a pulled folder ({bundles.DIGESTS}), nor a committed "
            f"checkpoint ({MARKER}), nor a run with one, nor an official pickle (.pkl); registered "
            f"models begin with models:/"
        )
    return bundles.from_checkpoint(latest.url)


def check_device(device: str) -> torch.device:
    """The device of this name; `auto` is a GPU where there is one.

    Raises:
        ValueError: It is not here.
    """
    gpus = torch.cuda.device_count()
    names = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if device not in names:
        raise ValueError(
            f"device is {device!r}, but torch sees {gpus or 'no'} GPU{'s' * (gpus > 1)} here; "
            f"choose from {', '.join(names)}"
        )
    return torch.device(("cuda" if gpus else "cpu") if device == "auto" else device)
