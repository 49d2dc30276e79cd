"""Evaluation: equal values however they are computed, fingerprints, caches, what can go wrong."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from data_prep.manifest import DigestError, Manifest
from pipeline import bundle as bundles
from pipeline import estimators, features, metric, weights
from pipeline.checkpoint import Checkpoints
from pipeline.estimators import Rows
from pipeline.evaluate import EvaluationConfig, evaluate
from pipeline.metric import comparable
from pipeline.tasks import RealsTask
from stylegan import sample
from stylegan.metrics.features import FeatureMoments
from stylegan.metrics.fid import fid
from stylegan.metrics.kid import kid, kid_of_subsets, subsets
from tests.measured import (
    RESOLUTION,
    SMALL,
    commit,
    evaluate_quickly,
    fakes_task,
    generator,
    random_features,
    values,
)
from tests.test_inception import image

ROOT = Path(features.__file__).parents[1]
INCEPTION_FILE = weights.KNOWN["inception-2015-12-05"].sources[0].files[0]


def test_fid_and_kid_are_those_of_the_features_of_all_images(checkpoint, data, results, cache):
    task = fakes_task(checkpoint, data, batches=(range(10),), batch=10)
    fakes = torch.from_numpy(features.fake_features(task)[0])
    (entry,) = Path(cache).glob("*.safetensors")
    reals = torch.from_numpy(
        np.frombuffer(entry.read_bytes()[-10 * 2048 * 4 :], np.float32).reshape(10, 2048).copy()
    )

    assert fakes.shape == reals.shape == (10, 2048)
    assert values(results) == {
        "fid10": pytest.approx(fid(FeatureMoments.of(reals), FeatureMoments.of(fakes)), rel=1e-4),
        "kid10": pytest.approx(kid(reals, fakes), rel=1e-3),
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_values_are_equal_bit_for_bit_on_any_number_of_workers(checkpoint, data, results, workers):
    def last_first(function, tasks):
        assert [len(task.batches) for task in tasks] == [1, 1, 1], "whoever computes them"
        return reversed([function(task) for task in reversed(tasks)])

    config = dataclasses.replace(SMALL, workers=workers)
    found = evaluate(checkpoint, data, config, map=last_first)

    assert values(found) == values(results)
    assert all(comparable(a, b) for a, b in zip(found, results, strict=True))


def test_threads_of_this_process_change_no_value_and_stay_as_they_were(
    checkpoint, data, results, cache
):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert values(evaluate(checkpoint, data, SMALL, cache_url=cache)) == values(results)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def counting_map(calls):
    def record(function, tasks):
        calls.append(function.__name__)
        return random_features(function, tasks)

    return record


def test_features_of_reals_are_computed_once_for_all_generators(tmp_path, run, data):
    calls, found = [], []
    for committed in Checkpoints(run).list():
        options = {"cache_url": str(tmp_path / "c"), "map": counting_map(calls)}
        found.append(values(evaluate(committed.url, data, SMALL, **options)))

    assert calls == ["real_features", "fake_features", "fake_features"]
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "empty", "text"])
def test_damaged_features_are_made_anew_with_a_warning(tmp_path, checkpoint, data, caplog, damage):
    url = str(tmp_path / "c")
    expected = values(evaluate_quickly(checkpoint, data, cache_url=url))
    (entry,) = Path(url).iterdir()
    whole = entry.read_bytes()
    other = dataclasses.replace(SMALL, num_reals=11)
    evaluate_quickly(checkpoint, data, other, cache_url=url)
    (neighbour,) = set(Path(url).iterdir()) - {entry}
    content = {
        "flip": whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:],
        "cut": whole[:-50],
        "other": neighbour.read_bytes(),
        "empty": b"",
        "text": b"not a safetensors file at all",
    }[damage]
    entry.write_bytes(content)

    calls = []
    found = evaluate(checkpoint, data, SMALL, cache_url=url, map=counting_map(calls))

    assert values(found) == expected
    assert calls == ["real_features", "fake_features"]
    assert f"{entry} is damaged" in caplog.text
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, checkpoint, data, caplog):
    (tmp_path / "file").write_text("no folder")

    found = evaluate_quickly(checkpoint, data, cache_url=str(tmp_path / "file"))

    assert values(found) == values(evaluate_quickly(checkpoint, data))
    assert "features are not kept" in caplog.text


def test_a_cache_in_an_object_store_works_like_a_folder(s3, checkpoint, data):
    calls = []
    for _ in range(2):
        evaluate(checkpoint, data, SMALL, cache_url=f"{s3.url}/c", map=counting_map(calls))

    assert calls == ["real_features", "fake_features", "fake_features"]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 11},
        {"num_reals": 12},
        {"seed": 1},
        {"psi": 0.7},
        {"psi": 0.7, "cutoff": 4},
        {"mirror": True},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_values_measured_in_another_way_are_not_comparable(checkpoint, data, changes):
    ours = evaluate_quickly(checkpoint, data)
    theirs = evaluate_quickly(checkpoint, data, dataclasses.replace(SMALL, **changes))

    for a, b in zip(ours, theirs, strict=True):
        assert not comparable(a, b)
        assert a.fingerprint_digest != b.fingerprint_digest
        better, reason = b.as_value().compare(a.as_value(), a.name)
        assert not better
        assert "measured differently" in reason


@pytest.mark.parametrize(
    "changes", [{"workers": 3}, {"batch": 5}, {"threads": 2}, {"cutoff": 4}, {"num_reals": 10}]
)
def test_what_changes_speed_alone_leaves_values_comparable(checkpoint, data, changes):
    ours = evaluate_quickly(checkpoint, data)
    theirs = evaluate_quickly(checkpoint, data, dataclasses.replace(SMALL, **changes))

    assert all(comparable(a, b) for a, b in zip(ours, theirs, strict=True))


def test_fid_and_kid_and_other_data_are_not_comparable(tmp_path, checkpoint, data):
    Image.fromarray(image(0, 16, 16).transpose(1, 2, 0)).save(tmp_path / "a.png")
    Image.fromarray(image(1, 16, 16).transpose(1, 2, 0)).save(tmp_path / "b.png")
    config = JobConfig(
        source=tmp_path, dest=str(tmp_path / "d"), image=ImageConfig(resolution=RESOLUTION)
    )
    run_job(config, lambda done, total, what: None)
    fid_of, kid_of = evaluate_quickly(checkpoint, data)
    other, _ = evaluate_quickly(checkpoint, config.dest)

    assert not comparable(fid_of, kid_of)
    assert not comparable(fid_of, other)
    assert "other data" in other.note
    assert other.fingerprint["reals"] == 2, "there are no more"
    assert other.fingerprint["reals_choice"] == "all"
    assert other.fingerprint["downsampling"] == "box"


def test_the_fingerprint_of_two_checkpoints_is_the_same_and_their_subjects_are_not(run, data):
    old, new = (evaluate_quickly(c.url, data)[0] for c in Checkpoints(run).list())

    assert comparable(old, new)
    assert old.subject["nimg"] == 4000
    assert old.subject["digest"] != new.subject["digest"]
    assert old.as_value().fingerprint["snapshot"] == old.subject["digest"]
    assert json.loads(json.dumps(old.fingerprint)) == old.fingerprint
    assert old.fingerprint["data_digest"] == Manifest.load(data).digest
    assert old.fingerprint["network_sha256"] == INCEPTION_FILE.sha256


def test_names_say_how_many_images_were_generated(checkpoint, data):
    assert [result.name for result in evaluate_quickly(checkpoint, data)] == ["fid10", "kid10"]
    assert metric.metric_name("fid", 50_000) == "fid50k"
    assert metric.metric_name("kid", 2_500) == "kid2500"


def test_kid_of_more_than_1000_images_is_the_mean_of_subsets_and_says_so():
    x, y = torch.randn(2, 1001, 2, generator=torch.Generator().manual_seed(0))
    index = dict(zip(("reals_index", "fakes_index"), subsets(1001, 1001), strict=True))

    asked = metric.parse("kid1001", 2)

    def value(reals, fakes):
        return estimators.compute(asked, Rows(reals=reals, fakes=[fakes]))["kid1001"]

    assert value(x, y) == kid_of_subsets(x, y, **index)
    assert value(x[:1000], y) == kid(x[:1000], y)
    many, few = (
        estimators.how(asked, "kid1001", reals=reals)["estimator"] for reals in (1001, 1000)
    )
    assert many == "unbiased, 100 subsets of 1000, seed 0"
    assert few == "unbiased, all pairs"


def test_a_damaged_checkpoint_is_refused(tmp_path, data):
    url = commit(tmp_path, generator())
    path = Path(url, "Gs.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(DigestError, match=r"Gs\.safetensors is damaged"):
        evaluate_quickly(url, data)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (sample.describe(generator(resolution=8).config), "generator is another network: synth"),
        ({"G": {"kind": "biggan"}}, "is of kind 'biggan'; this version builds gan, dcgan, pggan"),
        ({"G": {"kind": "gan", "resolution": 16, "depth": 3}}, "options of kind 'gan' .*'depth'"),
        ({}, "nothing describes the generator of these weights; take a checkpoint or a model"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, data, network, message):
    checkpoints = Checkpoints(str(tmp_path))
    tensors = {f"Gs.{name}": tensor for name, tensor in generator().state_dict().items()}
    checkpoints.save(tensors, {"network": network, "lod": 0.0}, nimg=0, attempt=0)
    checkpoints.wait()

    with pytest.raises(ValueError, match=message):
        evaluate_quickly(checkpoints.latest().url, data)


def test_a_generator_that_does_not_fit_the_data_is_refused(tmp_path, data):
    for options, message in (
        ({"channels": 1}, "the generator has 1 channels and .* has 3"),
        ({"label_size": 5}, "takes labels of 5 numbers, but those of .* have 2"),
        ({"resolution": 32}, "has no level of 32 px; choose from 4, 8, 16"),
    ):
        url = commit(tmp_path, generator(**options))
        with pytest.raises(ValueError, match=message):
            evaluate_quickly(url, data)


def test_missing_weights_leave_metrics_out_in_one_line_each(
    tmp_path, monkeypatch, checkpoint, data, caplog
):
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setattr(weights, "CACHE", tmp_path / "none")
    config = dataclasses.replace(SMALL, weights=str(tmp_path / "nowhere"))

    assert evaluate(checkpoint, data, config) == []
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in lines] == ["fid10 left out", "kid10 left out"]
    assert all("\n" not in line and "make weights" in line for line in lines)
    assert str(tmp_path / "nowhere") in lines[0]


def test_of_a_traceback_from_another_process_only_its_message_is_shown(checkpoint, data, caplog):
    """Ray raises the class that was raised there, with the traceback in front of the message."""

    def elsewhere(function, tasks):
        raise weights.MissingWeightsError("task()\n  File 1, line 2\nMissingWeightsError: get them")

    assert evaluate(checkpoint, data, SMALL, map=elsewhere) == []
    assert caplog.records[0].getMessage() == "fid10 left out: MissingWeightsError: get them"


def test_wrong_weights_leave_metrics_out_too(tmp_path, monkeypatch, checkpoint, data, caplog):
    path = tmp_path / "weights" / INCEPTION_FILE.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    monkeypatch.setattr(weights, "CACHE", tmp_path / "none")
    features._network.cache_clear()

    assert (
        evaluate(checkpoint, data, dataclasses.replace(SMALL, weights=str(path.parents[1]))) == []
    )
    assert "fid10 left out" in caplog.text
    assert "has SHA-256" in caplog.text


def test_a_generator_that_has_diverged_leaves_metrics_out(
    tmp_path, data, caplog, inception, cache, results
):
    Gs = generator()
    Gs.synthesis.to_rgb[str(RESOLUTION)].weight.data.fill_(float("nan"))
    url = commit(tmp_path, Gs)

    assert evaluate(url, data, SMALL, cache_url=cache) == []
    assert "fid10 left out: images 0 to 3" in caplog.text
    assert "not finite; its training has diverged" in caplog.text


def test_a_generator_that_gives_one_image_has_a_kid_but_no_fid(checkpoint, data, caplog):
    def constant(function, tasks):
        for task, part in zip(tasks, random_features(function, tasks), strict=True):
            yield part if isinstance(task, RealsTask) else (np.full_like(part[0], 0.5),)

    found = evaluate(checkpoint, data, SMALL, map=constant)

    assert list(values(found)) == ["kid10"]
    assert "fid10 left out: all 10 fakes have the same features" in caplog.text


def test_few_images_are_said_to_bias_fid_in_a_note_and_not_as_a_warning(
    results, caplog, checkpoint, data
):
    with caplog.at_level(logging.WARNING):
        evaluate_quickly(checkpoint, data)

    assert "biased upwards" in results[0].note
    assert results[1].note == ""
    assert not caplog.records


def test_no_metrics_means_no_evaluation():
    assert evaluate("nowhere", "nowhere", EvaluationConfig(metrics=())) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fid", "fdi")}, "'fdi' is no metric; choose from fid, kid, pr, dc, is"),
        ({"metrics": ("ppl",)}, "'ppl' does not say along which path; write ppl_wend"),
        ({"metrics": ("is_vgg16",)}, "'is_vgg16' has _vgg16, which is does not know"),
        ({"metrics": ("fid_mix5",)}, "'fid_mix5' has _mix5, which fid does not know"),
        ({"metrics": ("fid1",)}, "has fid1; choose at least 2 images"),
        ({"metrics": ("fid", "fid50k")}, "name each of them once"),
        ({"metrics": ("fid", "fid")}, "name each of them once"),
        ({"num_images": 1}, "num_images is 1; choose at least 2"),
        ({"num_reals": 1}, r"num_reals is 1; choose 0 \(as many as num_images\) or at least 2"),
        ({"every_kimg": -1}, "every_kimg is -1; choose at least 0"),
        ({"every_kimg": float("nan")}, "every_kimg is nan"),
        ({"batch": 0}, "batch is 0; choose at least 1"),
        ({"workers": 0}, "workers is 0; choose at least 1"),
        ({"threads": 0}, "threads is 0; choose at least 1"),
        ({"worker_cpus": -1}, "worker_cpus is -1; choose at least 0"),
        ({"worker_gpus": -0.5}, "worker_gpus is -0.5; choose 0 or more, a fraction such as 0.5"),
        (
            {"best_by": "is10"},
            "best_by is 'is10', which is not measured; choose from fid50k, kid50k",
        ),
        ({"seed": -1}, "seed is -1; choose from 0 to 4294967295"),
        ({"psi": float("inf")}, "psi is inf; choose a number"),
        ({"cutoff": -1}, "cutoff is -1; choose a number of layers or null"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(options, message):
    with pytest.raises(ValueError, match=f"evaluation.*{message}"):
        EvaluationConfig(**options)


def test_a_pulled_model_has_the_values_of_its_checkpoint(
    tmp_path, checkpoint, data, results, cache
):
    bundle = bundles.from_checkpoint(checkpoint)
    bundles.write(bundle, tmp_path / "model", grid=Image.new("RGB", (8, 8)))

    found = evaluate(str(tmp_path / "model"), data, SMALL, cache_url=cache)

    assert values(found) == values(results)
    assert found[0].subject["nimg"] == 8000
    weights_file = tmp_path / "model" / "G.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"!")
    with pytest.raises(DigestError):
        evaluate_quickly(str(tmp_path / "model"), data)


def test_evaluation_needs_neither_ray_nor_mlflow():
    code = "import sys, pipeline.evaluate; sys.exit(bool({'ray', 'mlflow'} & set(sys.modules)))"

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
