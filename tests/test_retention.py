"""Which checkpoints stay: the last, one of each period, the best, those still to be measured."""

import pytest
import torch

from data_prep import storage
from pipeline.checkpoint import CheckpointConfig, Checkpoints
from pipeline.loop import train
from pipeline.measurements import Measurements
from pipeline.metric import MetricResult
from tests.test_loop import OPTIONS, Recorder, tiny_config

EVALUATION = {"metrics": ["kid", "fid"], "num_images": 10, "every_kimg": 0.4}
"""Of the checkpoints at 0, 200, 400, 600 and 720 images those at 0, 400 and 720 are due."""


def _save(checkpoints, nimg):
    tensors = {"G.x": torch.full((2,), float(nimg))}
    checkpoint = checkpoints.save(tensors, {"nimg": nimg}, nimg=nimg, attempt=0).result()
    checkpoints.wait()
    return checkpoint


def _kept(checkpoints):
    return [checkpoint.nimg for checkpoint in checkpoints.list()]


def _results(kid, *, fid=1.0):
    return [
        MetricResult(name=f"{metric}10", value=value, fingerprint={"metric": metric}, subject={})
        for metric, value in (("kid", kid), ("fid", fid))
    ]


@pytest.fixture(params=["local", "s3"])
def run_url(request, tmp_path):
    if request.param == "s3":
        return f"{request.getfixturevalue('s3').url}/run"
    return str(tmp_path / "run")


@pytest.fixture
def measured(run_url):
    """Measurements of a run, and its checkpoints, of which the last one is kept."""
    measurements = Measurements(tiny_config("data", run_url, evaluation=EVALUATION))
    config = CheckpointConfig(keep_last=1)
    return measurements, Checkpoints(run_url, config=config, keep=measurements.keep)


def test_the_last_ones_and_one_of_each_period_are_kept(run_url):
    config = CheckpointConfig(keep_last=2, keep_every_kimg=10)
    checkpoints = Checkpoints(run_url, config=config)
    for nimg in range(4000, 40_000, 4000):
        _save(checkpoints, nimg)

    # 12, 20 and 32 thousand are the first of their ten thousands.
    assert _kept(checkpoints) == [12000, 20000, 32000, 36000]
    for checkpoint in checkpoints.list():
        Checkpoints.load(checkpoint)


def test_deleted_and_uncommitted_folders_are_gone(run_url):
    checkpoints = Checkpoints(run_url, config=CheckpointConfig(keep_last=1))
    stray = f"{run_url}/checkpoints/000-000000000500/G.safetensors"
    storage.write_atomic(stray, b"killed while writing")
    newer = f"{run_url}/checkpoints/000-000000009000/G.safetensors"
    storage.write_atomic(newer, b"perhaps being written")
    foreign = f"{run_url}/checkpoints/notes.txt"
    storage.write_atomic(foreign, b"not ours")

    first = _save(checkpoints, 1000)
    _save(checkpoints, 2000)

    assert not storage.exists(stray)
    assert storage.listdir(first.url) == []
    assert storage.exists(newer)
    assert storage.exists(foreign)
    assert _kept(checkpoints) == [2000]


def test_a_checkpoint_is_kept_until_it_is_measured_and_as_long_as_it_is_the_best(measured):
    measurements, checkpoints = measured
    at = {nimg: _save(checkpoints, nimg) for nimg in (0, 200, 400, 600)}
    assert _kept(checkpoints) == [0, 400, 600]

    measurements.write(at[0], _results(kid=0.5, fid=1))
    checkpoints.retain()
    assert _kept(checkpoints) == [0, 400, 600], "it is the best so far"

    # KID decides, because it is named first.
    measurements.write(at[400], _results(kid=0.25, fid=2))
    at[720] = _save(checkpoints, 720)
    assert _kept(checkpoints) == [400, 720]

    measurements.write(at[720], _results(kid=0.3))
    checkpoints.retain()
    assert _kept(checkpoints) == [400, 720]
    assert [result.value for result in measurements.first()] == [0.5, 1], "also of a deleted one"


def test_another_value_than_the_first_may_say_which_checkpoint_is_the_best(run_url):
    by_kid, by_fid = (
        Measurements(tiny_config("data", run_url, evaluation={**EVALUATION, "best_by": name}))
        for name in ("kid10", "fid10")
    )
    config = CheckpointConfig(keep_last=3)
    checkpoints = Checkpoints(run_url, config=config, keep=by_fid.keep)
    for nimg, (kid, fid) in {0: (0.5, 1), 400: (0.25, 2), 720: (0.1, 3)}.items():
        by_fid.write(_save(checkpoints, nimg), _results(kid=kid, fid=fid))

    assert by_kid.best(checkpoints.list()).nimg == 720
    assert by_fid.best(checkpoints.list()).nimg == 0
    for nimg in (800, 900, 1000):
        _save(checkpoints, nimg)
    assert _kept(checkpoints) == [0, 800, 900, 1000]
    with pytest.raises(ValueError, match=r"best_by is 'recall50k', which is not measured; .*kid10"):
        tiny_config("data", run_url, evaluation={**EVALUATION, "best_by": "recall50k"})


def test_values_measured_in_another_way_neither_count_nor_release_a_checkpoint(measured, run_url):
    measurements, checkpoints = measured
    other = {**EVALUATION, "seed": 1}
    at_0 = _save(checkpoints, 0)
    Measurements(tiny_config("data", run_url, evaluation=other)).write(at_0, _results(kid=0.1))

    _save(checkpoints, 200)

    assert measurements.read(at_0) is None
    assert measurements.first() == []
    assert _kept(checkpoints) == [0, 200]


def test_results_of_another_checkpoint_at_the_same_place_are_not_taken_for_its_own(measured):
    measurements, checkpoints = measured
    measurements.write(_save(checkpoints, 0), _results(kid=0.1))
    other = checkpoints.save({"G.x": torch.zeros(3)}, {}, nimg=0, attempt=0).result()

    assert measurements.read(other) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": {}}', b'{"results": []}'])
def test_damaged_results_count_as_none_and_are_told(measured, run_url, content, caplog):
    measurements, checkpoints = measured
    at_0 = _save(checkpoints, 0)
    measurements.write(at_0, _results(kid=0.1))
    url = f"{run_url}/evaluation/000-000000000000.json"
    storage.write_atomic(url, content)

    assert measurements.read(at_0) is None
    assert f"{url} is damaged" in caplog.text


def test_without_evaluation_nothing_is_kept_for_it(run_url):
    measurements = Measurements(tiny_config("data", run_url))
    checkpoints = Checkpoints(run_url, config=CheckpointConfig(keep_last=1), keep=measurements.keep)
    for nimg in (0, 400, 720):
        _save(checkpoints, nimg)

    assert _kept(checkpoints) == [720]


def test_a_training_without_room_for_evaluation_leaves_what_is_due(tiny_data, tmp_path):
    config = tiny_config(
        tiny_data,
        tmp_path,
        evaluation=EVALUATION,
        checkpoint={"keep_last": 1},
        schedule={**OPTIONS["schedule"], "total_kimg": 0.48},
    )
    train(config, observer=Recorder())

    assert _kept(Checkpoints(str(tmp_path))) == [0, 432, 480]
