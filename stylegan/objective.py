"""The whole loss of one network as one module: one forward for one backward.

`DistributedDataParallel` gives right gradients only around such a module (a penalty that is
differentiated inside, reals and fakes in one forward). Each returns the sum over its images; the
caller scales it to the mean over the global batch. `names` says what the statistics beside it are.

Legend: n images, c h w, s statistics.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan import losses
from stylegan.draws import DiscriminatorDraws, GeneratorDraws
from stylegan.networks.interface import Discriminator, Generator
from stylegan.speed import twice_differentiable

Adversarial = Literal["logistic_ns", "logistic", "wgan", "hinge"]
Precision = Literal["float32", "bfloat16", "float16"]

_GRADIENT_SCALE: dict[str, float] = {"float32": 1.0, "bfloat16": 1.0, "float16": 256.0}
"""Of gradients inside the loss; those of the loss itself have a scale that adapts (optimizer)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What G and D minimise."""

    adversarial: Adversarial = "logistic_ns"
    """`logistic_ns` (non-saturating), `logistic` (saturating), `wgan` or `hinge`."""
    r1_gamma: float = 10.0
    """Weight of the gradient penalty on reals (R1); 0 switches it off."""
    r1_interval: int = 1
    """Minibatches from one R1 update to the next (lazy regularization); 1 = in D's own loss."""
    r2_gamma: float = 0.0
    """Weight of the gradient penalty on fakes (R2); 0 switches it off."""
    wgan_gp_weight: float = 0.0
    """Weight lambda of the WGAN-GP penalty; 10 in Progressive GAN, 0 switches it off."""
    wgan_gp_target: float = 1.0
    """Gradient norm that WGAN-GP pulls towards."""
    drift_weight: float = 0.0
    """Weight of the squared real logit; 0.001 in Progressive GAN."""
    class_weight: float = 1.0
    """Weight of the class terms of a D that tells classes apart (PGGAN with labels)."""
    path_weight: float = 0.0
    """Weight of path length regularization; 2 in StyleGAN2, 0 switches it off."""
    path_interval: int = 4
    """Minibatches from one path length update to the next; always an update of its own."""
    path_decay: float = 0.01
    """How far the moving mean of path lengths goes towards those of an update."""
    path_shrink: int = 2
    """Path lengths are taken of the first 1 / path_shrink of the minibatch."""

    def __post_init__(self) -> None:
        weights = ("r1_gamma", "r2_gamma", "wgan_gp_weight", "drift_weight", "class_weight")
        for name in (*weights, "path_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"loss.{name} is {getattr(self, name)}; choose a number from 0 up")
        for name in ("r1_interval", "path_interval", "path_shrink"):
            if getattr(self, name) < 1:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; choose 1 or more")
        if not 0 < self.wgan_gp_target < float("inf"):
            raise ValueError(f"loss.wgan_gp_target is {self.wgan_gp_target}; choose 1, or above 0")
        if not 0 < self.path_decay <= 1:
            raise ValueError(f"loss.path_decay is {self.path_decay}; it must lie in (0, 1]")

    @property
    def D_interval(self) -> int:
        """Minibatches between D's regularization updates; 0 without any."""
        return self.r1_interval if self.r1_gamma > 0 and self.r1_interval > 1 else 0

    @property
    def G_interval(self) -> int:
        """Minibatches between G's regularization updates; 0 without any."""
        return self.path_interval if self.path_weight > 0 else 0

    @property
    def G_adam_interval(self) -> int:
        """What G's Adam is corrected for: officially also where D alone is regularized lazily."""
        return self.path_interval if self.D_interval or self.G_interval else 0


LogitLoss = Callable[[Tensor], Tensor]
_G_LOSSES: dict[str, LogitLoss] = {
    "logistic_ns": losses.g_logistic_ns,
    "logistic": losses.g_logistic,
    "wgan": losses.g_wgan,
    "hinge": losses.g_hinge,
}
_D_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logistic_ns": losses.d_logistic,
    "logistic": losses.d_logistic,
    "wgan": losses.d_wgan,
    "hinge": losses.d_hinge,
}


