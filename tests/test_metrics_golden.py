"""Metrics against the official ones, array by array (MANIFEST, sets G1 to G6).

Each expected array belongs to the one check whose pattern matches its key; one that no pattern
matches fails. FID, KID and moments are compared in tests/test_metrics.py.
"""

import functools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan.metrics import ppl, separability
from stylegan.metrics.inception_score import inception_score
from stylegan.metrics.ms_ssim import ms_ssim
from stylegan.metrics.precision_recall import memberships, precision_recall, squared_radii
from stylegan.metrics.swd import laplacian_pyramid, patches, swd
from stylegan.networks.stylegan import Generator, GeneratorConfig
from stylegan.resample import blocky_up
from tests import goldens, official_names

Check = Callable[..., None]

CHECKS: dict[str, Check] = {}
"""By pattern of set and key, as `subject_of` joins them."""
IN_TEST_METRICS = (
    r"G1 out/[^/]+/(fid_f64|fid_same_f64|mu_real|sigma_real_f64)",
    r"G5 out/(fid_f64|kid_seed\d+_f64)",
)


def checks(pattern: str) -> Callable[[Check], Check]:
    """Register a check, which gets the set, the key and the groups of the pattern."""

    def register(check: Check) -> Check:
        CHECKS[pattern] = check
        return check

    return register


def expected_keys() -> list[tuple[str, str]]:
    names = goldens.sets("G[1-6]_*")
    return [(name, k) for name in names for k in goldens.arrays(name) if k.startswith("out/")]


def subject_of(name: str, key: str) -> str:
    """What patterns are matched with: `G1 out/full_rank/fid_f64`."""
    return f"{name[:2]} {key}"


@pytest.mark.parametrize(("name", "key"), expected_keys())
def test_golden_metric_array(name: str, key: str):
    subject = subject_of(name, key)
    if any(re.fullmatch(pattern, subject) for pattern in IN_TEST_METRICS):
        return
    found = [(c, m) for pattern, c in CHECKS.items() if (m := re.fullmatch(pattern, subject))]
    assert len(found) == 1, f"{len(found)} checks for {subject}"
    ((check, match),) = found
    check(name, key, *match.groups())


def tensor(name: str, key: str) -> Tensor:
    return torch.from_numpy(goldens.arrays(name)[key])


def expected(name: str, key: str) -> np.ndarray:
    return goldens.arrays(name)[key]


def number_said(name: str, key: str, pattern: str) -> int:
    return int(goldens.said(name, key, pattern))


# G2: perceptual path length.


@checks(r"G2 out/(slerp|slerp_eps|lerp)")
def check_interpolation(name: str, key: str, kind: str):
    a, b, t = (tensor(name, f"in/slerp_{part}") for part in "abt")
    if kind.endswith("_eps"):
        t = t + float(goldens.said(name, key, r"t\+([\d.e-]+)"))
    interpolate = ppl.lerp if kind == "lerp" else ppl.slerp

    goldens.assert_close(interpolate(a, b, t), expected(name, key), 2e-6, key)


@checks(r"G2 out/(z|w)_(full|end)_eps([\d.e-]+)/(distances|ppl_f64)")
def check_path_length(name: str, key: str, space: str, sampling: str, epsilon: str, what: str):
    """Notes of G2: float32 loses 3 digits at epsilon 1e-4."""
    lengths = golden_path_lengths(name, space, sampling, float(epsilon))
    coarse = float(epsilon) < 1e-3

    if what == "distances":
        rtol = 0.05 if coarse else 1e-3
        np.testing.assert_allclose(lengths, expected(name, key), rtol=rtol)
    else:
        rtol = 0.01 if coarse else 1e-3
        assert ppl.perceptual_path_length(lengths) == pytest.approx(expected(name, key), rel=rtol)


