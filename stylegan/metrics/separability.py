"""Linear separability (Karras et al. 2019, Section 4.2).

    score = separability(ws[:, -1], logits, keep=100_000)

How well a hyperplane in latent space tells the two values of an attribute: exp(sum of H(Y|X)) over
attributes, Y being what a classifier says of the image and X on which side its latent lies.

Legend: n images, k kept ones, s latent size, a attributes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from stylegan.arguments import check_shape

_MOST_STEPS = 100
_TOLERANCE = 1e-10


class Hyperplane(NamedTuple):
    """Where normal . x + offset = 0."""

    normal: Float64[Tensor, " s"]
    offset: Float64[Tensor, ""]

    def side(self, latents: Float[Tensor, "n s"]) -> Bool[Tensor, " n"]:
        """True on the side the normal points to."""
        return latents.double() @ self.normal + self.offset > 0


def separability(
    latents: Float[Tensor, "n s"],
    logits: Float[Tensor, "n a"],
    *,
    keep: int = 100_000,
    attributes: Sequence[str] = (),
) -> float:
    """2 to the sum of conditional entropies in bits, that is exp of the sum in nats.

    Args:
        latents: z or w of the images.
        logits: What the classifiers say of the images, one attribute each.
        keep: Of each attribute the images with the surest answers; half of all in the paper.
        attributes: Their names, for messages.

    Raises:
        ValueError: Of an attribute all kept images have the same answer.
    """
    remedy = "pass one row for each image"
    check_shape("latents", latents, ("n", "s"), by="separability", remedy=remedy)
    check_shape("logits", logits, (len(latents), "a"), by="separability", remedy=remedy)
    joints = []
    for number, column in enumerate(logits.unbind(dim=1)):
        joints.append(confusion(latents, column, keep=keep))
        if joints[-1].sum(dim=0).amin() == 0:
            raise ValueError(
                f"attribute {attributes[number] if attributes else number} has the same answer "
                f"for all of the {keep} surest images, so nothing separates them; leave its "
                f"classifier out or use more images"
            )
    return float(2 ** torch.stack([conditional_entropy(joint) for joint in joints]).sum())


def confusion(
    latents: Float[Tensor, "n s"], logits: Float[Tensor, " n"], *, keep: int
) -> Float64[Tensor, "2 2"]:
    """Shares of the kept images: rows by the side of the SVM, columns by the classifier's answer.

    Index 0 is a positive logit.
    """
    kept = most_confident(logits, keep=keep)
    x, negative = latents[kept], logits[kept] < 0
    predicted = linear_svm(x, negative).side(x)
    cells = torch.bincount(2 * predicted + 1 * negative, minlength=4)
    return cells.double().reshape(2, 2) / keep


def most_confident(logits: Float[Tensor, " n"], *, keep: int) -> Int64[Tensor, " k"]:
    """Images whose likelier answer is the surest, the surest first and equal ones in their order.

    Probabilities are those of softmax([logit, -logit]) in the precision of the logits: in float32
    many are exactly 1.

    Raises:
        ValueError: There are not so many.
    """
    if not 1 <= keep <= len(logits):
        raise ValueError(
            f"keep is {keep}, but {len(logits)} images were classified; choose 1 to "
            f"{len(logits)}, usually half of them"
        )
    confidence = torch.stack([logits, -logits], dim=1).softmax(dim=1).amax(dim=1)
    return confidence.argsort(descending=True, stable=True)[:keep]


def conditional_entropy(joint: Float[Tensor, "x y"]) -> Float64[Tensor, ""]:
    """H(Y|X) = H(Y) - I(X;Y) in bits of a joint distribution p[x, y]; never negative."""
    return (_entropy(joint.double().sum(dim=0)) - mutual_information(joint)).clamp(min=0)


def mutual_information(joint: Float[Tensor, "x y"]) -> Float64[Tensor, ""]:
    """I(X;Y) = H(X) + H(Y) - H(X,Y) in bits."""
    p = joint.double()
    return _entropy(p.sum(dim=1)) + _entropy(p.sum(dim=0)) - _entropy(p)


def linear_svm(
    x: Float[Tensor, "n s"], positive: Bool[Tensor, " n"], *, penalty: float = 1.0
) -> Hyperplane:
    """Linear support vector machine with squared hinge loss (Keerthi and DeCoste 2005).

    Minimizes |v|^2 / 2 + penalty * sum max(0, 1 - y v.[x, 1])^2 for y = 1 on the positive side and
    -1 on the other, by Newton's method: the offset is part of v, as in LIBLINEAR's usual setting.
    """
    y = torch.where(positive, 1.0, -1.0).double()
    signed = torch.cat([x.double(), torch.ones_like(y)[:, None]], dim=1) * y[:, None]
    v = torch.zeros(signed.shape[1], dtype=torch.float64, device=x.device)
    goal = _TOLERANCE * 2 * penalty * signed.sum(dim=0).norm()
    for _ in range(_MOST_STEPS):
        slack = 1 - signed @ v
        active = signed[slack > 0]
        gradient = v - 2 * penalty * (active.T @ slack[slack > 0])
        if gradient.norm() <= goal:
            return Hyperplane(v[:-1], v[-1])
        hessian = 2 * penalty * (active.T @ active)
        hessian.diagonal().add_(1)
        direction = -torch.linalg.solve(hessian, gradient)

        # Halve the step until the loss falls as its slope promises, up to rounding.
        along, slope, size = signed @ direction, gradient @ direction, 1.0
        loss = _svm_loss(v, slack, penalty)
        while _svm_loss(v + size * direction, slack - size * along, penalty) > (
            loss * (1 + 1e-12) + 1e-4 * size * slope
        ):
            size /= 2
        v = v + size * direction
    raise ValueError(
        f"the SVM of {len(x)} images did not converge within {_MOST_STEPS} steps; look whether "
        f"latents are finite and of ordinary size"
    )


def _svm_loss(
    v: Float64[Tensor, " s"], slack: Float64[Tensor, " n"], penalty: float
) -> Float64[Tensor, ""]:
    return v.square().sum() / 2 + penalty * slack.clamp(min=0).square().sum()


def _entropy(p: Float64[Tensor, "*shape"]) -> Float64[Tensor, ""]:
    """In bits."""
    return -torch.xlogy(p, p).sum() / math.log(2)
