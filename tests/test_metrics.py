"""FID and KID: golden values, closed forms, properties."""

import logging
import re

import numpy as np
import pytest
import scipy.linalg
import torch

from stylegan.metrics.features import FeatureMoments
from stylegan.metrics.fid import fid, frechet_distance, trace_sqrt_product
from stylegan.metrics.kid import kid, kid_of_subsets, subsets
from tests import goldens


def features(rng, n, d=24, shift=0.0):
    """Correlated float32 features whose mean is not zero, as behind a ReLU."""
    mix = np.random.RandomState(99).standard_normal((d, d)) / d**0.5
    return torch.from_numpy((rng.standard_normal((n, d)) @ mix + 0.4 + shift).astype(np.float32))


def golden_fid_cases():
    """The pairs of feature matrices in the sets, some of them with fewer images than features."""
    keys = [(name, key) for name in goldens.sets("G1_*") for key in goldens.arrays(name)]
    return sorted({(name, key.split("/")[1]) for name, key in keys if key.startswith("in/")})


def golden_fid(name, case):
    values = goldens.arrays(name)
    return goldens.under(values, f"in/{case}/"), goldens.under(values, f"out/{case}/")


def fid_rtol(inputs):
    """MANIFEST, notes of G1: singular covariances make the official sqrtm inexact."""
    full_rank = all(n > d for n, d in (x.shape for x in inputs.values()))
    return 1e-6 if full_rank else 1e-3


def golden_kid_cases():
    """kid_seed1, kid_seed2 ..., as many as the sets have."""
    keys = [(name, key) for name in goldens.sets("G5_*") for key in goldens.arrays(name)]
    return [(name, m[1]) for name, k in keys if (m := re.fullmatch(r"out/(kid_seed\d+)_f64", k))]


@pytest.mark.parametrize(("name", "case"), golden_fid_cases())
def test_fid_matches_the_golden_value_of_the_official_code(name, case):
    inputs, outputs = golden_fid(name, case)
    reals, fakes = (FeatureMoments.of(torch.from_numpy(inputs[kind])) for kind in ("real", "fake"))

    assert fid(reals, fakes) == pytest.approx(float(outputs["fid_f64"]), rel=fid_rtol(inputs))
    trace = float(reals.covariance().trace())
    assert fid(reals, reals) == pytest.approx(float(outputs["fid_same_f64"]), abs=1e-6 * trace)


@pytest.mark.parametrize(("name", "case"), golden_fid_cases())
def test_moments_match_the_golden_mean_and_covariance(name, case):
    inputs, outputs = golden_fid(name, case)
    moments = FeatureMoments.of(torch.from_numpy(inputs["real"]))

    goldens.assert_close(moments.mean(), outputs["mu_real"], 1e-6, "mean")
    goldens.assert_close(moments.covariance(ddof=1), outputs["sigma_real_f64"], 1e-6, "sigma")


@pytest.mark.parametrize("name", goldens.sets("G5_*"))
def test_fid_with_the_biased_covariance_matches_the_golden_value_of_stylegan3(name):
    values = goldens.arrays(name)
    reals, fakes = (
        FeatureMoments.of(torch.from_numpy(values[f"in/{kind}"])) for kind in ("real", "fake")
    )

    expected = float(values["out/fid_f64"])
    assert fid(reals, fakes, ddof=0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "case"), golden_kid_cases())
def test_kid_of_subsets_matches_the_golden_value(name, case):
    values = goldens.arrays(name)
    value = kid_of_subsets(
        torch.from_numpy(values["in/real"]),
        torch.from_numpy(values["in/fake"]),
        reals_index=values[f"in/{case}_real_idx"],
        fakes_index=values[f"in/{case}_fake_idx"],
    )

    assert value == pytest.approx(float(values[f"out/{case}_f64"]), rel=1e-4)


@pytest.mark.parametrize(("name", "case"), golden_kid_cases())
def test_subsets_repeat_the_golden_draws_from_their_seed(name, case):
    values = goldens.arrays(name)
    expected = values[f"in/{case}_real_idx"]

    reals_index, fakes_index = subsets(
        len(values["in/real"]),
        len(values["in/fake"]),
        count=len(expected),
        size=expected.shape[1],
        seed=int(case.removeprefix("kid_seed")),
    )

    np.testing.assert_array_equal(reals_index, expected)
    np.testing.assert_array_equal(fakes_index, values[f"in/{case}_fake_idx"])


