"""Networks as TensorFlow pickled them: where tensors go, and what is refused."""

import resource
from typing import Any

import numpy as np
import pytest
import torch

from stylegan.data_pickle import ArchiveError
from stylegan.official import tensorflow
from tests.official_pickles import Network, dumps
from tests.official_records import STYLE, STYLE2, network_of, options_of, pickled, read

BUILDS = {
    "-".join((*built_by, *map(str, options.values()))): (built_by, options, fields)
    for built_by, options, fields in [
        (("G_paper",), {"use_leakyrelu": False, "fused_scale": True}, {"activation": "relu"}),
        (("D_paper",), {"mbstd_group_size": 2}, {"mbstd_group": 2}),
        (
            ("G_style", "G_mapping", "G_synthesis"),
            {"fused_scale": "auto", "truncation_psi": 0.6, "dtype": "float32"},
            {},
        ),
        (
            ("G_style", "G_mapping", "G_synthesis"),
            {"fused_scale": True, "const_input_layer": False, "blur_filter": None},
            {"fused_scale": "always", "const_input": False, "blur": ()},
        ),
        (("D_basic",), {"fused_scale": True, "nonlinearity": "relu"}, {"activation": "relu"}),
        (
            ("G_main", "G_mapping", "G_synthesis_stylegan2"),
            {"architecture": "resnet", "resample_kernel": [1, 2, 1]},
            {"architecture": "residual", "fir": (1, 2, 1)},
        ),
        (
            ("G_main", "G_mapping", "G_synthesis_stylegan2"),
            {"fused_modconv": True, "mapping_nonlinearity": "relu"},
            {"mapping_activation": "relu"},
        ),
        (
            ("G_main", "G_mapping", "G_synthesis_stylegan_revised"),
            {"synthesis_func": "G_synthesis_stylegan_revised"},
            {},
        ),
        (("D_stylegan2",), {"architecture": "skip"}, {"architecture": "skip"}),
        (("D_stylegan2",), {"architecture": "orig"}, {"architecture": "plain"}),
        (("D_stylegan",), {"structure": "recursive"}, {}),
    ]
}


def test_every_build_function_is_tested():
    assert {built_by for built_by, _, _ in BUILDS.values()} == set(tensorflow.BUILDS)


@pytest.mark.parametrize(("built_by", "options", "fields"), BUILDS.values(), ids=BUILDS)
def test_a_network_that_tensorflow_pickled_is_the_one_it_was(built_by, options, fields):
    build = tensorflow.BUILDS[built_by]
    expected = network_of(build, **fields)
    record = pickled(expected, built_by, static_kwargs=options_of(build, **options))
    name = "Gs" if build.generator else "D"

    found = read((record, record, record), name)

    assert found.network.config == expected.config
    assert list(found.network.state_dict()) == list(expected.state_dict())
    for key, tensor in found.network.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[key]), key
    psi = options.get("truncation_psi", build.truncation[0])
    assert (found.facts["truncation_psi"], found.facts["truncation_cutoff"]) == (
        psi,
        build.truncation[1],
    )


def test_progressive_gan_as_the_repository_of_stylegan_pickled_it():
    build = tensorflow.BUILDS["G_paper",]
    expected, options = network_of(build), options_of(build, latent_size=None)

    records = [
        pickled(expected, ("G_paper",), original=original, static_kwargs=options)
        for original in (True, False)
    ]

    for record, name in zip(records, ("tfutil", "dnnlib"), strict=True):
        assert name.encode() in dumps(record)
        found = read((record,) * 3, "Gs").network.state_dict()
        torch.testing.assert_close(found, expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("lod", [7, -1, np.nan])
def test_a_lod_that_the_network_does_not_have_is_refused(lod: float):
    build = tensorflow.BUILDS["D_basic",]
    record = pickled(network_of(build), ("D_basic",), static_kwargs=options_of(build))
    record.state["variables"][0] = ("lod", np.float32(lod))
    with pytest.raises(ValueError, match="networks of 16 px have 0"):
        read((None, record, None), "D")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_size": 2**31}, r"larger than any official one: \d+ bytes"),
        ({"latent_size": 2**40, "dlatent_size": 2**40}, "larger than any official one"),
        ({"latent_size": 2**70}, "larger than any official one, which cannot be made"),
        ({"mapping_layers": 2**40}, "of 1099511627781 layers"),
        ({"resolution": 2**15}, r"larger than any official one: \d+ bytes"),
        ({"resolution": 2**30}, r"larger than any official one: \d+ bytes"),
        ({"resolution": 2**200}, "of 204 layers"),
        ({"blur_filter": [1] * 200}, "with filters of 200 taps"),
        ({"resolution": 2**13, "mapping_fmaps": 2**13}, "1024x1024/Conv0_up/Noise/weight is miss"),
    ],
)
def test_options_beyond_all_networks_take_no_memory(options: dict[str, Any], message: str):
    """The last of them is a network of 2 GB, which is not made for a file that has it not."""
    build = tensorflow.BUILDS[STYLE]
    record = pickled(network_of(build), STYLE, static_kwargs=options_of(build, **options))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ValueError, match=message):
        read((record,) * 3, "Gs")

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000, "kilobytes"


