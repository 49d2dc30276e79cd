"""Metrics beside FID and KID: what they look at, share and lack, and how they go on."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from pipeline import estimators, features, probes, weights
from pipeline.evaluate import evaluate
from pipeline.fakes import FakeSource
from pipeline.metric import PATCHES, parse
from pipeline.tasks import UnfitError, plan_batches
from stylegan.draws import Draws, Purpose
from stylegan.metrics.inception import probabilities
from stylegan.metrics.inception_score import inception_score
from stylegan.metrics.lpips import LPIPS
from stylegan.metrics.ms_ssim import ms_ssim
from stylegan.metrics.ppl import PathConfig, path_lengths, perceptual_path_length
from stylegan.metrics.precision_recall import density_coverage, precision_recall
from stylegan.sample import to_uint8
from tests.measured import SMALL, fakes_task, random_features, values

NETWORK = "lpips-vgg16"


QUICK = dataclasses.replace(SMALL, crop=False)


@pytest.fixture
def logits(tmp_path, monkeypatch):
    """A folder of weights with logits, whose digest nobody knows; the weights of the classes."""
    matrix = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(0))
    torch.save({"output.weight": matrix}, tmp_path / "inception-2015-12-05.pt")
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    return matrix


def wide(function, tasks):
    """Features as wide as Inception's, at once; those of patches are real."""
    for task in tasks:
        rows = sum(map(len, task.batches))
        yield tuple(
            np.random.RandomState(len(function.__name__)).rand(rows, 2048).astype(np.float32)
            for _ in task.extractors
        )


# Names.


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("fid", ["fid300"]),
        ("fid50k_mix2", ["fid50k_mix2"]),
        ("pr", ["precision300", "recall300"]),
        ("fid50k_cleanfid_mix2", ["fid50k_cleanfid_mix2"]),
        ("pr10k_vgg16", ["precision10k_vgg16", "recall10k_vgg16"]),
        ("dc", ["density300", "coverage300"]),
        ("is5k", ["is5k", "is5k_std"]),
        ("ppl_wend", ["ppl300_wend"]),
        ("ppl100k_zfull", ["ppl100k_zfull"]),
        ("ppl_wend_alexnet", ["ppl300_wend_alexnet"]),
        ("ls200k", ["ls200k_z", "ls200k_w"]),
        ("msssim", ["msssim300"]),
    ],
)
def test_a_name_says_what_is_measured_of_how_many_images(name, names):
    metric = parse(name, 300)

    assert list(metric.names) == names
    assert parse(name, metric.count) == metric


# What metrics that compare sets share.


def test_metrics_of_images_share_one_sampling_and_are_those_of_its_features(
    checkpoint, data, logits, monkeypatch
):
    monkeypatch.setattr(estimators, "NEIGHBOUR", 2)
    asked = ("fid", "kid8", "pr", "dc", "is", "fid_mix2")
    calls = []

    def counting(function, tasks):
        calls.append((function.__name__, [getattr(t, "mixed", 0) for t in tasks]))
        return wide(function, tasks)

    found = evaluate(checkpoint, data, dataclasses.replace(SMALL, metrics=asked), map=counting)

    # Real images are as many as generated ones, so kid8 takes others than the rest.
    assert [name for name, _ in calls] == [
        *["real_features"] * 2,
        "fake_features",
        "real_features",
        "fake_features",
    ]
    assert [mixed for name, mixed in calls if name == "fake_features"] == [[1] * 3, [2] * 3]
    names = ["fid10", "kid8", "precision10", "recall10", "density10", "coverage10", "is10"]
    assert [result.name for result in found] == [*names, "is10_std", "fid10_mix2"]
    tasks = [fakes_task(checkpoint, data, batches=(b,)) for b in plan_batches(10, 4)]
    reals, fakes = (
        torch.from_numpy(np.concatenate([rows for (rows,) in wide(function, tasks)]))
        for function in (features.real_features, features.fake_features)
    )
    got = values(found)
    assert (got["precision10"], got["recall10"]) == precision_recall(reals, fakes, k=2)
    assert (got["density10"], got["coverage10"]) == density_coverage(reals, fakes, k=5)
    expected = inception_score(probabilities(fakes, logits), splits=10)
    assert (got["is10"], got["is10_std"]) == pytest.approx(expected)
    assert got["fid10_mix2"] == got["fid10"], "of features that see nothing"
    by_name = {result.name: result for result in found}
    assert by_name["precision10"].fingerprint["better"] == "higher"
    assert by_name["precision10"].sign == -1
    assert by_name["fid10_mix2"].fingerprint["mixed"].startswith("2 latents")
    assert json.loads(json.dumps(by_name["is10"].fingerprint)) == by_name["is10"].fingerprint


