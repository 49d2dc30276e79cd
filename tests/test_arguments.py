"""Arguments of a wrong shape or value are refused by name, without the type checks of the tests."""

import math
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from stylegan import layers, losses, resample, sample
from stylegan.metrics import inception_score, kid, ms_ssim, ppl, precision_recall, separability, swd
from stylegan.metrics.features import FeatureMoments
from stylegan.networks import family, stylegan
from stylegan.projection import ProjectionConfig
from stylegan.reals import prepare_reals
from tests.networks import VARIANTS, networks


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", VARIANTS)
def test_generators_refuse_latents_ws_noise_and_labels_of_another_shape(name: str):
    G, _ = networks(name)
    rows, size, maps = G.layers(), G.config.w_size, len(G.noise_sides())

    refused(r"z has shape \(8,\), but G takes \[n, 8\]; pass latents of 8", lambda: G(zeros(8)))
    refused(r"z has shape \(2, 7\)", lambda: G(zeros(2, 7)))
    for shape in ((2, rows, size + 1), (2, size), (2, rows - 1, size), (2, 0, size)):
        refused(r"ws has ", lambda shape=shape: G.synthesis(zeros(*shape)))
    few = rf"ws has {rows + 1} rows, but G\.synthesis takes {rows}; pass one w for each layer"
    refused(few, lambda: G.synthesis(zeros(2, rows + 1, size)))
    refused(r"w has shape \(2, 3\), but G takes \[n, 8\]", lambda: G.broadcast(zeros(2, 3)))
    refused(
        rf"ws has shape \(2, {rows}, 5\), but G\.truncate takes \[n, l, 8\]",
        lambda: G.truncate(zeros(2, rows, 5), psi=0.5, cutoff=1),
    )
    refused("cutoff is -1", lambda: G.truncate(zeros(2, rows, size), psi=0.5, cutoff=-1))

    ws = G.broadcast(G.mapping(zeros(2, 8)))
    for noise in ([zeros(2, 1, 4, 4)] * (maps + 1), [zeros(2, 1, 4, 4)] * (maps - 1)):
        if noise:
            refused(
                rf"noise has {len(noise)} maps, but G\.synthesis takes {maps}",
                lambda noise=noise: G.synthesis(ws, noise=noise),
            )
    if maps:
        for shape in ((2, 1, 3, 3), (3, 1, 4, 4), (1, 4, 4), ()):
            noise = [zeros(*shape), *[zeros(2, 1, side, side) for side in G.noise_sides()[1:]]]
            refused(r"noise 0 has shape", lambda noise=noise: G.synthesis(ws, noise=noise))
        one = [zeros(1, 1, side, side) for side in G.noise_sides()]
        assert len(G.synthesis(ws, noise=one)) == 2, "one for all"

    refused(
        r"labels have shape \(2, 3\), but G was made without", lambda: G(zeros(2, 8), zeros(2, 3))
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_discriminators_refuse_images_and_labels_of_another_shape(name: str):
    _, D = networks(name)
    refused(r"images has shape \(3, 16, 16\), but D takes \[n, 3, 16", lambda: D(zeros(3, 16, 16)))
    refused("images are none at all; pass D one or more", lambda: D(zeros(0, 3, 16, 16)))
    labels = r"labels have shape \(2, 3\), but D was made without labels"
    refused(labels, lambda: D(zeros(2, 3, 16, 16), zeros(2, 3)))


@pytest.mark.parametrize("name", ["pggan", "stylegan", "stylegan2-skip-residual"])
def test_labels_are_one_for_each_image_and_of_the_size_of_the_network(name: str):
    G, D = networks(name, label_size=3)
    assert len(D(G(zeros(2, 8), zeros(2, 3)), zeros(2, 3))) == 2
    for labels in (zeros(5, 3), zeros(1, 3), zeros(2, 4), zeros(3)):
        refused(r"labels has shape .*, but G takes \[2, 3\]", lambda x=labels: G(zeros(2, 8), x))
        refused(
            r"labels has shape .*, but D takes \[2, 3\]",
            lambda x=labels: D(zeros(2, 3, 16, 16), x),
        )
    refused("G was made for labels of 3 components and got none", lambda: G(zeros(2, 8)))


@pytest.mark.parametrize("loss", [losses.d_logistic, losses.d_wgan, losses.d_hinge])
def test_logits_of_reals_and_fakes_are_as_many(loss):
    refused(
        rf"fake_logits has shape \(1, 1\), but {loss.__name__} takes \[4, 1\]; pass one logit",
        lambda: loss(zeros(4, 1), zeros(1, 1)),
    )


def _bytes(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def _truths(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


def _penalized(images: torch.Tensor, count: int) -> Callable[[], Any]:
    images.requires_grad_()
    logits = images.sum().expand(count, 1)
    return lambda: losses.gradient_penalty(logits, images, 1.0)


LOGITS = {
    losses.g_logistic_ns: "fake_logits",
    losses.g_logistic: "fake_logits",
    losses.g_wgan: "fake_logits",
    losses.g_hinge: "fake_logits",
    lambda logits: losses.d_logistic(logits, logits): "real_logits",
    lambda logits: losses.d_wgan(logits, logits): "real_logits",
    lambda logits: losses.d_hinge(logits, logits): "real_logits",
    lambda logits: losses.drift(logits, 1.0): "real_logits",
    lambda logits: losses.attribute(logits, _truths(4)): "logits",
}


@pytest.mark.parametrize(("loss", "name"), LOGITS.items())
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 1, 1)])
def test_losses_take_one_logit_for_each_image(loss, name: str, shape: tuple[int, ...]):
    refused(rf"^{name} has shape {re.escape(str(shape))}, but ", lambda: loss(zeros(*shape)))


