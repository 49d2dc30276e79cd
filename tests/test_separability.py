"""Linear separability: closed forms."""

import math

import pytest
import torch

from stylegan.metrics.separability import (
    conditional_entropy,
    confusion,
    linear_svm,
    most_confident,
    mutual_information,
    separability,
)
from tests.random_arrays import normal


def test_entropies_of_joints_in_closed_form():
    independent = torch.outer(torch.tensor([0.2, 0.8]), torch.tensor([0.25, 0.75]))
    known = torch.diag(torch.tensor([0.25, 0.75]))
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))

    assert float(conditional_entropy(independent)) == pytest.approx(entropy, rel=1e-6)
    assert float(mutual_information(independent)) == pytest.approx(0, abs=1e-6)
    assert float(conditional_entropy(known)) == 0
    assert float(mutual_information(known)) == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_svm_of_two_points_has_its_closed_form(penalty):
    """x = 1 and x = -1: a^2 / 2 + 2 C (1 - a)^2 is least at a = 4 C / (1 + 4 C)."""
    plane = linear_svm(torch.tensor([[1.0], [-1.0]]), torch.tensor([True, False]), penalty=penalty)

    assert float(plane.normal) == pytest.approx(4 * penalty / (1 + 4 * penalty), rel=1e-9)
    assert float(plane.offset) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_svm_is_at_the_minimum_of_its_convex_loss(rng, scale):
    """A gradient of zero is a proof; classes overlap, so many points lie within the margin."""
    x = scale * normal(rng, 300, 8)
    positive = (x[:, 0] + x[:, 1]) / scale + normal(rng, 300) > 0.5
    plane = linear_svm(x, positive)

    v = torch.cat([plane.normal, plane.offset[None]]).requires_grad_()
    y = 2.0 * positive.double() - 1
    slack = (1 - y * (x.double() @ v[:-1] + v[-1])).clamp(min=0)
    loss = v.square().sum() / 2 + slack.square().sum()
    (gradient,) = torch.autograd.grad(loss, v)
    assert float(gradient.norm()) <= 1e-8 * 300 * max(scale, 1)
    assert 0.5 < float((plane.side(x) == positive).double().mean()) < 1


def test_the_surest_answers_are_kept_and_equal_ones_in_their_order():
    """In float32 the probabilities of 10, -20 and 30 are all exactly 1."""
    logits = torch.tensor([0.1, 10.0, -2.0, -20.0, 30.0, 3.0])

    assert most_confident(logits, keep=5).tolist() == [1, 3, 4, 5, 2]
    with pytest.raises(ValueError, match="keep is 7, but 6 images"):
        most_confident(logits, keep=7)


def test_separability_is_1_where_hyperplanes_tell_everything_and_2_per_balanced_unknown(rng):
    latents = normal(rng, 4000, 4)
    known, unknown = 9 * latents[:, :2], 9 * normal(rng, 4000, 1)

    assert separability(latents, known, keep=2000) == pytest.approx(1, abs=0.02)
    both = torch.cat([known, unknown], dim=1)
    assert separability(latents, both, keep=2000) == pytest.approx(2, abs=0.03)


def test_an_attribute_that_all_kept_images_have_is_separable(rng):
    joint = confusion(normal(rng, 50, 3), 5 + normal(rng, 50).abs(), keep=20)

    assert joint.tolist() == [[1, 0], [0, 0]]
    assert float(conditional_entropy(joint)) == 0


def test_an_svm_of_latents_that_are_not_finite_is_refused():
    x = torch.tensor([[math.nan], [1.0]])

    with pytest.raises(ValueError, match="SVM of 2 images did not converge"):
        linear_svm(x, torch.tensor([True, False]))
