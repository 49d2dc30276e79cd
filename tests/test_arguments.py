"""Arguments of a wrong shape or value are refused by name, without the type checks of the tests."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch

from stylegan import losses, sample
from stylegan.networks import family, stylegan
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
        r"real_logits have shape \(4, 1\) and fake_logits \(1, 1\)",
        lambda: loss(zeros(4, 1), zeros(1, 1)),
    )


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