class _OfDiscriminator(nn.Module):
    """What is minimized by the parameters of D."""

    def __init__(
        self, D: Discriminator, config: LossConfig, *, precision: Precision = "float32"
    ) -> None:
        super().__init__()
        self.D = D
        self.config = config
        self.precision: Precision = precision

    def _judge(
        self, images: Tensor, labels: Tensor | None, lod: float, dropout: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # A gradient with respect to images is for a penalty, which is differentiated again.
        with twice_differentiable() if images.requires_grad else nullcontext():
            return judge(self.D, images, labels, lod, dropout=dropout, precision=self.precision)


class DiscriminatorLoss(_OfDiscriminator):
    """D's adversarial loss and its penalties on one part of the global batch."""

    def __init__(
        self, D: Discriminator, config: LossConfig, *, precision: Precision = "float32"
    ) -> None:
        super().__init__(D, config, precision=precision)
        self.r1 = config.r1_gamma > 0 and config.r1_interval == 1
        present = {
            "loss/r1": self.r1,
            "loss/r2": config.r2_gamma > 0,
            "loss/gp": config.wgan_gp_weight > 0,
            "loss/class_D": bool(D.config.class_logits),
        }
        self.names = (
            "loss/D",
            "signs/real",
            "signs/fake",
            *(n for n, is_ in present.items() if is_),
        )

    def forward(
        self,
        reals: Float[Tensor, "n c h w"],
        fakes: Float[Tensor, "n c h w"],
        labels: Tensor | None,
        draws: DiscriminatorDraws,
        lod: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " s"]]:
        """Evaluate D on reals and fakes, and penalize its gradients.

        Returns:
            Sums over the images of the loss, and of each of `names`: loss/D is the adversarial loss
            with drift.
        """
        level, config = int(lod), self.config
        reals = reals.detach().requires_grad_(self.r1)
        fakes = fakes.detach().requires_grad_(config.r2_gamma > 0)
        fake_logits, fake_classes = self._judge(fakes, labels, lod, draws.fake_dropout)
        real_logits, real_classes = self._judge(reals, labels, lod, draws.real_dropout)
        loss = _D_LOSSES[config.adversarial](real_logits, fake_logits)
        if config.drift_weight > 0:
            loss = loss + losses.drift(real_logits, config.drift_weight)
        statistics = [loss, real_logits.sign().squeeze(1), fake_logits.sign().squeeze(1)]

        # Penalties on the gradient with respect to the images.
        scale = _GRADIENT_SCALE[self.precision]
        penalty = functools.partial(losses.gradient_penalty, level=level, scale=scale)
        terms = []
        if self.r1:
            terms.append(penalty(real_logits, reals, config.r1_gamma))
        if config.r2_gamma > 0:
            terms.append(penalty(fake_logits, fakes, config.r2_gamma))
        if config.wgan_gp_weight > 0:
            assert draws.gp_mix is not None, "WGAN-GP needs its mixing factors"
            mixed = torch.lerp(reals.detach(), fakes.detach(), draws.gp_mix.to(reals))
            mixed.requires_grad_()
            logits, _ = self._judge(mixed, labels, lod, draws.real_dropout)
            terms.append(
                losses.wgan_gp(
                    logits,
                    mixed,
                    weight=config.wgan_gp_weight,
                    target=config.wgan_gp_target,
                    level=level,
                    scale=scale,
                )
            )

        # Which class each image is of.
        if self.D.config.class_logits:
            assert labels is not None, "a D that tells classes apart needs labels"
            terms.append(
                config.class_weight
                * (losses.classes(real_classes, labels) + losses.classes(fake_classes, labels))
            )
        total = torch.stack([loss, *terms]).sum()
        return total, torch.stack([*statistics, *terms]).detach().sum(dim=1)


class LazyR1(_OfDiscriminator):
    """R1 alone, for an update of its own now and then (Karras et al. 2020, Section 3.1)."""

    names = ("loss/r1",)

    def forward(
        self,
        reals: Float[Tensor, "n c h w"],
        labels: Tensor | None,
        draws: DiscriminatorDraws,
        lod: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " s"]]:
        """Sum of the penalty over the images, times the interval; and without it."""
        reals = reals.detach().requires_grad_()
        logits, _ = self._judge(reals, labels, lod, draws.real_dropout)
        penalty = losses.gradient_penalty(
            logits,
            reals,
            self.config.r1_gamma,
            level=int(lod),
            scale=_GRADIENT_SCALE[self.precision],
        )
        # A bias that only shifts the logits has a gradient of zero, not none: DDP waits for all.
        total = penalty.sum() * self.config.r1_interval + 0 * logits.sum()
        return total, penalty.detach().sum()[None]


