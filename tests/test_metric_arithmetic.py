"""Precision and recall, Inception score, path length, separability, SWD, MS-SSIM: closed forms."""

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from stylegan.metrics import ms_ssim as ms_ssim_module
from stylegan.metrics.inception_score import inception_score
from stylegan.metrics.ms_ssim import ms_ssim
from stylegan.metrics.ppl import (
    PathConfig,
    lerp,
    path_lengths,
    perceptual_path_length,
    slerp,
    trim,
    view,
)
from stylegan.metrics.precision_recall import (
    density_coverage,
    memberships,
    precision_recall,
    squared_radii,
)
from stylegan.metrics.separability import (
    conditional_entropy,
    confusion,
    linear_svm,
    most_confident,
    mutual_information,
    separability,
)
from stylegan.metrics.swd import (
    draw_directions,
    laplacian_pyramid,
    normalize,
    num_levels,
    patches,
    sliced_wasserstein,
    swd,
)


@pytest.fixture
def rng():
    return np.random.RandomState(0)


def normal(rng, *shape, dtype=np.float32):
    return torch.from_numpy(rng.standard_normal(shape).astype(dtype))


def bytes_of(rng, *shape):
    return torch.from_numpy(rng.randint(0, 256, size=shape).astype(np.uint8))


# Precision and recall, density and coverage.

LINE_REALS = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
LINE_FAKES = torch.tensor([[-1.0], [0.5], [4.5], [10.0]])


def test_manifolds_on_a_line_are_intervals():
    """k = 1: reals span [-1, 4], bounds included; fakes' balls reach from -2.5 to 15.5."""
    assert squared_radii(LINE_REALS, k=1).tolist() == [1, 1, 1, 1]
    assert squared_radii(LINE_FAKES, k=1).tolist() == [2.25, 2.25, 16, 30.25]
    assert precision_recall(LINE_REALS, LINE_FAKES, k=1) == (0.5, 1.0)


def test_density_counts_balls_around_fakes_and_coverage_balls_with_fakes():
    """-1 lies in one real ball and 0.5 in two; balls of 0 and 1 have fakes in them."""
    balls, inside = memberships(LINE_FAKES, LINE_REALS, squared_radii(LINE_REALS, k=1))

    assert balls.tolist() == [1, 2, 0, 0]
    assert inside.tolist() == [2, 1, 0, 0]
    assert density_coverage(LINE_REALS, LINE_FAKES, k=1) == (0.75, 0.5)


@pytest.mark.parametrize("tile", [4096, 16])
def test_a_set_compared_with_itself_has_k_neighbours_and_itself_in_each_ball(rng, tile):
    x = normal(rng, 100, 24)

    assert precision_recall(x, x, k=3, tile=tile) == (1, 1)
    density, coverage = density_coverage(x, x, k=5, tile=tile)
    assert (density, coverage) == (pytest.approx(6 / 5), 1)


@pytest.mark.parametrize("tile", [4096, 40, 7])
def test_precision_and_recall_by_tiles_equal_those_of_the_whole_distance_matrix(rng, tile):
    reals, fakes = normal(rng, 80, 6), 1.3 * normal(rng, 50, 6) + 0.5

    def share(manifold, points):
        own = torch.cdist(manifold.double(), manifold.double())
        radii = own.sort(dim=1).values[:, 3]
        within = torch.cdist(points.double(), manifold.double()) <= radii
        return float(within.any(dim=1).double().mean())

    expected = share(reals, fakes), share(fakes, reals)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert precision_recall(reals, fakes, k=3, tile=tile) == pytest.approx(expected, rel=1e-12)


def test_collapsed_fakes_are_precise_and_recall_nothing():
    reals = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [6.0, 8.0]])
    fakes = torch.tensor([[1.0, 1.0]]).repeat(5, 1)

    assert squared_radii(fakes, k=3).tolist() == [0] * 5
    assert precision_recall(reals, fakes, k=3) == (1, 0)


def test_features_that_cannot_be_compared_are_refused(rng):
    with pytest.raises(ValueError, match="k is 3, but each of 3 images has 2 neighbours"):
        precision_recall(normal(rng, 5, 4), normal(rng, 3, 4), k=3)
    with pytest.raises(ValueError, match="4 features and fakes 5: two networks"):
        precision_recall(normal(rng, 9, 4), normal(rng, 9, 5))
    with pytest.raises(ValueError, match="not finite"):
        density_coverage(normal(rng, 9, 4), torch.full((9, 4), math.nan))