@functools.cache
def golden_path_lengths(name: str, space: ppl.Space, sampling: str, epsilon: float) -> Tensor:
    entry = goldens.entry(name)
    kwargs = entry["static_kwargs"]["G"]
    G = Generator(GeneratorConfig(**official_names.options(kwargs)))
    tensors = G.state_dict()
    shapes = {
        f"G/{theirs}": official_names.official_shape(theirs, tensors[ours])
        for ours, theirs in official_names.names(G).items()
    }
    lrmul = kwargs.get("mapping_lrmul", 0.01)
    variables = goldens.from_recipe(shapes, {}, entry["seeds"]["variables"], lrmul_mapping=lrmul)
    G = official_names.generator(kwargs, goldens.under(variables, "G/"))
    t = tensor(name, "in/lerp_t_full")
    return ppl.path_lengths(
        tensor(name, "in/lat_t01"),
        t if sampling == "full" else torch.zeros_like(t),
        mapping=lambda z, labels: G.broadcast(G.mapping(z, labels)),
        synthesis=G.synthesis,
        distance=lambda a, b: (a - b).square().mean(dim=(1, 2, 3)) / 1000,
        config=ppl.PathConfig(space=space, epsilon=epsilon),
    )


@checks(r"G2 out/(trim\d+)_f64")
def check_trimming(name: str, key: str, case: str):
    kept = ppl.trim(tensor(name, f"in/{case}"))
    lower, upper, count, mean = expected(name, key)

    assert (float(kept.min()), float(kept.max()), len(kept)) == (lower, upper, count)
    assert ppl.perceptual_path_length(tensor(name, f"in/{case}")) == pytest.approx(mean, rel=1e-6)


def golden_crops() -> list[tuple[str, int]]:
    return [(n, int(side)) for n in goldens.sets("G2_*") for side in goldens.entry(n)["crop"]]


@pytest.mark.parametrize(("name", "side"), golden_crops())
def test_golden_crop_and_reduction(name: str, side: int):
    """An image of its own coordinates shows which of them are averaged."""
    at = torch.arange(side).float()
    seen = ppl.view(torch.stack(torch.meshgrid(at, at, indexing="ij"))[None]) / 127.5 - 1

    crop = goldens.entry(name)["crop"][str(side)]
    factor = crop["box_downsample_factor"]
    ranges = [np.arange(*crop[axis], dtype=float) for axis in ("rows", "cols")]
    assert [len(coordinates) for coordinates in ranges] == [crop["size_after_crop"]] * 2
    rows, columns = (coordinates.reshape(-1, factor).mean(axis=1) for coordinates in ranges)
    np.testing.assert_allclose(seen[0], np.meshgrid(rows, columns, indexing="ij"), rtol=1e-5)


# G3: linear separability.


@checks(r"G3 out/(conditional_entropy|mutual_information)_f64")
def check_entropy_of_given_joints(name: str, key: str, function: str):
    values = [getattr(separability, function)(joint) for joint in tensor(name, "in/confusion")]

    np.testing.assert_allclose(values, expected(name, key), rtol=0, atol=1e-6)


@checks(r"G3 out/confusions")
def check_confusions(name: str, key: str):
    """Notes of G3: another solver may put a sample or two on the other side."""
    keep = goldens.entry(name)["num_keep"]
    images = np.stack(golden_confusions(name)) * keep

    np.testing.assert_allclose(images, expected(name, key) * keep, rtol=0, atol=2.01)
    labels = expected(name, key).sum(axis=1) * keep
    np.testing.assert_allclose(images.sum(axis=1), labels, rtol=0, atol=1e-3)


@checks(r"G3 out/entropies_f64")
def check_entropies(name: str, key: str):
    given = [separability.conditional_entropy(joint) for joint in tensor(name, "out/confusions")]
    own = [separability.conditional_entropy(joint) for joint in golden_confusions(name)]

    np.testing.assert_allclose(given, expected(name, key), rtol=0, atol=1e-6)
    np.testing.assert_allclose(own, expected(name, key), rtol=0.02, atol=1e-6)


@checks(r"G3 out/score_(z|w)_f64")
def check_separability(name: str, key: str, space: str):
    latents = tensor(name, "in/latents" if space == "z" else "in/dlatents")
    keep = goldens.entry(name)["num_keep"]
    score = separability.separability(latents, tensor(name, "in/logits"), keep=keep)

    assert score == pytest.approx(float(expected(name, key)), rel=0.05)


