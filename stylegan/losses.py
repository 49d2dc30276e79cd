"""Losses per image: adversarial terms, gradient penalties, drift.

Legend: n images, c h w. Every function returns [n]; what is minimized is the mean.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

Logits = Float[Tensor, "n 1"]


def g_logistic_ns(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Non-saturating loss of G (Goodfellow et al. 2014, Section 3)."""
    return softplus(-fake_logits).squeeze(1)


def g_logistic(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Saturating loss of G: the minimax value (Goodfellow et al. 2014, Eq. 1)."""
    return -softplus(fake_logits).squeeze(1)


def g_wgan(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Wasserstein loss of G (Arjovsky et al. 2017)."""
    return -fake_logits.squeeze(1)


def g_hinge(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Hinge loss of G, the same as Wasserstein's (Lim & Ye 2017)."""
    return g_wgan(fake_logits)


def d_logistic(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Logistic loss of D (Goodfellow et al. 2014, Eq. 1)."""
    return (softplus(fake_logits) + softplus(-real_logits)).squeeze(1)


def d_wgan(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Wasserstein loss of D; Progressive GAN adds `wgan_gp` and `drift`."""
    return (fake_logits - real_logits).squeeze(1)


def d_hinge(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Hinge loss of D (Lim & Ye 2017)."""
    return (relu(1 + fake_logits) + relu(1 - real_logits)).squeeze(1)


def drift(real_logits: Logits, weight: float) -> Float[Tensor, " n"]:
    """Keeps real logits near zero (Karras et al. 2018, Appendix A.1; weight 0.001)."""
    return weight * real_logits.square().squeeze(1)


def gradient_penalty(
    logits: Logits, images: Float[Tensor, "n c h w"], gamma: float, *, level: int = 0
) -> Float[Tensor, " n"]:
    """R1 on reals or R2 on fakes (Mescheder et al. 2018, Eq. 9).

    Args:
        logits: D's output for `images`.
        images: Native size of the level; must have required grad before D saw them.
        gamma: Weight of the penalty.
        level: floor(lod). The official gradient is taken at full size, where each pixel of the
            level is a block of 4**level pixels: its square is 4**-level of the native one.

    Returns:
        gamma / 2 * ||grad_x D(x)||^2 of each image.
    """
    return _squared_gradient(logits, images) * (gamma / 2 * 4.0**-level)


def wgan_gp(
    logits: Logits,
    mixed: Float[Tensor, "n c h w"],
    *,
    weight: float,
    target: float = 1.0,
    level: int = 0,
) -> Float[Tensor, " n"]:
    """WGAN-GP (Gulrajani et al. 2017, Eq. 3).

    Args:
        logits: D's output for `mixed`.
        mixed: Points between reals and fakes; must have required grad before D saw them.
        weight: Weight lambda of the penalty; 10 in Progressive GAN.
        target: Gradient norm that the penalty pulls towards.
        level: floor(lod); the full-size norm is 2**-level of the native one.
    """
    norm = _squared_gradient(logits, mixed).sqrt() * 2.0**-level
    return (norm - target).square() * (weight / target**2)


def _squared_gradient(logits: Logits, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))