# Inception score.


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


# Perceptual path length.


def test_slerp_goes_along_the_great_circle_at_constant_speed():
    a, b = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([[0.0, 0.5]]).double()
    for t in (0, 0.25, 0.5, 1, 1.5):
        angle = t * math.pi / 2
        expected = torch.tensor([[math.cos(angle), math.sin(angle)]]).double()
        torch.testing.assert_close(slerp(a, b, torch.tensor([[t]]).double()), expected)


def test_slerp_between_equal_directions_stays_there():
    a = torch.tensor([[2.0, 0.0, 0.0]])

    assert slerp(a, 3 * a, torch.tensor([[0.3]])).tolist() == [[1, 0, 0]]


def test_lerp_reaches_its_ends_and_goes_beyond():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])

    assert [lerp(a, b, torch.tensor([[t]])).tolist()[0] for t in (0.0, 0.5, 1.0, 2.0)] == [
        [1, 2],
        [2, 1],
        [3, 0],
        [5, -2],
    ]


def picture_of(ws):
    """w as an image: [m l 16] to [m 1 4 4]."""
    return ws[:, 0].reshape(-1, 1, 4, 4)


def squared(a, b):
    return (a - b).square().sum(dim=(1, 2, 3))


def test_path_length_in_w_of_a_linear_generator_is_the_squared_distance_of_the_ends(rng):
    """Images are in [0, 255] where the distance looks at them, so its scale is 127.5 squared."""
    z, t = normal(rng, 10, 16, dtype=np.float64), torch.from_numpy(rng.rand(5))
    lengths = path_lengths(
        z,
        t,
        mapping=lambda z, labels: z[:, None].expand(-1, 2, -1),
        synthesis=picture_of,
        distance=squared,
        config=PathConfig(space="w", crop=False),
    )

    expected = 127.5**2 * (z[0::2] - z[1::2]).square().sum(dim=1)
    torch.testing.assert_close(lengths, expected, rtol=1e-8, atol=0)