@functools.cache
def golden_confusions(name: str) -> list[Tensor]:
    """In the order of the set: attribute 0 in z, attribute 0 in w, attribute 1 in z ..."""
    keep = goldens.entry(name)["num_keep"]
    return [
        separability.confusion(tensor(name, key), logits, keep=keep)
        for logits in tensor(name, "in/logits").unbind(dim=1)
        for key in ("in/latents", "in/dlatents")
    ]


# G4 and G5: precision and recall, Inception score.


@checks(r"G[45] out/(?:pr_)?exact_k(\d+)_f64")
def check_precision_and_recall(name: str, key: str, k: str):
    values = precision_recall(tensor(name, "in/real"), tensor(name, "in/fake"), k=int(k))

    np.testing.assert_allclose(values, expected(name, key), rtol=1e-12)


@checks(r"G[45] out/(?:tf|pr)_fp16_k(\d+)_f64")
def check_precision_and_recall_of_half_precision(name: str, key: str, k: str):
    """MANIFEST section 8: the official distances in float16 give the exact value to about 0.01."""
    reals, fakes = tensor(name, "in/real"), tensor(name, "in/fake")
    values = precision_recall(reals, fakes, k=int(k))

    one_image = 1 / min(len(reals), len(fakes))
    np.testing.assert_allclose(values, expected(name, key), rtol=0, atol=0.01 + one_image)


@checks(r"G4 out/exact_k(\d+)_(precision|recall)_mask")
def check_membership(name: str, key: str, k: str, which: str):
    manifold, points = tensor(name, "in/real"), tensor(name, "in/fake")
    if which == "recall":
        manifold, points = points, manifold
    balls, _ = memberships(points, manifold, squared_radii(manifold, k=int(k)))

    np.testing.assert_array_equal(balls > 0, expected(name, key))


@checks(r"G[45] out/is_splits(\d+)_f64")
def check_inception_score(name: str, key: str, splits: str):
    values = inception_score(tensor(name, "in/probs"), splits=int(splits))

    goldens.assert_close(values, expected(name, key), 1e-5, key)


# G6: sliced Wasserstein distance and MS-SSIM.


@checks(r"G6 out/pyramid_a_(\d+)")
def check_pyramid(name: str, key: str, level: str):
    image = tensor(name, "in/a_u8")[: len(expected(name, key))].float()
    levels = 1 + max(
        int(m[1])
        for other in goldens.arrays(name)
        if (m := re.fullmatch(r"out/pyramid_a_(\d+)", other))
    )
    pyramid = laplacian_pyramid(image, levels)
    goldens.assert_close(pyramid[int(level)], expected(name, key), 1e-6, key)


@checks(r"G6 out/swd_x1e3")
def check_swd(name: str, key: str):
    rng = np.random.RandomState(goldens.entry(name)["seeds"]["numpy_global"])
    side = number_said(name, key, r"(\d+)x\d+ patches")
    count = number_said(name, key, r"(\d+) per image")
    a, b = (
        patches(images, rng, levels=len(expected(name, key)), count=count, side=side)
        for images in (tensor(name, "in/a_u8"), tensor(name, "in/b_u8"))
    )
    repeats = number_said(name, key, r"(\d+) repeats")
    directions = number_said(name, key, r"repeats x (\d+)")
    distances = swd(a, b, rng, repeats=repeats, directions=directions)

    np.testing.assert_allclose(np.multiply(distances, 1e3), expected(name, key), rtol=1e-5)


@checks(r"G6 out/ms_ssim(_noisy)?")
def check_ms_ssim(name: str, key: str, noisy: str | None):
    factor = number_said(name, key, r"(\d+)x nearest")
    a, b = tensor(name, "in/a_u8"), tensor(name, "in/b_u8")
    if noisy:
        b = tensor(name, "in/a_noisy_u8_nhwc").permute(0, 3, 1, 2)
    a, b = (blocky_up(images, factor) for images in (a.float(), b.float()))
    values = ms_ssim(a.to(torch.uint8), b.to(torch.uint8))

    assert float(values.mean()) == pytest.approx(float(expected(name, key)), rel=1e-5)
