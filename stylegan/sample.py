"""Pictures out of a generator: seeds to latents, truncation, style mixing, noise, bytes.

    images = sample(Gs, range(16), psi=0.7)              # [16, 3, h, w] uint8
    ws = mix(styles(Gs, [0]), styles(Gs, [1]), layers=style_layers(Gs, "coarse"))

A seed means one image of one network, whatever is drawn beside it: its latent is the one that
StyleGAN's own tools draw for it, from NumPy's legacy generator, whose stream NumPy keeps for good.

Legend: n images, c h w, l layers, z w latent sizes, d label components.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stylegan.arguments import check_floating, check_shape
from stylegan.draws import Draws, Purpose
from stylegan.networks import family
from stylegan.networks.interface import Generator, GeneratorConfig
from stylegan.state import load_network

Halves = Literal["up", "even"]
Noise = Literal["fixed", "random", "none"]

MAX_SEED = 2**32 - 1
_RANGES = {"coarse": (0, 4), "middle": (4, 8), "fine": (8, 2**31)}  # 4-8 px, 16-32 px, 64 px up


def describe(config: GeneratorConfig) -> dict[str, Any]:
    """A generator's configuration as JSON holds it; `build` is the way back.

    Beside it, `truncation` may hold the psi and cutoff that the network's pictures usually have.
    """
    return {"G": asdict(config)}


def build(network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Generator:
    """A generator from what `describe` gave and its state, ready to sample from.

    Raises:
        ValueError: A network of no kind known here, or tensors that do not fit it.
    """
    if "G" not in network:
        raise ValueError(
            "nothing describes the generator of these weights; take a checkpoint or a model that "
            "this project wrote, or import it with `python -m pipeline.import_official`"
        )
    Gs = family.generator(family.generator_config(network["G"]))
    load_network(Gs, dict(tensors), "generator")
    if "truncation" in network:
        Gs.usual_psi, Gs.usual_cutoff = (network["truncation"][key] for key in ("psi", "cutoff"))
    return Gs.eval().requires_grad_(requires_grad=False)


def latents(seeds: Sequence[int], z_size: int) -> Float[Tensor, "n z"]:
    """Latents z of the seeds; each depends on its seed alone.

    Raises:
        ValueError: A seed is out of range, or there is none.
    """
    _check_seeds(seeds)
    rows = [np.random.RandomState(seed).standard_normal(z_size) for seed in seeds]
    return torch.from_numpy(np.array(rows, dtype=np.float32))


@torch.no_grad()
def sample(
    Gs: Generator,
    seeds: Sequence[int],
    *,
    psi: float = 1.0,
    cutoff: int | None = None,
    labels: Float[Tensor, "n d"] | None = None,
    noise: Noise = "fixed",
    lod: float = 0.0,
    batch: int = 8,
) -> UInt8[Tensor, "n c h w"]:
    """Images of seeds, on the CPU.

    Args:
        Gs: The generator.
        seeds: One per image.
        psi: Truncation: 1 = none, 0 = the mean image.
        cutoff: Layers that are truncated, from the coarsest; None = all.
        labels: One per image where the network has labels.
        noise: See `noise_inputs`.
        lod: Level of detail of a network that is still growing; 0 = full size.
        batch: Images at a time.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_seeds(seeds)
    if batch < 1:
        raise ValueError(f"batch is {batch}; choose 1 or more images at a time")
    if labels is not None and len(labels) != len(seeds):
        raise ValueError(
            f"labels are {len(labels)}, but seeds {len(seeds)}; give one label for each seed"
        )
    images = []
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        part_labels = None if labels is None else labels[start : start + batch]
        ws = styles(Gs, part, psi=psi, cutoff=cutoff, labels=part_labels)
        noises = noise_inputs(Gs, part, noise, lod=lod)
        images.append(to_uint8(Gs.synthesis(ws, noise=noises, lod=lod)).cpu())
    return torch.cat(images)