def test_a_metric_without_its_network_is_left_out_in_one_line_and_the_others_are_not(
    checkpoint, data, caplog, tmp_path, monkeypatch
):
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    asked = ("fid", "is", "pr_vgg16", "ls", "kid")

    found = evaluate(
        checkpoint, data, dataclasses.replace(SMALL, metrics=asked), map=random_features
    )

    assert [result.name for result in found] == ["fid10", "kid10"]
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" left out")[0] for line in lines] == [
        "is10",
        "precision10_vgg16",
        "ls10_z",
    ]
    for line, words in zip(
        lines, ["fetch inception-2015-12-05-logits", "fetch vgg16", "celebahq"], strict=True
    ):
        assert words in line
        assert "\n" not in line


# Mixing.


def test_mixed_images_take_their_latents_in_order_and_change_at_distinct_layers(checkpoint, data):
    source = FakeSource(fakes_task(checkpoint, data, mixed=3))
    indices = torch.arange(200)
    mixture = source._mixture(indices)

    layers = source.Gs.layers()
    assert mixture.shape == (200, layers)
    assert (mixture[:, 0] == 0).all()
    assert (mixture[:, -1] == 2).all()
    changes = mixture.diff(dim=1)
    assert set(changes.unique().tolist()) == {0, 1}
    # Any two of the places, about equally often.
    places = [tuple(row.nonzero()[:, 0].tolist()) for row in changes]
    assert set(places) == set(itertools.combinations(range(layers - 1), 2))
    one = source._mixture(indices[7:8])
    assert torch.equal(one, mixture[7:8]), "whatever images are beside it"


def test_the_first_latent_of_mixed_images_is_that_of_plain_ones(checkpoint, data):
    plain, mixed = (FakeSource(fakes_task(checkpoint, data, mixed=n)) for n in (1, 2))
    indices = torch.arange(5)

    ws, others = plain.styles(indices, None), mixed.styles(indices, None)

    assert torch.equal(ws[:, 0], others[:, 0])
    assert not torch.equal(ws[:, -1], others[:, -1])
    z = Draws(seed=0).normal(Purpose.EVAL_Z, indices=indices, count=16)[:, 8:]
    torch.testing.assert_close(others[:, -1], plain.Gs.mapping(z, None))


def test_more_latents_than_layers_cannot_be_mixed(checkpoint, data):
    most, too_many = (FakeSource(fakes_task(checkpoint, data, mixed=n)) for n in (6, 7))

    assert most._mixture(torch.arange(1)).tolist() == [[0, 1, 2, 3, 4, 5]]
    with pytest.raises(UnfitError, match="7 latents cannot be mixed: the network has 6"):
        too_many.styles(torch.arange(2), None)


# Path lengths, similarities, attributes.


@pytest.mark.parametrize("name", ["ppl_wend", "ppl_zfull"])
def test_path_lengths_are_those_of_keyed_pairs_with_equal_noise(checkpoint, data, name):
    (found,) = evaluate(checkpoint, data, dataclasses.replace(QUICK, metrics=(name,)))

    metric = parse(name, 10)
    source = FakeSource(fakes_task(checkpoint, data))
    z = Draws(seed=0).normal(Purpose.EVAL_Z, indices=torch.arange(20), count=8)
    t = Draws(seed=0).uniform(Purpose.EVAL_PATH, indices=torch.arange(10), count=1)[:, 0]
    lengths = path_lengths(
        z,
        t * (metric.sampling == "full"),
        mapping=lambda z, labels: source.Gs.broadcast(source.Gs.mapping(z, labels)),
        synthesis=lambda ws: source.images(ws, torch.arange(10), each=2),
        distance=LPIPS(weights.load(NETWORK), net="vgg16"),
        config=PathConfig(space=metric.space, crop=False),
    )
    assert found.name == metric.names[0]
    assert found.value == pytest.approx(perceptual_path_length(lengths), rel=1e-3)
    assert found.fingerprint["epsilon"] == 1e-4
    assert found.fingerprint["crop"] is False
    assert "reals" not in found.fingerprint
    assert found.fingerprint["psi"] == 1.0