def test_moments_gathered_in_batches_equal_those_of_the_whole(rng):
    x = features(rng, 100)
    whole, parts = FeatureMoments.of(x), FeatureMoments(24)
    for batch in x.split(16):
        parts.update(batch)

    np.testing.assert_allclose(parts.mean(), x.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(parts.covariance(), np.cov(x.double().T), atol=1e-13)
    assert parts.count == whole.count == 100
    torch.testing.assert_close(parts.outer, whole.outer, rtol=1e-12, atol=0)


def test_frechet_distance_of_diagonal_gaussians_is_the_distance_of_means_and_deviations():
    """Commuting covariances: |m - n|^2 + sum (sqrt(a) - sqrt(b))^2; zeros make them singular."""
    a, b = torch.tensor([4.0, 1.0, 0.0, 9.0]).double(), torch.tensor([1.0, 0.0, 0.0, 16.0]).double()
    mean_a, mean_b = torch.zeros(4).double(), torch.tensor([1.0, 2.0, 0.0, 0.0]).double()

    distance = frechet_distance((mean_a, a.diag()), (mean_b, b.diag()))

    assert distance == pytest.approx(5 + 1 + 1 + 0 + 1, rel=1e-12)


def test_the_trace_of_the_root_agrees_with_a_general_matrix_square_root(rng):
    a, b = (np.cov(rng.standard_normal((16, 200)) * rng.rand(16, 1)) for _ in range(2))

    trace = trace_sqrt_product(torch.from_numpy(a), torch.from_numpy(b))

    assert float(trace) == pytest.approx(scipy.linalg.sqrtm(a @ b).trace().real, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 12), (12, 30), (200, 12), (12, 200)])
def test_fid_of_singular_covariances_is_exact_whichever_set_is_smaller(rng, n, m):
    """tr (A B)^(1/2) is the nuclear norm of X^T Y for A = X X^T and B = Y Y^T."""
    x, y = features(rng, n, d=64), features(rng, m, d=64, shift=0.1)
    factors = [(z.double() - z.double().mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    nuclear = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    means = (x.double().mean(dim=0) - y.double().mean(dim=0)).square().sum()
    exact = means + factors[0].square().sum() + factors[1].square().sum() - 2 * nuclear

    assert fid(FeatureMoments.of(x), FeatureMoments.of(y)) == pytest.approx(float(exact), rel=1e-8)


def test_fid_is_symmetric_and_grows_with_the_shift(rng):
    reals, same, far = (FeatureMoments.of(features(rng, 300, shift=shift)) for shift in (0, 0, 1))

    assert fid(reals, far) == pytest.approx(fid(far, reals), rel=1e-9)
    assert fid(reals, far) > 10 * fid(reals, same) > 0


def test_fewer_images_than_features_are_said_to_bias_fid(rng, caplog):
    with caplog.at_level(logging.INFO):
        fid(FeatureMoments.of(features(rng, 100)), FeatureMoments.of(features(rng, 20)))

    (record,) = caplog.records
    assert "20 fakes for 24 features" in record.getMessage()


def test_features_that_are_not_finite_are_refused(rng):
    x = features(rng, 8)
    x[5, 3] = float("nan")

    with pytest.raises(ValueError, match="1 of 8 images are not finite, the first is number 5"):
        FeatureMoments(24).update(x)
    with pytest.raises(ValueError, match="not finite"):
        kid(x, features(rng, 8))


def test_features_of_another_width_are_refused(rng):
    narrow, wide = FeatureMoments.of(features(rng, 40)), FeatureMoments.of(features(rng, 40, d=30))

    with pytest.raises(ValueError, match="30 columns, but moments 24"):
        narrow.update(features(rng, 4, d=30))
    with pytest.raises(ValueError, match="24 features and fakes 30"):
        fid(narrow, wide)
    with pytest.raises(ValueError, match="24 features and fakes 30"):
        kid(features(rng, 4), features(rng, 4, d=30))


def test_constant_features_and_too_few_images_are_refused(rng):
    reals = FeatureMoments.of(features(rng, 40))
    constant = FeatureMoments.of(torch.full((40, 24), 0.3))

    with pytest.raises(ValueError, match="all 40 fakes have the same features"):
        fid(reals, constant)
    with pytest.raises(ValueError, match="statistics of 1 images"):
        fid(reals, FeatureMoments.of(features(rng, 1)))
    with pytest.raises(ValueError, match="KID needs 2 images of each, not 5 and 1"):
        kid(features(rng, 5), features(rng, 1))
    with pytest.raises(ValueError, match="ddof is 2"):
        reals.covariance(ddof=2)


def test_kid_is_the_unbiased_mmd_written_out_pair_by_pair(rng):
    x, y = features(rng, 7), features(rng, 9, shift=0.2)

    def kernel(a, b):
        return (float(a.double() @ b.double()) / 24 + 1) ** 3

    within_x = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    between = [kernel(a, b) for a in x for b in y]

    expected = np.mean(within_x) + np.mean(within_y) - 2 * np.mean(between)
    assert kid(x, y) == pytest.approx(expected, rel=1e-9)


def test_kid_does_not_depend_on_the_tile(rng):
    x, y = features(rng, 50), features(rng, 41, shift=0.2)

    assert kid(x, y, tile=7) == pytest.approx(kid(x, y), rel=1e-10)


def test_kid_of_one_distribution_is_zero_on_average_and_sometimes_negative(rng):
    values = [kid(features(rng, 60), features(rng, 60)) for _ in range(40)]

    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_subsets_are_as_large_as_the_smaller_set_allows():
    reals_index, fakes_index = subsets(50, 30, count=3, size=1000)

    assert reals_index.shape == fakes_index.shape == (3, 30)
    assert all(len(set(row)) == 30 for row in (*reals_index, *fakes_index))
