"""Inception score: closed forms."""

import pytest
import torch

from stylegan.metrics.inception_score import inception_score
from tests.random_arrays import normal


def test_inception_score_of_sure_and_balanced_classes_is_their_number():
    """A class of probability 0 adds nothing."""
    assert inception_score(torch.eye(4).repeat(5, 1), splits=1) == pytest.approx((4, 0))


def test_inception_score_of_images_that_all_look_the_same_is_1(rng):
    row = normal(rng, 1, 10).softmax(dim=1)

    assert inception_score(row.repeat(20, 1), splits=4) == pytest.approx((1, 0), abs=1e-6)


def test_inception_score_splits_are_contiguous_and_their_deviation_that_of_the_population():
    """5 images in 2 parts are 2 and 3: scores 1 and 3."""
    probabilities = torch.eye(3)[[1, 1, 0, 1, 2]]

    assert inception_score(probabilities, splits=2) == pytest.approx((2, 1))


def test_what_is_no_probability_is_refused(rng):
    probabilities = normal(rng, 6, 4).softmax(dim=1)
    probabilities[2] *= 2

    with pytest.raises(ValueError, match=r"of 1 of 6 images .* image 2 .* sum to 2; pass the soft"):
        inception_score(probabilities, splits=1)
    with pytest.raises(ValueError, match="softmax of the logits"):
        inception_score(normal(rng, 6, 4), splits=1)
    with pytest.raises(ValueError, match=r"splits is 10; choose a number from 1 to .* 6"):
        inception_score(normal(rng, 6, 4).softmax(dim=1))