PATH = (zeros(2, 3, 4, 4), zeros(2, 3, 5))
IMAGES = _bytes(2, 3, 8, 8)
PAIR = _bytes(2, 3, 64, 64)
SHAPES: list[tuple[str, Callable[[], Any]]] = [
    ("labels .* takes .4, 3.", lambda: losses.classes(zeros(4, 3), zeros(4, 2))),
    ("labels .* takes .4, 3.", lambda: losses.classes(zeros(4, 3), zeros(1, 3))),
    ("class_logits .* takes .n, k.", lambda: losses.classes(zeros(4), zeros(4))),
    ("has has .* takes .4.", lambda: losses.attribute(zeros(4, 1), _truths(3))),
    ("has is torch.float32", lambda: losses.attribute(zeros(4, 1), zeros(4))),
    ("logits .* takes .4, 1.", _penalized(zeros(4, 3, 8, 8), 2)),
    ("images .* takes .n, c, h, w.", _penalized(zeros(3, 8, 8), 3)),
    (
        "no gradient with respect to images",
        lambda: losses.gradient_penalty(zeros(4, 1), zeros(4, 3, 8, 8), 1.0),
    ),
    (
        "mixed .* wgan_gp takes .n, c, h, w.",
        lambda: losses.wgan_gp(zeros(3, 1), zeros(3, 8, 8), weight=1.0),
    ),
    ("noise .* takes .2, 3, 4, 4.", lambda: losses.path_lengths(*PATH, zeros(1, 3, 4, 4))),
    ("ws .* takes .2, l, w.", lambda: losses.path_lengths(PATH[0], zeros(2, 5), PATH[0])),
    ("images .* takes", lambda: losses.path_lengths(zeros(3, 4, 4), PATH[1], zeros(3, 4, 4))),
    (r"mean has .* takes \[\];", lambda: losses.path_factors(zeros(2), zeros(2), zeros(), 0.01)),
    ("images is torch.float32.*bytes", lambda: prepare_reals(zeros(2, 3, 8, 8), None, 0.0)),
    ("images .* sides that 2 divides", lambda: prepare_reals(_bytes(2, 3, 9, 9), None, 0.5)),
    ("images .* takes .n, c, h, w.", lambda: prepare_reals(_bytes(3, 8, 8), None, 0.5)),
    ("mirror .* takes .2.", lambda: prepare_reals(IMAGES, _truths(3), 0.0)),
    ("mirror is torch.uint8", lambda: prepare_reals(IMAGES, _bytes(2), 0.0)),
    (
        "group is 4 and features 2, .* divide the 3",
        lambda: layers.append_minibatch_stddev(zeros(4, 3, 4, 4), group=4, features=2),
    ),
    (
        "group is 0 and features 1",
        lambda: layers.append_minibatch_stddev(zeros(4, 3, 4, 4), group=0, features=1),
    ),
    (
        "x has .* takes .n, c, h, w.",
        lambda: layers.append_minibatch_stddev(zeros(4, 3), group=4, features=1),
    ),
    ("images .* sides that 2 divides", lambda: resample.box_down(zeros(1, 3, 5, 5))),
    ("images .* takes .n, c, h, w.", lambda: resample.box_down(zeros(3, 4, 4))),
    ("images .* takes .n, c, h, w.", lambda: resample.blocky_up(zeros(3, 4, 4))),
    (
        "layers are 3 to 8, .* have layers 0 to 3",
        lambda: sample.mix(zeros(1, 4, 8), zeros(1, 4, 8), layers=range(3, 9)),
    ),
    ("a has .* takes .n, l, w.", lambda: sample.mix(zeros(4, 8), zeros(4, 8), layers=range(1))),
    ("classes .* takes .n.", lambda: sample.one_hot(torch.zeros(1, 1).long(), 3)),
    ("images is torch.uint8", lambda: sample.to_uint8(IMAGES)),
    ("features .* takes .n, d.", lambda: FeatureMoments.of(zeros(9))),
    ("features .* takes .n, d.", lambda: FeatureMoments(9).update(zeros(9))),
    ("fakes .* takes .n, d.", lambda: kid.kid(zeros(9, 3), zeros(9))),
    (
        "reals .* takes .n, d.",
        lambda: precision_recall.precision_recall(zeros(9), zeros(9, 3)),
    ),
    ("probabilities .* takes .n, c.", lambda: inception_score.inception_score(zeros(9))),
    ("b has .* takes .2, 3, 64, 64.", lambda: ms_ssim.ms_ssim(PAIR, PAIR[:1])),
    ("a is torch.float32", lambda: ms_ssim.ms_ssim(PAIR.float(), PAIR.float())),
    ("b has .* takes .2, 3.", lambda: ppl.slerp(zeros(2, 3), zeros(3, 3), zeros(2, 1))),
    ("t has .* takes .2, 1.", lambda: ppl.slerp(zeros(2, 3), zeros(2, 3), zeros(2))),
    ("lengths .* takes .n.", lambda: ppl.trim(zeros(2, 1))),
    ("logits .* takes .9, a.", lambda: separability.separability(zeros(9, 3), zeros(8, 1))),
    (
        "a level of fakes .* takes .4, 3, 7, 7.",
        lambda: swd.swd([zeros(4, 3, 7, 7)], [zeros(1, 3, 7, 7)], np.random.RandomState(0)),
    ),
]