def test_path_length_in_z_of_the_identity_is_the_squared_angle_of_the_ends(rng):
    z, t = normal(rng, 10, 16, dtype=np.float64), torch.from_numpy(rng.rand(5))
    lengths = path_lengths(
        z,
        t,
        mapping=lambda z, labels: z[:, None],
        synthesis=picture_of,
        distance=squared,
        config=PathConfig(space="z", crop=False),
    )

    angle = torch.cosine_similarity(z[0::2], z[1::2]).arccos()
    torch.testing.assert_close(lengths, 127.5**2 * angle.square(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("space", ["z", "w"])
def test_both_ends_of_a_pair_have_its_label(rng, space):
    """The image is the label, so nothing moves unless ends of a pair get different ones."""
    seen = []

    def mapping(z, labels):
        seen.append(labels)
        return labels[:, None]

    lengths = path_lengths(
        normal(rng, 6, 8),
        torch.rand(3),
        mapping=mapping,
        synthesis=picture_of,
        distance=squared,
        config=PathConfig(space=space, crop=False),
        labels=torch.eye(16)[:3],
    )

    assert lengths.tolist() == [0, 0, 0]
    assert seen[0].argmax(dim=1).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("side", "crop", "size", "expected"),
    [
        (1024, True, "cropped", 256),  # StyleGAN: 512 px of face are halved
        (1024, True, "full", 128),  # StyleGAN3: a quarter, whatever is cropped
        (1024, False, "full", 256),
        (512, True, "cropped", 256),
        (512, False, "cropped", 256),
        (64, True, "cropped", 32),
    ],
)
def test_the_view_of_an_image_has_the_size_of_its_rule(side, crop, size, expected):
    images = torch.ones(1, 1, 1, 1).expand(-1, -1, side, side)
    seen = view(images, crop=crop, size=size)

    assert seen.shape == (1, 1, expected, expected)
    assert (seen == 255).all()


def test_the_mean_path_length_leaves_out_one_percent_on_either_side():
    """0 ... 199 and an outlier: 2 and 198 are the bounds, and both count."""
    lengths = torch.arange(201.0)
    lengths[200] = 1e6
    lengths = lengths[torch.randperm(201, generator=torch.Generator().manual_seed(0))]

    assert sorted(trim(lengths).tolist()) == list(range(2, 199))
    assert perceptual_path_length(lengths) == 100
    assert trim(torch.tensor([3.0])).tolist() == [3]


def test_path_lengths_that_mean_nothing_are_refused(rng):
    def measure(z, t):
        return path_lengths(
            z,
            t,
            mapping=lambda z, labels: z[:, None],
            synthesis=picture_of,
            distance=squared,
            config=PathConfig(),
        )

    with pytest.raises(ValueError, match="1 of 2 path lengths are not finite"):
        trim(torch.tensor([1.0, math.inf]))
    with pytest.raises(ValueError, match="0 of 0 path lengths"):
        trim(torch.empty(0))
    with pytest.raises(ValueError, match="5 latents for 3 pairs"):
        measure(normal(rng, 5, 16), torch.rand(3))
    with pytest.raises(ValueError, match=r"4 x 4 px; .* at least 8 px"):
        measure(normal(rng, 6, 16), torch.rand(3))
    with pytest.raises(ValueError, match=r"epsilon of the path length is 0; choose a number above"):
        PathConfig(epsilon=0)


# Linear separability.


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


# Sliced Wasserstein distance.


@pytest.mark.parametrize(("side", "levels"), [(1024, 7), (64, 3), (16, 1), (8, 1)])
def test_pyramids_end_at_16_px(side, levels):
    assert num_levels(side) == levels


def test_a_pyramid_of_one_colour_is_zero_but_for_its_coarsest_level():
    """The filter sums to 1 wherever it lies, mirrored border included, in both directions."""
    *fine, coarse = laplacian_pyramid(torch.full((2, 3, 32, 16), 80.0), 3)

    assert [level.shape for level in fine] == [(2, 3, 32, 16), (2, 3, 16, 8)]
    assert all((level == 0).all() for level in fine)
    assert coarse.shape == (2, 3, 8, 4)
    assert (coarse == 80).all()


def test_a_pyramid_keeps_what_its_coarser_level_cannot_say(rng):
    """Independent reference: scipy's filter with the border mirrored."""
    image = rng.rand(24, 16).astype(np.float32)
    line = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(line, line)
    coarse = scipy.ndimage.convolve(image, kernel, mode="mirror")[::2, ::2]
    sparse = np.zeros_like(image)
    sparse[::2, ::2] = coarse
    enlarged = scipy.ndimage.convolve(sparse, 4 * kernel, mode="mirror")

    fine, last = laplacian_pyramid(torch.from_numpy(image)[None, None], 2)
    np.testing.assert_allclose(last[0, 0], coarse, atol=1e-6)
    np.testing.assert_allclose(fine[0, 0], image - enlarged, atol=1e-6)


def test_patches_lie_within_their_image_and_on_their_side(rng):
    """A pixel's value says where it is."""
    n, h, w = 3, 10, 12
    images = torch.arange(n * h * w).reshape(n, 1, h, w).to(torch.uint8)
    (found,) = patches(images, rng, levels=1, count=40, side=3)

    assert found.shape == (n * 40, 1, 3, 3)
    for number, patch in enumerate(found[:, 0].long() - images[:1, 0, :1, :1].long()):
        start = int(patch[0, 0])
        assert patch.T.tolist() == [
            [(start + row * w + column) % 256 for column in range(3)] for row in range(3)
        ], number


def test_equal_seeds_give_equal_patches_and_others_do_not(rng):
    images = bytes_of(rng, 2, 3, 32, 32)
    a, b, c = (patches(images, np.random.RandomState(seed), levels=2) for seed in (1, 1, 2))

    assert [level.shape for level in a] == [(256, 3, 7, 7)] * 2
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


def test_normalized_channels_have_mean_0_and_variance_1(rng):
    values = normalize(3 * normal(rng, 200, 2, 7, 7) + 50).reshape(200, 2, 49)

    torch.testing.assert_close(values.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2), correction=0), torch.ones(2))
    with pytest.raises(ValueError, match="the same in all 5 patches"):
        normalize(torch.ones(5, 3, 7, 7))


def test_the_sliced_distance_of_a_shifted_set_is_its_shift_along_each_direction(rng):
    a, shift = normal(rng, 64, 6), normal(rng, 6)
    directions = draw_directions(rng, 6, 10)
    shifted = (a + shift)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]

    torch.testing.assert_close(directions.norm(dim=0), torch.ones(10))
    expected = float((shift @ directions).abs().mean())
    assert sliced_wasserstein(a, shifted, directions) == pytest.approx(expected, rel=1e-5)


