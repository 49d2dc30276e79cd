"""The driver without a cluster: what it decides, what it leaves, and how its command line ends."""

import dataclasses
import os
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from data_prep import storage
from data_prep.manifest import DigestError
from pipeline import train
from pipeline.cluster import use_gpus
from pipeline.driver import Driver, open_tracker
from pipeline.evaluations import on_curves
from pipeline.group import NotForRay
from pipeline.loader import SampleError
from pipeline.metric import MetricResult
from pipeline.mlflow_client import TrackingError, connect
from pipeline.options import ConfigError
from pipeline.record import read_record, update_record
from pipeline.result import Result
from tests.processes import free_port
from tests.test_loop import tiny_config

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("device", "gpus", "cpus", "expected"),
    [
        ("auto", 2, 0, True),
        ("cuda", 2, 0, True),
        ("cpu", 2, 2, False),
        ("auto", 0, 2, False),
        ("auto", 1, 64, "workers is 2, but the cluster has 1 GPUs; set workers=1, add nodes, or"),
        ("cuda", 0, 64, "workers is 2, but the cluster has 0 GPUs; .* device=cpu"),
        ("auto", 0, 1, "workers is 2, but the cluster has 1 CPUs; set workers=1, add nodes$"),
        ("cpu", 8, 1, "workers is 2, but the cluster has 1 CPUs"),
    ],
)
def test_a_cluster_with_too_few_gpus_or_cpus_is_refused(device, gpus, cpus, expected):
    config = tiny_config("/data", Path("/run"), workers=2, device=device)
    if isinstance(expected, bool):
        assert use_gpus(config, gpus=gpus, cpus=cpus) is expected
    else:
        with pytest.raises(ConfigError, match=expected):
            use_gpus(config, gpus=gpus, cpus=cpus)


@pytest.mark.parametrize(
    "kind", [ConfigError, DigestError, SampleError, TypeError, KeyError, storage.StorageError]
)
def test_what_ray_shall_not_repeat_ends_its_attempts_at_once(kind):
    with pytest.raises(kind, match="wrong"):
        NotForRay().after_exception(None, {1: kind("wrong")})


def test_what_ray_may_repeat_does_not():
    NotForRay().after_exception(None, {0: RuntimeError("a neighbour is gone")})


def test_a_store_that_fails_at_the_start_does_not_leave_the_tracking_run_running(
    tiny_data, tmp_path, monkeypatch
):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = tiny_config(
        tiny_data, tmp_path / "run", tracking={"uri": uri, "system_metrics": False}
    )
    write = storage.write_atomic

    def failing(url, content, **options):
        if url.endswith("run.json"):
            raise storage.StorageError(f"cannot write {url}: the store is away")
        write(url, content, **options)

    monkeypatch.setattr(storage, "write_atomic", failing)
    with pytest.raises(storage.StorageError, match="the store is away"):
        Driver(config, Console(quiet=True)).run()

    client = connect(uri)
    experiment = client.get_experiment_by_name("stylegan")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


def test_a_driver_comes_back_while_the_tracking_server_is_away(tmp_path):
    uri = f"http://127.0.0.1:{free_port()}"
    config = tiny_config("/data", tmp_path, tracking={"system_metrics": False})
    with pytest.raises(TrackingError, match="no MLflow server answers"):
        open_tracker(config, uri)

    update_record(str(tmp_path), tracking_run_id="1" * 32, tracking_uri=uri)
    tracker = open_tracker(config, uri)
    tracker.log_tick(1000, {"loss/D": 1.0})
    assert not tracker.finish("KILLED", timeout_s=0.1)
    assert (tmp_path / "tracking-spool" / "entries.jsonl").read_text().count("\n") == 2

    update_record(str(tmp_path), tracking_uri="http://another:5000")
    with pytest.raises(TrackingError, match="no MLflow server answers"):
        open_tracker(config, uri)


def _result(seed, value):
    return MetricResult(name="fid300", value=value, fingerprint={"seed": seed}, subject={})


def test_values_measured_in_another_way_get_a_curve_of_their_own():
    curves: dict[str, str] = {}
    first, other = _result(0, 10.0), _result(1, 20.0)
    own = f"metric/fid300-{other.fingerprint_digest[:8]}"

    assert on_curves([first], curves) == {"metric/fid300": first}
    assert on_curves([other], curves) == {own: other}
    assert on_curves([first], curves) == {"metric/fid300": first}, "again as at first"
    assert curves == {
        "metric/fid300": first.fingerprint_digest,
        own: other.fingerprint_digest,
    }


def test_a_record_keeps_what_is_not_set_anew(tmp_path):
    assert read_record(str(tmp_path)) == {}
    update_record(str(tmp_path), a=1, b={"c": 2})
    update_record(str(tmp_path), a=3)
    assert read_record(str(tmp_path)) == {"a": 3, "b": {"c": 2}}


# The command line.


@pytest.fixture
def command(tmp_path, capsys):
    """Runs `pipeline/train.py` in this process; exit code and what it says."""

    def run(data, *options):
        with mock.patch.dict(os.environ):
            places = [f"data.url={data}", f"run_url={tmp_path}/run"]
            code = train.main(["--config", "demo", "network.resolution=16", *places, *options])
        return code, capsys.readouterr().err

    return run


def test_a_manifest_cut_short_ends_the_command_with_its_name(command, tiny_data, tmp_path):
    content = Path(tiny_data, "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(content[: len(content) // 2])

    code, said = command(tmp_path)

    assert code == 2
    assert said.startswith(f"error: {tmp_path}/manifest.json is not JSON")
    assert said.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_named_and_a_complete_run_stays_complete(
    command, tiny_data, tmp_path
):
    address = f"127.0.0.1:{free_port()}"
    code, said = command(tiny_data, f"ray.address={address}", "schedule.total_kimg=1")
    assert code == 1
    assert said.startswith(f"error: nobody answers at {address}: ")
    assert said.count("\n") == 1
    record = read_record(f"{tmp_path}/run")
    client = connect(record["tracking_uri"])
    assert client.get_run(record["tracking_run_id"]).info.status == "FAILED"

    values = {field.name: {} for field in dataclasses.fields(Result)}
    Result(**{**values, "run_url": f"{tmp_path}/run", "nimg": 1000}).write()
    before = client.get_run(record["tracking_run_id"]).data.tags["code_revision"]
    with mock.patch("pipeline.driver.code_revision", return_value="another"):
        assert command(tiny_data, f"ray.address={address}", "schedule.total_kimg=1")[0] == 1
    run = client.get_run(record["tracking_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["code_revision"] == before


@pytest.mark.parametrize("content", ['{"tracking_run_id": "', "[]", ""])
def test_a_damaged_run_json_ends_the_command_with_its_name(command, tiny_data, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)

    code, said = command(tiny_data)

    assert code == 2
    assert said.startswith(f"error: {tmp_path}/run/run.json ")
    assert "delete it: the training goes on" in said
    assert said.count("\n") == 1