def test_path_lengths_of_the_real_network_are_equal_in_any_order_of_tasks(checkpoint, data):
    config = dataclasses.replace(QUICK, metrics=("ppl_wend",))

    def last_first(function, tasks):
        return reversed([function(task) for task in reversed(tasks)])

    (found,) = evaluate(checkpoint, data, config)
    assert values([found]) == values(evaluate(checkpoint, data, config, map=last_first))
    assert found.fingerprint["network"] == NETWORK
    assert found.value > 0


def test_images_too_small_for_lpips_leave_path_lengths_out(checkpoint, data, caplog):
    asked = dataclasses.replace(SMALL, metrics=("ppl_wend", "msssim"))

    found = evaluate(checkpoint, data, asked)

    assert [result.name for result in found] == ["msssim10"]
    assert "ppl10_wend left out: images are" in caplog.text
    assert "of at least 16" in caplog.text


def test_similarity_is_the_mean_over_pairs_of_neighbours(checkpoint, data):
    (found,) = evaluate(checkpoint, data, dataclasses.replace(SMALL, metrics=("msssim",)))

    source = FakeSource(fakes_task(checkpoint, data))
    indices = torch.arange(20)
    images = to_uint8(source.images(source.styles(indices, None), indices))
    expected = float(ms_ssim(images[0::2], images[1::2]).mean())
    assert found.value == pytest.approx(expected, rel=1e-5)


def test_patches_are_drawn_by_batch_and_give_swd(checkpoint, data):
    asked = dataclasses.replace(SMALL, metrics=("swd",))

    found = evaluate(checkpoint, data, asked)

    assert [result.name for result in found] == ["swd10", "swd10_16px"]
    assert found[0].value == found[1].value > 0
    assert found[0].fingerprint["network"] == PATCHES
    assert values(found) == values(evaluate(checkpoint, data, asked))


# Going on, and keeping.


class StoppedError(Exception):
    """A kill, at some task."""


@pytest.mark.parametrize("compared", ["kid", "fid"])
def test_an_evaluation_that_was_stopped_goes_on_where_it_was(checkpoint, data, tmp_path, compared):
    """With 10 batches of 2 it is stopped in the middle of the fakes, then of the paths."""
    config = dataclasses.replace(
        QUICK, metrics=(compared, "ppl_wfull"), num_images=20, batch=2, num_reals=4
    )
    expected = values(evaluate(checkpoint, data, config, map=seeded))
    url, done = str(tmp_path / "cache"), []

    def until(stop):
        def fan_out(function, tasks):
            for task in tasks:
                if len(done) == stop:
                    raise StoppedError
                done.append((function.__name__, task.batches))
                yield from seeded(function, [task])

        return fan_out

    for stop in (2 + 6, 2 + 10 + 6):
        with pytest.raises(StoppedError):
            evaluate(checkpoint, data, config, cache_url=url, map=until(stop))
    found = evaluate(checkpoint, data, config, cache_url=url, map=until(-1))

    assert values(found) == expected
    assert len(done) == len(set(done)) == 2 + 10 + 10, "nothing was computed twice"
    assert len([*(tmp_path / "cache").iterdir()]) == 1, "only features of the reals stay"


def seeded(function, tasks):
    """Real path lengths; features that depend on the batch alone."""
    for task in tasks:
        if function is probes.path_steps:
            yield function(task)
        else:
            rng = np.random.RandomState(task.batches[0].start)
            yield (rng.rand(sum(map(len, task.batches)), 32).astype(np.float32),)