def test_swd_is_zero_for_the_same_patches_and_grows_with_difference(rng):
    images = bytes_of(rng, 4, 3, 32, 32)
    a, same, other = (
        patches(x, np.random.RandomState(5), levels=2) for x in (images, images, images // 2 + 90)
    )
    flat = patches(
        bytes_of(rng, 4, 3, 1, 1).expand(-1, -1, 32, 32) // 2 + images // 9, rng, levels=2
    )

    assert swd(a, same, rng) == [0, 0]
    # Channels are normalized: contrast and brightness do not count, structure does.
    assert max(swd(a, other, rng)) < 0.02 < min(swd(a, flat, rng))


def test_patches_that_do_not_fit_are_refused(rng):
    with pytest.raises(ValueError, match="patches of 7 px do not fit into a level of 4 x 4 px"):
        patches(bytes_of(rng, 1, 3, 8, 8), rng, levels=2)
    with pytest.raises(ValueError, match="patches of 4 px"):
        patches(bytes_of(rng, 1, 3, 8, 8), rng, levels=1, side=4)


# MS-SSIM.


def test_ms_ssim_of_equal_images_is_1(rng):
    images = bytes_of(rng, 3, 3, 64, 64)

    torch.testing.assert_close(ms_ssim(images, images), torch.ones(3).double())


def test_ms_ssim_of_two_colours_is_their_luminance_at_the_coarsest_scale():
    """Contrast and structure agree where there are none."""
    a, b = (torch.full((1, 3, 176, 176), value, dtype=torch.uint8) for value in (60, 120))

    c1 = (0.01 * 255) ** 2
    luminance = (2 * 60 * 120 + c1) / (60**2 + 120**2 + c1)
    assert float(ms_ssim(a, b)) == pytest.approx(luminance**0.1333, rel=1e-9)


def test_ms_ssim_of_a_negative_is_0(rng):
    image = bytes_of(rng, 1, 1, 64, 64)

    assert float(ms_ssim(image, 255 - image)) == 0


def test_ms_ssim_of_pairs_does_not_depend_on_the_batch_or_the_order(rng):
    a = bytes_of(rng, 3, 3, 64, 64)
    b = (0.8 * a + 0.2 * bytes_of(rng, 3, 3, 64, 64)).to(torch.uint8)

    singly = torch.cat([ms_ssim(b[i : i + 1], a[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(ms_ssim(a, b), singly)


@pytest.mark.parametrize("shape", [(180, 176), (99, 67), (48, 35), (16, 16)])
def test_ms_ssim_agrees_with_a_reference_also_where_sizes_are_odd_or_small(rng, shape):
    """The window shrinks with the image, even sizes included; an odd last row repeats."""
    a = rng.randint(0, 256, size=shape).astype(np.uint8)
    b = (0.7 * a + 0.3 * rng.randint(0, 256, size=shape)).astype(np.uint8)

    value = ms_ssim(*(torch.from_numpy(x)[None, None] for x in (a, b)))
    assert float(value) == pytest.approx(reference_ms_ssim(a, b), rel=1e-9)


def reference_ms_ssim(a, b):
    x, y = a.astype(np.float64), b.astype(np.float64)
    weights = ms_ssim_module.WEIGHTS
    terms = []
    for _ in weights:
        size = min(11, *x.shape)
        kernel = np.outer(*[scipy.signal.windows.gaussian(size, size * 1.5 / 11)] * 2)
        kernel /= kernel.sum()

        def blur(z, kernel=kernel):
            return scipy.signal.convolve2d(z, kernel, mode="valid")

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        cs = (2 * cov + 58.5225) / (vx + vy + 58.5225)
        terms.append((cs * (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025), cs))
        half = np.ones((2, 2)) / 4
        x, y = (scipy.ndimage.convolve(z, half, mode="reflect")[::2, ::2] for z in (x, y))
    factors = [cs.mean() for _, cs in terms[:-1]] + [terms[-1][0].mean()]
    return math.prod(max(f, 0) ** w for f, w in zip(factors, weights, strict=True))


def test_images_too_small_for_five_scales_are_refused(rng):
    with pytest.raises(ValueError, match="8 x 32 px; MS-SSIM halves them 4 times"):
        ms_ssim(bytes_of(rng, 1, 3, 8, 32), bytes_of(rng, 1, 3, 8, 32))
