"""Losses per image: adversarial terms, classes, gradient penalties, drift, path lengths.

Every function returns [n]; what is minimized is the mean. In formulas r and f are D's logits of a
real and of a fake image.

Legend: n images, c h w, l layers, k classes.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy, relu, softplus

from stylegan.arguments import check_batch, check_shape, check_type

Logits = Float[Tensor, "n 1"]


def g_logistic_ns(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Non-saturating loss of G: -log sigmoid(f) (Goodfellow et al. 2014, Section 3)."""
    _check_logits("fake_logits", fake_logits, by="g_logistic_ns")
    return softplus(-fake_logits).squeeze(1)


def g_logistic(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Saturating loss of G: log(1 - sigmoid(f)), minimax (Goodfellow et al. 2014, Eq. 1)."""
    _check_logits("fake_logits", fake_logits, by="g_logistic")
    return -softplus(fake_logits).squeeze(1)


def g_wgan(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Wasserstein loss of G: -f (Arjovsky et al. 2017, Algorithm 1)."""
    _check_logits("fake_logits", fake_logits, by="g_wgan")
    return -fake_logits.squeeze(1)


def g_hinge(fake_logits: Logits) -> Float[Tensor, " n"]:
    """Hinge loss of G, equal to Wasserstein's: -f (Lim & Ye 2017; Miyato et al. 2018, Eq. 17)."""
    _check_logits("fake_logits", fake_logits, by="g_hinge")
    return g_wgan(fake_logits)


def d_logistic(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Logistic loss of D: -log sigmoid(r) - log(1 - sigmoid(f)) (Goodfellow et al. 2014, Eq. 1)."""
    _check_pair(real_logits, fake_logits, by="d_logistic")
    return (softplus(fake_logits) + softplus(-real_logits)).squeeze(1)


def d_wgan(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Wasserstein loss of D: f - r (Arjovsky et al. 2017, Eq. 3).

    Progressive GAN adds `wgan_gp` and `drift`.
    """
    _check_pair(real_logits, fake_logits, by="d_wgan")
    return (fake_logits - real_logits).squeeze(1)


def d_hinge(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " n"]:
    """Hinge loss of D (Lim & Ye 2017; Miyato et al. 2018, Eq. 16).

    max(0, 1 - r) + max(0, 1 + f).
    """
    _check_pair(real_logits, fake_logits, by="d_hinge")
    return (relu(1 + fake_logits) + relu(1 - real_logits)).squeeze(1)


def drift(real_logits: Logits, weight: float) -> Float[Tensor, " n"]:
    """Keeps real logits near zero: weight r^2 (Karras et al. 2018, Appendix A.1; weight 0.001)."""
    _check_logits("real_logits", real_logits, by="drift")
    return weight * real_logits.square().squeeze(1)


def classes(
    class_logits: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Cross-entropy of D's opinion of the class and the label (Odena et al. 2017, Eq. 3).

    -sum_k label_k log softmax(class_logits)_k.
    """
    remedy = "pass logits and one-hot labels of the same images and classes"
    check_shape("class_logits", class_logits, ("n", "k"), by="classes", remedy=remedy)
    check_shape("labels", labels, class_logits.shape, by="classes", remedy=remedy)
    return cross_entropy(class_logits, labels.to(class_logits), reduction="none")


def attribute(logits: Logits, has: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of softmax([logit, -logit]) and whether the image has the attribute.

    -log sigmoid(2 logit) where it has, -log sigmoid(-2 logit) where not: that is how linear
    separability reads a classifier's logit (Karras et al. 2019, Section 4.2).
    """
    _check_logits("logits", logits, by="attribute")
    remedy = "pass true or false for each image"
    check_shape("has", has, (len(logits),), by="attribute", remedy=remedy)
    check_type("has", has, torch.bool, by="attribute", remedy=remedy)
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
    """R1 on reals or R2 on fakes: gamma / 2 ||grad_x D(x)||^2 (Mescheder et al. 2018, Eq. 9).

    Args:
        logits: D's output for `images`.
        images: Native size of the level; must have required grad before D saw them.
        gamma: Weight of the penalty.
        level: floor(lod). The official gradient is taken at full size, where each pixel of the
            level is a block of 4**level pixels: its square is 4**-level of the native one.
        scale: Factor of the gradient on its way, taken out at the end: what keeps float16 from
            losing small ones.
    """
    _check_gradient(logits, images, "images", by="gradient_penalty")
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
    """WGAN-GP: weight (||grad_x D(x)|| - target)^2 / target^2 (Gulrajani et al. 2017, Eq. 3).

    There the target is 1.

    Args:
        logits: D's output for `mixed`.
        mixed: Points between reals and fakes; must have required grad before D saw them.
        weight: Weight lambda of the penalty; 10 in Progressive GAN.
        target: Gradient norm that the penalty pulls towards.
        level: floor(lod); the full-size norm is 2**-level of the native one.
        scale: As in `gradient_penalty`.
    """
    _check_gradient(logits, mixed, "mixed", by="wgan_gp")
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
    by, n = "path_lengths", len(images)
    check_batch("images", images, by=by)
    check_shape("ws", ws, (n, "l", "w"), by=by, remedy="pass the ws that made the images")
    remedy = "pass normal values in the shape of the images"
    check_shape("noise", noise, images.shape, by=by, remedy=remedy)
    direction = noise / math.sqrt(noise.shape[2] * noise.shape[3])
    product = (images * direction).sum() * scale
    (gradient,) = torch.autograd.grad(product, ws, create_graph=True)
    return (gradient / scale).square().sum(dim=2).mean(dim=1).sqrt()


def path_factors(
    lengths: Float[Tensor, " n"], mean: Float[Tensor, ""], average: Float[Tensor, ""], decay: float
) -> Float[Tensor, " n"]:
    """Derivative of sum (length - a)^2 by the lengths (Karras et al. 2020, Eq. 4).

    2 ((length - a) - decay (mean - a)): a = a0 + decay (mean - a0) moves with the mean length, and
    the gradient also goes through it, as officially.

    Args:
        lengths: Of some images of the global batch.
        mean: Of all of them.
        average: a, after its move.
        decay: Of the move.
    """
    remedy = "pass one length for each image, and single numbers"
    for name, value, sizes in (
        ("lengths", lengths, "n"),
        ("mean", mean, ""),
        ("average", average, ""),
    ):
        check_shape(name, value, sizes, by="path_factors", remedy=remedy)
    return 2 * ((lengths - average) - decay * (mean - average))


def _squared_gradient(
    logits: Logits, images: Float[Tensor, "n c h w"], scale: float
) -> Float[Tensor, " n"]:
    (gradient,) = torch.autograd.grad(logits.sum() * scale, images, create_graph=True)
    return (gradient / scale).square().sum(dim=(1, 2, 3))


def _check_logits(name: str, logits: Tensor, *, by: str, count: int | str = "n") -> None:
    remedy = "pass one logit of D for each image"
    check_shape(name, logits, (count, 1), by=by, remedy=remedy)


def _check_pair(real_logits: Tensor, fake_logits: Tensor, *, by: str) -> None:
    _check_logits("real_logits", real_logits, by=by)
    _check_logits("fake_logits", fake_logits, by=by, count=len(real_logits))


def _check_gradient(logits: Tensor, images: Tensor, name: str, *, by: str) -> None:
    check_batch(name, images, by=by)
    _check_logits("logits", logits, by=by, count=len(images))
    if not (images.requires_grad and logits.requires_grad):
        raise ValueError(
            f"logits have no gradient with respect to {name}, but {by} takes it; call "
            f"{name}.requires_grad_() before D sees them"
        )