class GeneratorLoss(nn.Module):
    """G's adversarial loss on one part of the global batch; D is held as it is."""

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        config: LossConfig,
        *,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.G = G
        self.config = config
        self.precision: Precision = precision
        self.names = ("loss/G", *(["loss/class_G"] if D.config.class_logits else []))
        self._D = (D,)  # in a tuple: D is no part of what DDP reduces here

    def forward(
        self,
        draws: GeneratorDraws,
        labels: Tensor | None,
        judging: DiscriminatorDraws,
        lod: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " s"], Float[Tensor, " w_size"]]:
        """Sum of the loss over the images, the sums of `names`, and the sum of w."""
        fakes, w_sum = generate(self.G, draws, labels, lod, precision=self.precision)
        (D,) = self._D
        logits, classes = judge(
            D, fakes, labels, lod, dropout=judging.fake_dropout, precision=self.precision
        )
        terms = [_G_LOSSES[self.config.adversarial](logits)]
        if D.config.class_logits:
            assert labels is not None, "a D that tells classes apart needs labels"
            terms.append(self.config.class_weight * losses.classes(classes, labels))
        sums = torch.stack(terms).sum(dim=1)
        return sums.sum(), sums.detach(), w_sum


class PathLengths(nn.Module):
    """How far images move with w (Karras et al. 2020, Section 3.2)."""

    def __init__(self, G: Generator, *, precision: Precision = "float32") -> None:
        super().__init__()
        self.G = G
        self.precision: Precision = precision

    def forward(
        self,
        draws: GeneratorDraws,
        labels: Tensor | None,
        noise: Float[Tensor, "n c h w"],
        lod: float,
    ) -> Float[Tensor, " n"]:
        """Path length of each image.

        Args:
            draws: As for training images.
            labels: Of the images.
            noise: Standard normal, in the shape of the images at `lod`.
            lod: Level of detail.
        """
        ws, _ = styles(self.G, draws, labels, precision=self.precision)
        if not ws.requires_grad:  # no mapping network
            ws = ws.detach().requires_grad_()
        with twice_differentiable():
            images = _synthesize(self.G, ws, draws, lod, precision=self.precision)
        scale = _GRADIENT_SCALE[self.precision]
        lengths = losses.path_lengths(images, ws, noise.to(images), scale=scale)
        return lengths + 0 * images.sum()  # zero gradients for those that do not matter


def generate(
    G: Generator,
    draws: GeneratorDraws,
    labels: Tensor | None,
    lod: float,
    *,
    precision: Precision = "float32",
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " w_size"]]:
    """Training images of one part, with style mixing (Karras et al. 2019, Section 3.1).

    Returns:
        Images at the native size of `lod`, and the sum of the first latents' w, for `w_avg`.
    """
    ws, w = styles(G, draws, labels, precision=precision)
    images = _synthesize(G, ws, draws, lod, precision=precision)
    return images, w.detach().sum(dim=0)


def styles(
    G: Generator, draws: GeneratorDraws, labels: Tensor | None, *, precision: Precision
) -> tuple[Float[Tensor, "n l w_size"], Float[Tensor, "n w_size"]]:
    """One w per layer, mixed; and w of the first latents."""
    dtype = G.w_avg.dtype  # draws are float32 always
    with autocast(G.w_avg.device, precision):
        w = G.mapping(draws.z.to(dtype), labels).to(dtype)
        ws = G.broadcast(w)
        if draws.z_mix is not None:
            mixed = G.broadcast(G.mapping(draws.z_mix.to(dtype), labels).to(dtype))
            layers = torch.arange(ws.shape[1], device=ws.device)
            ws = torch.where((layers < draws.cutoff[:, None])[:, :, None], ws, mixed)
    return ws, w


def judge(
    D: Discriminator,
    images: Float[Tensor, "n c h w"],
    labels: Tensor | None,
    lod: float,
    *,
    dropout: Tensor | None = None,
    precision: Precision = "float32",
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n k"]]:
    """Logits of images, and those of their classes (none with most networks)."""
    with autocast(images.device, precision):
        outputs = D(images, labels, lod, dropout=dropout).to(images.dtype)
    return outputs[:, :1], outputs[:, 1:]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Convolutions and dense layers in this precision; float32 changes nothing."""
    if precision == "float32":
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=getattr(torch, precision), cache_enabled=False
    )
    return context


def _synthesize(
    G: Generator, ws: Tensor, draws: GeneratorDraws, lod: float, *, precision: Precision
) -> Float[Tensor, "n c h w"]:
    with autocast(ws.device, precision):
        images: Tensor = G.synthesis(ws, noise=draws.noise, lod=lod)
    return images.to(ws.dtype)