@pytest.mark.parametrize(
    ("built_by", "options", "expected"),
    [
        (STYLE, {}, (0.7, None)),  # 8 of 6 layers
        (STYLE, {"truncation_cutoff": 3}, (0.7, 3)),
        (STYLE, {"truncation_psi": np.float32(0.5), "truncation_cutoff": 4}, (0.5, 4)),
        (STYLE, {"truncation_psi": None}, (1.0, None)),
        (STYLE, {"truncation_cutoff": None}, (1.0, None)),
        (STYLE2, {}, (0.5, None)),
        (STYLE2, {"truncation_cutoff": 2}, (0.5, 2)),
        (STYLE2, {"truncation_psi": None}, (1.0, None)),
        (("G_paper",), {}, (None, None)),
    ],
)
def test_truncation_is_what_the_official_code_does_by_itself(built_by, options, expected):
    """Without a cutoff StyleGAN truncates nothing, and StyleGAN2 all layers."""
    build = tensorflow.BUILDS[built_by]
    record = pickled(network_of(build), built_by, static_kwargs=options_of(build, **options))
    found = read((record,) * 3, "Gs")
    assert (found.psi, found.cutoff) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation_psi": "strong"}, "truncation_psi='strong'; it must be a finite number"),
        ({"truncation_psi": float("nan")}, "truncation_psi=nan"),
        ({"truncation_cutoff": -1}, "truncation_cutoff=-1; it must be 0 or more"),
        ({"truncation_cutoff": 1.5}, r"truncation_cutoff=1\.5"),
    ],
)
def test_truncation_by_no_number_is_refused(options, message):
    build = tensorflow.BUILDS[STYLE]
    record = pickled(network_of(build), STYLE, static_kwargs=options_of(build, **options))
    with pytest.raises(ValueError, match=message):
        read((record,) * 3, "Gs")


@pytest.mark.parametrize("growing", [True, False])
def test_the_lod_of_a_network_that_grows_comes_along(growing: bool):
    built_by = ("D_basic",) if growing else ("D_stylegan2",)
    build = tensorflow.BUILDS[built_by]
    record = pickled(network_of(build), built_by, static_kwargs=options_of(build))
    record.state["variables"][0] = ("lod", np.float32(1.5))

    assert read((None, record, None), "D").lod == (1.5 if growing else 0)


@pytest.mark.parametrize(
    ("built_by", "options", "message"),
    [
        (STYLE, {"fmap_decay": 2.0}, r"option fmap_decay=2\.0, but stylegan has only fmap_decay=1"),
        (STYLE, {"use_capsules": True}, "option use_capsules=True, but stylegan has no such"),
        (STYLE, {"nonlinearity": "swish"}, "has the activation 'swish'; networks here have leaky"),
        (STYLE, {"resolution": 32}, "G_synthesis/32x32/Conv0_up/Noise/weight is missing"),
        (STYLE, {"dlatent_size": 6}, r"Dense2/bias is \[7\] instead of \[6\]"),
        (STYLE, {"resolution": "wide"}, r"no network of the official code|G\.resolution is 'wide'"),
        (("G_paper",), {"normalize_latents": False}, "only normalize_latents=True"),
        (("D_paper",), {"fused_scale": False}, "only fused_scale=True"),
        (("D_stylegan2",), {"architecture": "spiral"}, "no network of the official|'spiral'"),
    ],
)
def test_options_that_networks_here_do_not_have_are_refused(built_by, options, message):
    build = tensorflow.BUILDS[built_by]
    record = pickled(network_of(build), built_by, static_kwargs=options_of(build, **options))

    with pytest.raises(ValueError, match=message):
        read((record,) * 3, "G" if build.generator else "D")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build_func_name": "D_main"}, "built by D_main, but those .* G_paper; D_paper; G_style"),
        ({"build_func_name": None}, "build_func_name of a network is NoneType, not str"),
        ({"static_kwargs": [1]}, "static_kwargs of a network is list"),
        ({"variables": []}, "do not fit D .*: 16x16/Conv0/bias is missing, .* \\.\\.\\."),
        ({"variables": [("lod", "high")]}, "variable lod is str, not an array"),
        ({"variables": [7]}, "is int, not an array"),
        ({"components": {"mapping": 3}}, "part mapping of a network is int"),
        ({"components": {"third": Network({})}}, "parts of a network are .'third'., not mapping"),
        ({"components": {1: 2, "a": 3}}, "parts of a network are .1, 'a'., not mapping"),
        ({"components": [1]}, "components of a network is list, not dict"),
        ({"components": None}, "components of a network is NoneType, not dict"),
        ({"variables": [("a", 1, 2)]}, "is tuple, not an array"),
        ({"variables": [("a", [[1], [2]])]}, "variable a is list, not an array"),
        ({"variables": [("lod", np.float32(7))]}, "do not fit D"),
        ({"static_kwargs": {1: 2}}, "an option of a network is a int, not a name"),
        ({"static_kwargs": {}}, r"no network of the official code \(TypeError\)"),
    ],
)
def test_records_that_are_no_network_of_ours_are_refused(changes, message):
    build = tensorflow.BUILDS["D_basic",]
    record = pickled(network_of(build), ("D_basic",), static_kwargs=options_of(build))
    record.state.update(changes)

    with pytest.raises(ValueError, match=message):
        read((record,) * 3, "D")


@pytest.mark.parametrize("tree", [[], {}, {"G_ema": 5}, (1, 2, 3), "text", None])
def test_a_pickle_without_networks_is_refused(tree):
    with pytest.raises(ArchiveError, match="without Gs; official snapshots hold"):
        read(tree, "Gs")


def test_a_discriminator_in_the_place_of_a_generator_is_refused():
    build = tensorflow.BUILDS["D_basic",]
    record = pickled(network_of(build), ("D_basic",), static_kwargs=options_of(build))
    with pytest.raises(ArchiveError, match="has a D in the place of Gs"):
        read((record,) * 3, "Gs")
