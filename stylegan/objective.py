"""The whole loss of one network as one module: one forward for one backward.

`DistributedDataParallel` gives right gradients only around such a module (a penalty that is
differentiated inside, reals and fakes in one forward). Each returns the sum over its images; the
caller scales it to the mean over the global batch.

Legend: n images, c h w.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan import losses
from stylegan.draws import GeneratorDraws
from stylegan.networks.interface import Discriminator, Generator

Adversarial = Literal["logistic_ns", "logistic", "wgan", "hinge"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What G and D minimise."""

    adversarial: Adversarial = "logistic_ns"
    """`logistic_ns` (non-saturating), `logistic` (saturating), `wgan` or `hinge`."""
    r1_gamma: float = 10.0
    """Weight of the gradient penalty on reals (R1); 0 switches it off."""
    r2_gamma: float = 0.0
    """Weight of the gradient penalty on fakes (R2); 0 switches it off."""
    wgan_gp_weight: float = 0.0
    """Weight lambda of the WGAN-GP penalty; 10 in Progressive GAN, 0 switches it off."""
    wgan_gp_target: float = 1.0
    """Gradient norm that WGAN-GP pulls towards."""
    drift_weight: float = 0.0
    """Weight of the squared real logit; 0.001 in Progressive GAN."""

    def __post_init__(self) -> None:
        for name in ("r1_gamma", "r2_gamma", "wgan_gp_weight", "drift_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must be 0 or above")


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


class DiscriminatorLoss(nn.Module):
    """D's adversarial loss and its penalties on one part of the global batch."""

    def __init__(self, D: Discriminator, config: LossConfig) -> None:
        super().__init__()
        self.D = D
        self.config = config

    def forward(
        self,
        reals: Float[Tensor, "n c h w"],
        fakes: Float[Tensor, "n c h w"],
        labels: Tensor | None,
        mix_factors: Tensor | None,
        lod: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " s"]]:
        """Evaluate D on reals and fakes, and penalize its gradients.

        Returns:
            Sum of the loss over the images. For statistics the sums of the adversarial loss with
            drift, of the penalties, and of the signs of real and of fake logits.
        """
        level, config = int(lod), self.config
        reals = reals.detach().requires_grad_(config.r1_gamma > 0)
        fakes = fakes.detach().requires_grad_(config.r2_gamma > 0)
        fake_logits = self.D(fakes, labels, lod)
        real_logits = self.D(reals, labels, lod)
        loss = _D_LOSSES[config.adversarial](real_logits, fake_logits)
        penalty = torch.zeros_like(loss)

        # Penalties on the gradient with respect to the images.
        if config.r1_gamma > 0:
            penalty = penalty + losses.gradient_penalty(
                real_logits, reals, config.r1_gamma, level=level
            )
        if config.r2_gamma > 0:
            penalty = penalty + losses.gradient_penalty(
                fake_logits, fakes, config.r2_gamma, level=level
            )
        if config.wgan_gp_weight > 0:
            assert mix_factors is not None, "WGAN-GP needs its mixing factors"
            mixed = torch.lerp(
                reals.detach(), fakes.detach(), mix_factors.to(reals)
            ).requires_grad_()
            penalty = penalty + losses.wgan_gp(
                self.D(mixed, labels, lod),
                mixed,
                weight=config.wgan_gp_weight,
                target=config.wgan_gp_target,
                level=level,
            )
        if config.drift_weight > 0:
            loss = loss + losses.drift(real_logits, config.drift_weight)

        total = (loss + penalty).sum()
        signs = (real_logits.sign().sum(), fake_logits.sign().sum())
        return total, torch.stack([loss.sum(), penalty.sum(), *signs]).detach()


class GeneratorLoss(nn.Module):
    """G's adversarial loss on one part of the global batch; D is held as it is."""

    def __init__(self, G: Generator, D: Discriminator, config: LossConfig) -> None:
        super().__init__()
        self.G = G
        self.config = config
        self._D = (D,)  # in a tuple: D is no part of what DDP reduces here

    def forward(
        self, draws: GeneratorDraws, labels: Tensor | None, lod: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " s"], Float[Tensor, " w_size"]]:
        """Sum of the loss over the images, the same for statistics, and the sum of w."""
        fakes, w_sum = generate(self.G, draws, labels, lod)
        fake_logits = self._D[0](fakes, labels, lod)
        loss = _G_LOSSES[self.config.adversarial](fake_logits)
        total = loss.sum()
        return total, torch.stack([total]).detach(), w_sum


def generate(
    G: Generator, draws: GeneratorDraws, labels: Tensor | None, lod: float
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " w_size"]]:
    """Training images of one part, with style mixing (Karras et al. 2019, Section 3.1).

    Returns:
        Images at the native size of `lod`, and the sum of the first latents' w, for `w_avg`.
    """
    dtype = G.w_avg.dtype  # draws are float32 always
    w = G.mapping(draws.z.to(dtype), labels)
    ws = G.broadcast(w)
    if draws.z_mix is not None:
        mixed = G.broadcast(G.mapping(draws.z_mix.to(dtype), labels))
        layers = torch.arange(ws.shape[1], device=ws.device)
        ws = torch.where((layers < draws.cutoff[:, None])[:, :, None], ws, mixed)
    images = G.synthesis(ws, noise=draws.noise, lod=lod)
    return images, w.detach().sum(dim=0)
