"""A training under Ray of which everything dies in turn."""

import re
import signal

import pytest
import yaml

from pipeline.checkpoint import Checkpoints
from pipeline.mlflow_client import connect
from pipeline.record import read_record
from pipeline.tracking import history
from tests.ray_cluster import RayCluster
from tests.test_loop import OPTIONS, digests, tiny_config, train_in_processes
from tests.training import Training

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

WORKERS = 2
SILENT_S = 8


def test_a_run_that_meets_every_death_ends_with_the_same_bits_and_one_tracking_run(
    tiny_data, tmp_path
):
    """A worker freezes and one dies, the controller, the driver; then it is asked to stop."""
    train_in_processes(tiny_config(tiny_data, tmp_path / "whole", workers=WORKERS))

    uri, run_url = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "run")
    options = {
        **OPTIONS,
        "name": "deaths",
        "workers": WORKERS,
        "run_url": run_url,
        "data": {"url": tiny_data, "mirror": True},
        "tracking": {"uri": uri, "system_metrics": False},
        "watchdog": {"silent_s": SILENT_S},
        "ray": {"first_wait_s": 0.1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    arguments = ["--config", str(tmp_path / "config.yaml")]
    cluster = RayCluster({}, cpus=WORKERS + 1)
    try:
        cluster.start()
        training = Training(cluster, tmp_path / "log", *arguments)
        training.wait_for(lambda: len(Checkpoints(run_url).list()) >= 2)
        training.send(signal.SIGSTOP, "RayTrainWorker")
        training.wait_for_words("has been silent for")
        training.wait_for_words("training goes on")
        training.send(signal.SIGKILL, "RayTrainWorker")
        training.wait_for_words("training goes on", 2)
        training.send(signal.SIGKILL, "TrainController")
        training.wait_for_words("the controller of the workers died; that may pass")
        training.wait_for_words("training goes on", 3)
        training.process.kill()
        training.process.wait()

        training = Training(cluster, training.log, *arguments)
        training.wait_for_words("training goes on")
        training.process.send_signal(signal.SIGTERM)
        training.wait_for_end(130)
        stopped = Checkpoints(run_url).latest()
        assert stopped is not None
        assert stopped.nimg < 720, "stopped before the end"
        run_id = read_record(run_url)["tracking_run_id"]
        client = connect(uri)
        assert client.get_run(run_id).info.status == "KILLED"

        training = Training(cluster, training.log, *arguments)
        training.wait_for_end(0)
    finally:
        cluster.stop()

    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert client.get_run(run_id).info.status == "FINISHED"
    assert read_record(run_url)["tracking_run_id"] == run_id
    for points in history(uri, run_id).values():
        nimgs = [nimg for nimg, _ in points]
        assert len(nimgs) == len(set(nimgs))
    said = training.log.read_text()
    assert re.search(
        r"worker \d has been silent for \d+ s, last seen in phase '\w+' at \d+ images "
        r"\(last collective: \w[\w ]*; process \d+ of .*\); the workers start again",
        said,
    )