@torch.no_grad()
def styles(
    Gs: Generator,
    seeds: Sequence[int],
    *,
    psi: float = 1.0,
    cutoff: int | None = None,
    labels: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n l w"]:
    """One w per layer of each seed; the arguments are those of `sample`."""
    device = Gs.w_avg.device
    z = latents(seeds, Gs.config.z_size).to(device)
    ws = Gs.broadcast(Gs.mapping(z, None if labels is None else labels.to(device)))
    return truncate(Gs, ws, psi=psi, cutoff=cutoff)


def noise_inputs(
    Gs: Generator, seeds: Sequence[int], noise: Noise, *, variation: int = 0, lod: float = 0.0
) -> list[Float[Tensor, "n 1 _ _"]] | None:
    """The noise of images of these seeds, as synthesis takes it.

    Args:
        Gs: The generator.
        seeds: One per image.
        noise: `fixed`: what is stored with the network, equal in all images (None is returned);
            `random`: drawn for each seed; `none`: zero.
        variation: Which of the drawn noises of a seed.
        lod: Level of detail.

    Raises:
        ValueError: The network has no noise inputs to draw for or to switch off.
    """
    if noise == "fixed":
        return None
    sides, device = Gs.noise_sides(lod), Gs.w_avg.device
    if not sides:
        raise ValueError(
            f"noise is {noise!r}, but this network of kind {Gs.config.kind} has no noise inputs; "
            f"leave it at fixed"
        )
    if noise == "none":
        return [torch.zeros(len(seeds), 1, side, side, device=device) for side in sides]
    index = torch.tensor([variation], device=device)
    each = [
        Draws(seed=seed).noise(Purpose.EVAL_NOISE, indices=index, sides=sides) for seed in seeds
    ]
    return [torch.cat(layer) for layer in zip(*each, strict=True)]


def style_layers(Gs: Generator, name: str) -> range:
    """Layers called coarse (4-8 px), middle (16-32 px), fine (64 px up) or by numbers: 2-5, 7."""
    count = Gs.layers()
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        layers = range(first, last + 1)
        valid = first <= last < count
    elif name in _RANGES:
        first, end = _RANGES[name]
        layers = range(first, min(end, count))
        valid = first < count
    else:
        layers, valid = range(0), False
    if not valid:
        there = [known for known, (first, _) in _RANGES.items() if first < count]
        raise ValueError(
            f"layers are {name!r}, but a network of {Gs.config.resolution} px has layers "
            f"0 to {count - 1}; choose {', '.join(there)} or numbers like 2-5"
        )
    return layers


def mix(
    a: Float[Tensor, "n l w"], b: Float[Tensor, "m l w"], *, layers: range
) -> Float[Tensor, "k l w"]:
    """Style mixing (Karras et al. 2019, Section 3.1): styles of `b` in `layers`, of `a` elsewhere.

    Args:
        a: One w per layer of each source A.
        b: Of each source B: as many, or one for all; or one A for all B.
        layers: See `style_layers`.

    Raises:
        ValueError: There is nothing to mix, the numbers of sources differ, or there is no such
            layer.
    """
    for name, ws in (("a", a), ("b", b)):
        remedy = "pass one w for each layer of each source"
        check_shape(name, ws, ("n", "l", "w"), by="mix", remedy=remedy)
    if a.shape[1] == 1:
        raise ValueError("this network has no styles to mix: all of its layers take the same w")
    if a.shape[1:] != b.shape[1:] or (len(a) != len(b) and 1 not in (len(a), len(b))):
        raise ValueError(
            f"sources have shapes {tuple(a.shape)} and {tuple(b.shape)}; mix as many ws as there "
            f"are, or one with each"
        )
    if not set(layers) <= set(range(a.shape[1])):
        raise ValueError(
            f"layers are {layers.start} to {layers.stop - 1}, but the sources have layers 0 to "
            f"{a.shape[1] - 1}; choose among these"
        )
    chosen = torch.tensor([layer in layers for layer in range(a.shape[1])], device=a.device)
    return torch.where(chosen[:, None], b, a)


def one_hot(classes: Int64[Tensor, " n"], label_size: int) -> Float[Tensor, "n d"]:
    """Labels of classes.

    Raises:
        ValueError: There is no such class.
    """
    check_shape("classes", classes, ("n",), by="one_hot", remedy="pass one class for each image")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < label_size:
        raise ValueError(
            f"label is {int(classes[(classes < 0) | (classes >= label_size)][0])}, but the network "
            f"has {label_size} classes; choose from 0 to {label_size - 1}"
            if label_size
            else "the network has no labels; leave the label out"
        )
    return torch.nn.functional.one_hot(classes, label_size).float()


def to_uint8(
    images: Float[Tensor, "*n c h w"], *, halves: Halves = "up"
) -> UInt8[Tensor, "*n c h w"]:
    """[-1, 1] to bytes: x * 127.5 + 127.5, clipped and rounded.

    Halves are rounded up, as the official code does for images and metrics, or to even numbers, as
    it does for the grids of a training.
    """
    check_floating("images", images, by="to_uint8", remedy="pass images in [-1, 1]")
    if halves == "even":
        return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def truncate(
    Gs: Generator, ws: Float[Tensor, "n l w"], *, psi: float, cutoff: int | None
) -> Float[Tensor, "n l w"]:
    """Draw `cutoff` layers, or all, towards the mean w (Karras et al. 2019, Appendix B).

    Raises:
        ValueError: psi or cutoff is out of range, or the network has no w.
    """
    if not math.isfinite(psi):
        raise ValueError(f"psi is {psi}; choose a finite number, such as 0.7, or 1 for none")
    if psi != 1 and not Gs.has_w:
        raise ValueError(
            f"psi is {psi}, but a network of kind {Gs.config.kind} has no w to draw towards its "
            f"mean; choose 1, or leave it out"
        )
    if cutoff is not None and not 0 <= cutoff <= Gs.layers():
        raise ValueError(
            f"cutoff is {cutoff}, but the network has {Gs.layers()} layers to truncate; choose "
            f"from 0 to {Gs.layers()}, or leave it out for all"
        )
    return Gs.truncate(ws, psi=psi, cutoff=ws.shape[1] if cutoff is None else cutoff)


def _check_seeds(seeds: Sequence[int]) -> None:
    if not len(seeds):
        raise ValueError("there is no seed; give one or more, and in each group")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed is {seed}; choose from 0 to {MAX_SEED}")
