"""What a run reports arrives in MLflow once, also when the server or the driver goes away."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline import tracking
from pipeline.delivery import read_checkpoints
from pipeline.mlflow_client import TrackingError, connect
from pipeline.spool import Spool
from pipeline.tracking import Tracker, TrackingConfig, flatten
from tests.mlflow_server import free_port

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PARAMS = {"schedule": {"fade_kimg": 600, "table": "official-8"}, "loss": {"r1_gamma": 10.0}}


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory):
    """As the demo has it: a file and a folder, no server."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/made/mlflow.db"


@pytest.fixture
def open_tracker(tmp_path):
    """Opens trackers that are finished at the end."""
    trackers = []

    def make(uri, *, run_id=None, spool=None, **options):
        config = TrackingConfig(uri=uri, **options)
        tracker = Tracker.open(config, run_id=run_id, spool=spool or tmp_path / "spool")
        trackers.append(tracker)
        return tracker

    yield make
    for tracker in trackers:
        tracker.finish("KILLED", timeout_s=5)


def checkpoints(uri, run_id):
    """Rows of the table of checkpoints."""
    return read_checkpoints(connect(uri), run_id)


def steps(uri, run_id, name):
    """Steps at which MLflow has values, each as often as it has them."""
    return sorted(point.step for point in connect(uri).get_metric_history(run_id, name))


@pytest.fixture(params=["sqlite", "http"])
def uri(request):
    """Both ways of keeping runs."""
    if request.param == "http":
        return request.getfixturevalue("mlflow_server").uri
    return request.getfixturevalue("sqlite_uri")


