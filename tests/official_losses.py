"""Loss tensors as the official functions return them, made of our losses of each image.

Scores are [N, 1] there and penalties [N]; their sum is [N, N], of which only the mean is used
(MANIFEST section 7, quirk 16).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan import losses
from stylegan.networks.interface import Discriminator
from stylegan.objective import LossConfig, judge


def generator_tensor(
    config: LossConfig,
    D: Discriminator,
    *,
    fakes: Tensor,
    labels: Tensor | None = None,
    lod: float = 0.0,
) -> Tensor:
    """G's loss: [N, 1], with class terms [N, N]."""
    of_scores = {
        "logistic_ns": losses.g_logistic_ns,
        "logistic": losses.g_logistic,
        "wgan": losses.g_wgan,
    }[config.adversarial]
    scores, classes = judge(D, fakes, labels, lod)
    terms = [] if labels is None else [config.class_weight * losses.classes(classes, labels)]
    return _broadcast(of_scores(scores), terms)


def discriminator_tensor(
    config: LossConfig,
    D: Discriminator,
    *,
    reals: Tensor,
    fakes: Tensor,
    gp_mix: Tensor | None = None,
    labels: Tensor | None = None,
    lod: float = 0.0,
) -> Tensor:
    """D's loss: [N, 1], with penalties or class terms [N, N]."""
    level = int(lod)
    of_scores = {
        "logistic_ns": losses.d_logistic,
        "wgan": losses.d_wgan,
        "hinge": losses.d_hinge,
    }[config.adversarial]
    reals, fakes = (images.detach().requires_grad_() for images in (reals, fakes))
    real_scores, real_classes = judge(D, reals, labels, lod)
    fake_scores, fake_classes = judge(D, fakes, labels, lod)
    scores = of_scores(real_scores, fake_scores) + losses.drift(real_scores, config.drift_weight)
    terms = []
    if config.r1_gamma:
        terms.append(losses.gradient_penalty(real_scores, reals, config.r1_gamma, level=level))
    if config.r2_gamma:
        terms.append(losses.gradient_penalty(fake_scores, fakes, config.r2_gamma, level=level))
    if config.wgan_gp_weight:
        assert gp_mix is not None
        mixed = torch.lerp(reals, fakes, gp_mix).detach().requires_grad_()
        weight, target = config.wgan_gp_weight, config.wgan_gp_target
        logits, _ = judge(D, mixed, labels, lod)
        terms.append(losses.wgan_gp(logits, mixed, weight=weight, target=target, level=level))
    if labels is not None:
        both = losses.classes(real_classes, labels) + losses.classes(fake_classes, labels)
        terms.append(config.class_weight * both)
    return _broadcast(scores, terms)


def _broadcast(scores: Tensor, terms: Sequence[Tensor]) -> Tensor:
    tensor = scores[:, None]
    for term in terms:
        tensor = tensor + term
    return tensor.detach()