@pytest.mark.parametrize(("message", "call"), SHAPES)
def test_functions_name_the_argument_that_does_not_fit(message: str, call: Callable[[], Any]):
    refused(message, call)


def test_networks_take_floating_point():
    G, D = networks("stylegan")
    refused("z is torch.int64, but G takes floating", lambda: G(torch.zeros(2, 8).long()))
    refused("images is torch.uint8, but D takes floating", lambda: D(_bytes(2, 3, 16, 16)))


def test_styles_are_mixed_in_the_layers_that_are_named_and_no_others():
    mixed = sample.mix(zeros(1, 4, 8), zeros(1, 4, 8) + 1, layers=range(0, 4, 2))
    assert mixed[0, :, 0].tolist() == [1, 0, 1, 0]


def test_samples_are_made_one_or_more_at_a_time():
    G, _ = networks("stylegan")
    refused("batch is 0; choose 1 or more", lambda: sample.sample(G, [1], batch=0))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize(
    ("kind", "option"), [("stylegan", "mapping_lr_multiplier"), ("gan", "initial_range")]
)
def test_numbers_of_networks_are_finite_and_positive(kind: str, option: str, value: float):
    options = {"kind": kind, "resolution": 16, option: value}
    refused(rf"G\.{option} is {value}; .*choose", lambda: family.generator_config(options))


@pytest.mark.parametrize(
    "option", ["learning_rate", "ramp_up", "ramp_down", "perturbation", "perturbed"]
)
def test_numbers_of_projections_are_finite(option: str):
    refused(f"{option} of a projection is nan", lambda: ProjectionConfig(**{option: math.nan}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "stylegan", "fused_scale": "foo"}, "fused_scale is 'foo'; choose from auto, al"),
        ({"kind": "stylegan", "activation": "tanh"}, "activation is 'tanh'; choose from leaky_re"),
        ({"kind": "stylegan", "mapping_activation": "elu"}, "mapping_activation is 'elu'"),
        ({"kind": "stylegan2", "architecture": "foo"}, "architecture is 'foo'; choose from skip, "),
        ({"kind": "stylegan2", "resolution": 16.0}, r"resolution is 16\.0; choose a whole number"),
        ({"kind": "pggan", "fmap_base": "wide"}, "fmap_base is 'wide'; choose a whole number"),
        ({"kind": "stylegan", "use_noise": "no"}, "use_noise is 'no'; choose true or false"),
        ({"kind": "gan", "initial_range": "a"}, "initial_range is 'a'; choose a number"),
        ({"kind": "dcgan", "width": None}, "width is None; choose a whole number"),
    ],
)
def test_options_of_another_type_are_refused(options: dict[str, Any], message: str):
    def build() -> None:
        sample.build({"G": {"resolution": 16, **options}}, {})

    refused(rf"G\.{message}", build)


def test_whole_numbers_are_numbers():
    config = family.generator_config({"kind": "gan", "resolution": 1, "initial_range": 1})
    assert config.initial_range == 1


def test_samples_of_nothing_are_refused():
    G, _ = networks("stylegan")
    refused("there is no seed; give one or more", lambda: sample.sample(G, []))


def test_samples_have_one_label_each():
    G, _ = networks("stylegan", label_size=3)
    refused(
        "labels are 1, but seeds 2; give one label for each seed",
        lambda: sample.sample(G, [1, 2], labels=zeros(1, 3)),
    )
    G, _ = networks("stylegan")
    refused("G was made without labels", lambda: sample.sample(G, [1], labels=zeros(1, 3)))


def test_without_styles_there_is_one_w():
    config = stylegan.GeneratorConfig(
        resolution=8, fmap_max=4, z_size=4, w_size=4, use_styles=False, const_input=False
    )
    G = stylegan.Generator(config)
    assert G.synthesis(zeros(2, 1, 4)).shape == (2, 3, 8, 8)
    refused("ws has 4 rows, but G.synthesis takes 1", lambda: G.synthesis(zeros(2, 4, 4)))