def test_a_run_shows_what_was_run_what_came_out_and_every_checkpoint(uri, open_tracker):
    tracker = open_tracker(uri, run_name="faces")
    tracker.describe(
        params=PARAMS, tags={"data_digest": "aa", "code_revision": "cc"}, config_text="loss: {}\n"
    )
    for nimg in (1000, 2000):
        tracker.log_tick(nimg, {"loss/D": nimg / 1000, "progress/kimg": nimg / 1000})
    tracker.log_image(2000, "samples", Image.new("RGB", (8, 8), "red"))
    tracker.log_checkpoint("s3://b/run/checkpoints/1", digest="d1", nimg=1000)
    tracker.log_checkpoint("s3://b/run/checkpoints/2", digest="d2", nimg=2000)
    tracker.log_checkpoint(
        "s3://b/run/checkpoints/1",
        digest="d1",
        nimg=1000,
        metrics={"metric/fid300": 99.5},
        fingerprints={"metric/fid300": "ab12"},
    )
    assert tracker.finish("FINISHED")

    client = connect(uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "faces"
    assert run.data.params["schedule.fade_kimg"] == "600"
    assert run.data.tags["data_digest"] == "aa"
    assert run.data.tags["checkpoint.latest"] == "s3://b/run/checkpoints/2"
    assert {"system/cpu_utilization_percentage"} < set(run.data.metrics)
    assert tracking.history(uri, tracker.run_id) == {
        "loss/D": [(1000, 1.0), (2000, 2.0)],
        "metric/fid300": [(1000, 99.5)],
        "progress/kimg": [(1000, 1.0), (2000, 2.0)],
    }
    assert checkpoints(uri, tracker.run_id) == [
        {"nimg": 2000, "digest": "d2", "url": "s3://b/run/checkpoints/2"},
        {
            "nimg": 1000,
            "metric/fid300": 99.5,
            "metric/fid300 fingerprint": "ab12",
            "digest": "d1",
            "url": "s3://b/run/checkpoints/1",
        },
    ]
    names = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert {"config.yaml", "checkpoints.json", "images"} <= names
    assert len(client.list_artifacts(tracker.run_id, "images")) == 2  # picture and thumbnail


def test_a_restarted_driver_goes_on_in_the_same_run_and_repeats_nothing(
    sqlite_uri, open_tracker, tmp_path
):
    first = open_tracker(sqlite_uri)
    first.describe(params=PARAMS, tags={}, config_text="a")
    for nimg in (1000, 2000, 3000):
        first.log_tick(nimg, {"loss/D": 1.0})
    first.log_image(2000, "samples/grid", Image.new("RGB", (8, 8)))
    first.log_checkpoint("u/2", digest="d", nimg=2000)
    assert first.finish("KILLED")

    # It goes on from the checkpoint at 2000.
    again = open_tracker(sqlite_uri, run_id=first.run_id, spool=tmp_path / "another machine")
    again.describe(
        params={**PARAMS, "seed": 1, "loss": {"r1_gamma": 5.0}}, tags={}, config_text="b"
    )
    again.log_image(2000, "samples/grid", Image.new("RGB", (8, 8)))
    for nimg in (3000, 4000):
        again.log_tick(nimg, {"loss/D": 1.0, "loss/G": 2.0})
    again.log_checkpoint("u/4", digest="d", nimg=4000)
    again.log_checkpoint("u/2", digest="d", nimg=2000, metrics={"metric/kid300": 0.5})
    assert again.flush()

    assert again.run_id == first.run_id
    assert steps(sqlite_uri, first.run_id, "loss/D") == [1000, 2000, 3000, 4000]
    assert steps(sqlite_uri, first.run_id, "loss/G") == [3000, 4000]
    assert [row["nimg"] for row in checkpoints(sqlite_uri, first.run_id)] == [4000, 2000]
    client = connect(sqlite_uri)
    assert len(client.list_artifacts(first.run_id, "images")) == 2
    run = client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params["seed"] == "1"
    assert run.data.tags["changed.loss.r1_gamma"] == "5.0"


def test_points_of_a_driver_that_was_killed_arrive_after_its_restart(
    sqlite_uri, open_tracker, tmp_path
):
    tracker = open_tracker(sqlite_uri)
    assert tracker.finish("KILLED")
    spool = Spool(tmp_path / "spool")  # what a killed process leaves: points not sent, half a line
    for entry in (
        {"kind": "metrics", "nimg": 1000, "values": {"loss/D": 1.0}, "time_ms": 1},
        {"kind": "end", "status": "FAILED", "session": "of the dead", "time_ms": 1},
    ):
        spool.put(entry)
    with spool.path.open("ab") as file:
        file.write(b'{"kind": "met')

    again = open_tracker(sqlite_uri, run_id=tracker.run_id)
    again.log_tick(2000, {"loss/D": 2.0})

    assert again.history()["loss/D"] == [(1000, 1.0), (2000, 2.0)]
    assert connect(sqlite_uri).get_run(tracker.run_id).info.status == "RUNNING"


def test_a_run_that_was_deleted_is_replaced(sqlite_uri, open_tracker, caplog):
    tracker = open_tracker(sqlite_uri, run_id="0" * 32)

    assert tracker.run_id != "0" * 32
    assert "has no run" in caplog.text


class Broken:
    """As NVML is when the driver has been updated under it."""

    def collect_metrics(self):
        raise RuntimeError("Driver/library version mismatch")

    def aggregate_metrics(self):
        return {}

    def clear_metrics(self):
        pass


def test_a_measurement_that_fails_costs_itself_alone(sqlite_uri, open_tracker, caplog):
    tracker = open_tracker(sqlite_uri)
    tracker._sampler._monitor.monitors.insert(0, Broken())
    for nimg in (1000, 2000):
        tracker.log_tick(nimg, {"loss/D": 1.0})
        assert tracker.flush()

    assert steps(sqlite_uri, tracker.run_id, "loss/D") == [1000, 2000]
    assert steps(sqlite_uri, tracker.run_id, "system/cpu_utilization_percentage")
    assert caplog.text.count("Broken does not measure: RuntimeError: Driver/library") == 1


@pytest.mark.parametrize("outage", ["killed", "silent"])
def test_a_server_that_goes_away_costs_nothing_but_a_delay(
    mlflow_server, open_tracker, monkeypatch, caplog, outage
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    caplog.set_level(logging.INFO, logger="pipeline.delivery")
    tracker = open_tracker(mlflow_server.uri, system_metrics=False)
    tracker.log_tick(1000, {"loss/D": 1.0})
    assert tracker.flush()

    mlflow_server.kill() if outage == "killed" else mlflow_server.pause()
    start_s = time.monotonic()
    for nimg in range(2000, 30_000, 1000):
        tracker.log_tick(nimg, {"loss/D": 1.0, "loss/G": 2.0})
    tracker.log_image(29_000, "samples", Image.new("RGB", (8, 8)))
    tracker.log_checkpoint("u/29", digest="d", nimg=29_000)
    training_waited_s = time.monotonic() - start_s
    assert not tracker.flush(timeout_s=3)
    mlflow_server.start() if outage == "killed" else mlflow_server.go_on()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    assert tracker.flush(timeout_s=60)

    assert training_waited_s < 0.5
    assert steps(mlflow_server.uri, tracker.run_id, "loss/D") == list(range(1000, 30_000, 1000))
    assert steps(mlflow_server.uri, tracker.run_id, "loss/G") == list(range(2000, 30_000, 1000))
    assert [row["url"] for row in checkpoints(mlflow_server.uri, tracker.run_id)] == ["u/29"]
    assert "is away" in caplog.text
    assert "answers again" in caplog.text
    assert not list(tracker.spool.files.iterdir())


def test_a_restart_while_the_server_is_away_goes_on_if_it_may(tmp_path):
    config = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    tracker = Tracker.open(config, run_id="1" * 32, spool=tmp_path, patient=True)
    tracker.log_tick(1000, {"loss/D": 1.0})

    assert not tracker.finish("FAILED", timeout_s=0.5)
    assert len(Spool(tmp_path)) == 2


def test_an_unreachable_server_is_named_within_30_seconds(tmp_path):
    uri = f"http://127.0.0.1:{free_port()}"
    start_s = time.monotonic()
    with pytest.raises(TrackingError, match=f"no MLflow server answers at {uri}.*tracking.uri"):
        Tracker.open(TrackingConfig(uri=uri), run_id=None, spool=tmp_path)
    assert time.monotonic() - start_s < 10


def test_a_silent_server_is_named_within_30_seconds(tmp_path, mlflow_server):
    mlflow_server.pause()
    try:
        start_s = time.monotonic()
        with pytest.raises(TrackingError, match="no MLflow server answers"):
            Tracker.open(TrackingConfig(uri=mlflow_server.uri), run_id=None, spool=tmp_path)
        assert time.monotonic() - start_s < 30
    finally:
        mlflow_server.go_on()


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "/data/mlflow.db", "ftp://host/x"])
def test_what_is_no_tracking_uri_is_refused_at_once(uri):
    with pytest.raises(ValueError, match=r"tracking\.uri is .*sqlite:////"):
        TrackingConfig(uri=uri)


