"""Losses per image: adversarial terms, classes, gradient penalties, drift, path lengths.

Legend: n images, c h w, l layers, k classes. Every function returns [n]; what is minimized is the
mean.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy, relu, softplus

Logits = Float[Tensor, "n 1"]


def _pair(real_logits: Tensor, fake_logits: Tensor) -> None:
    if real_logits.shape != fake_logits.shape:
        raise ValueError(
            f"real_logits have shape {tuple(real_logits.shape)} and fake_logits "
            f"{tuple(fake_logits.shape)}; pass D's logits of as many reals as fakes, [n, 1]"
        )


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
    _pair(real_logits, fake_logits)
    return (softplus(fake_logits) + softplus(-real_logits)).squeeze(1)


def d_wgan(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Wasserstein loss of D; Progressive GAN adds `wgan_gp` and `drift`."""
    _pair(real_logits, fake_logits)
    return (fake_logits - real_logits).squeeze(1)


def d_hinge(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Hinge loss of D (Lim & Ye 2017)."""
    _pair(real_logits, fake_logits)
    return (relu(1 + fake_logits) + relu(1 - real_logits)).squeeze(1)


def drift(real_logits: Logits, weight: float) -> Float[Tensor, " n"]:
    """Keeps real logits near zero (Karras et al. 2018, Appendix A.1; weight 0.001)."""
    return weight * real_logits.square().squeeze(1)


def classes(
    class_logits: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Cross-entropy of D's opinion of the class and the label (Odena et al. 2017, Eq. 3)."""
    return cross_entropy(class_logits, labels.to(class_logits), reduction="none")


def attribute(logits: Logits, has: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of softmax([logit, -logit]) and whether the image has the attribute.

    That is how linear separability reads a classifier's logit (Karras et al. 2019, Section 4.2).
    """
    signs = torch.where(has, 1.0, -1.0).to(logits)
    return softplus(-2 * signs * logits.squeeze(1))


def gradient_penalty(
    logits: Logits,
    images: Float[Tensor, "n c h w"],
    gamma: float,
    *,
    level: int = 0,
    scale: float = 1.0,
) -> Float[Tensor, " n"]:
    """R1 on reals or R2 on fakes (Mescheder et al. 2018, Eq. 9).

    Args:
        logits: D's output for `images`.
        images: Native size of the level; must have required grad before D saw them.
        gamma: Weight of the penalty.
        level: floor(lod). The official gradient is taken at full size, where each pixel of the
            level is a block of 4**level pixels: its square is 4**-level of the native one.
        scale: Factor of the gradient on its way, taken out at the end: what keeps float16 from
            losing small ones.

    Returns:
        gamma / 2 * ||grad_x D(x)||^2 of each image.
    """
    return _squared_gradient(logits, images, scale) * (gamma / 2 * 4.0**-level)


def wgan_gp(
    logits: Logits,
    mixed: Float[Tensor, "n c h w"],
    *,
    weight: float,
    target: float = 1.0,
    level: int = 0,
    scale: float = 1.0,
) -> Float[Tensor, " n"]:
    """WGAN-GP (Gulrajani et al. 2017, Eq. 3).

    Args:
        logits: D's output for `mixed`.
        mixed: Points between reals and fakes; must have required grad before D saw them.
        weight: Weight lambda of the penalty; 10 in Progressive GAN.
        target: Gradient norm that the penalty pulls towards.
        level: floor(lod); the full-size norm is 2**-level of the native one.
        scale: As in `gradient_penalty`.
    """
    norm = _squared_gradient(logits, mixed, scale).sqrt() * 2.0**-level
    return (norm - target).square() * (weight / target**2)


def path_lengths(
    images: Float[Tensor, "n c h w"],
    ws: Float[Tensor, "n l w_size"],
    noise: Float[Tensor, "n c h w"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, " n"]:
    """Lengths ||J^T y|| of random image directions y in w (Karras et al. 2020, Eq. 4).

    Args:
        images: Made from `ws`, at the native size of a level. Official noise has full size; its
            blocks sum up to the same distribution.
        ws: One w per layer; must have required grad before G saw them.
        noise: Standard normal; divided by the side of the image here.
        scale: As in `gradient_penalty`.

    Returns:
        Root of the mean over layers of the squared gradient of sum(images * y).
    """
    direction = noise / math.sqrt(noise.shape[2] * noise.shape[3])
    product = (images * direction).sum() * scale
    (gradient,) = torch.autograd.grad(product, ws, create_graph=True)
    return (gradient / scale).square().sum(dim=2).mean(dim=1).sqrt()


def path_factors(
    lengths: Float[Tensor, " n"], mean: Float[Tensor, ""], average: Float[Tensor, ""], decay: float
) -> Float[Tensor, " n"]:
    """Derivative of the sum of (length - a)^2, where a itself moves with the mean length.

    With a = a0 + decay (mean - a0), the gradient also goes through a, as officially.

    Args:
        lengths: Of some images of the global batch.
        mean: Of all of them.
        average: a, after its move.
        decay: Of the move.
    """
    return 2 * ((lengths - average) - decay * (mean - average))


def _squared_gradient(
    logits: Logits, images: Float[Tensor, "n c h w"], scale: float
) -> Float[Tensor, " n"]:
    (gradient,) = torch.autograd.grad(logits.sum() * scale, images, create_graph=True)
    return (gradient / scale).square().sum(dim=(1, 2, 3))