def test_a_database_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match=r"file/mlflow\.db cannot be used"):
        connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_metric_name_mlflow_would_refuse_is_refused_where_it_is_used(sqlite_uri, open_tracker):
    tracker = open_tracker(sqlite_uri)
    with pytest.raises(ValueError, match="metric name 'loss:D'"):
        tracker.log_tick(0, {"loss:D": 1.0})


def test_nested_parameters_get_dotted_names():
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {
        "a.b.c": 1,
        "a.d": [1, 2],
        "e": {},
    }


def test_a_spool_gives_back_in_order_what_was_put(tmp_path):
    spool = Spool(tmp_path)
    for number in range(5):
        spool.put({"number": number})

    assert [entry["number"] for entry in spool.peek(3)] == [0, 1, 2]
    spool.delivered(2)
    assert [entry["number"] for entry in spool.peek(10)] == [2, 3, 4]
    assert len(Spool(tmp_path)) == 5, "what was delivered is known to the process alone"
    spool.delivered(3)
    assert not spool.path.read_bytes()
    spool.put({"number": 9})
    assert spool.peek(1) == [{"number": 9}]


def test_a_full_spool_drops_what_comes_and_says_so_once(tmp_path, caplog):
    spool = Spool(tmp_path, limit_bytes=50)
    for number in range(10):
        spool.put({"number": number})

    assert [entry["number"] for entry in spool.peek(10)] == [0, 1, 2]
    assert spool.dropped == 7
    assert caplog.text.count("lost from now on") == 1


def test_tracking_sends_nothing_about_its_use(sqlite_uri):
    """In a new process, whose environment says nothing about it."""
    script = (
        "import sys; from pipeline.mlflow_client import connect; connect(sys.argv[1]);"
        "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, sqlite_uri],
        env={"PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True"]
    assert json.dumps(done.stderr) == '""'
