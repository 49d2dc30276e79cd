"""The whole job on a real Ray cluster, a real S3 server and a real MLflow server."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep import storage
from data_prep.manifest import shard_url
from pipeline.checkpoint import Checkpoints
from pipeline.delivery import read_checkpoints
from pipeline.mlflow_client import connect
from pipeline.tracking import history
from tests.datasets import draw_images, make_data_set
from tests.mlflow_server import MlflowServer
from tests.ray_cluster import ROOT, RayCluster
from tests.services import BUCKET, S3Server
from tests.test_loop import OPTIONS, digests
from tests.training import Training

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

WORKERS = 2


@pytest.fixture(scope="module")
def store(s3_server: S3Server):
    """A folder in the bucket, with the credentials in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/job"


@pytest.fixture(scope="module")
def mlflow(store, s3_server: S3Server, tmp_path_factory):
    server = MlflowServer(
        tmp_path_factory.mktemp("mlflow"),
        artifacts=f"{store}/artifacts",
        env=dict(s3_server.environment),
    )
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def data(store, tmp_path_factory) -> str:
    source = draw_images(tmp_path_factory.mktemp("images"), 50, 16)
    make_data_set(source, f"{store}/data", 16, samples_per_shard=16)
    return f"{store}/data"


@pytest.fixture(scope="module")
def config_file(data, mlflow, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    options = {
        **OPTIONS,
        "workers": WORKERS,
        "data": {"url": data, "mirror": True},
        "tracking": {"uri": mlflow.uri, "experiment": "job"},
        "evaluation": {
            "metrics": ["fid", "kid"],
            "num_images": 16,
            "batch": 8,
            "every_kimg": 1,
            "weights": str(ROOT / ".cache" / "weights"),  # no part of what a job uploads
        },
        "loader": {"threads": 1, "cache_dir": str(path.parent / "cache")},
    }
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.fixture(scope="module")
def finished(ray_cluster: RayCluster, config_file, store) -> str:
    """URL of a run that was trained, evaluated and registered by one submitted job."""
    run_url = f"{store}/runs/tiny"
    done = ray_cluster.submit("--config", str(config_file), f"run_url={run_url}")
    assert done.returncode == 0, done.stdout + done.stderr
    return run_url


def test_a_submitted_job_trains_evaluates_and_registers_on_object_storage(finished, mlflow, data):
    result = json.loads(storage.read_bytes(f"{finished}/result.json"))
    assert result["nimg"] == 720
    committed = Checkpoints(finished).list()
    assert [checkpoint.nimg for checkpoint in committed] == [0, 240, 432, 624, 720]
    assert result["checkpoint_digest"] == committed[-1].digest
    assert set(result["metrics"]) == {"metric/fid16", "metric/kid16"}
    assert set(result["first_metrics"]) == set(result["metrics"])

    # Everything is in MLflow, against nimg.
    points = history(mlflow.uri, result["tracking_run_id"])
    assert [nimg for nimg, _ in points["metric/fid16"]] == [0, 720]
    assert {nimg for nimg, _ in points["loss/D"]} > {96, 720}
    client = connect(mlflow.uri)
    rows = read_checkpoints(client, result["tracking_run_id"])
    assert [row["digest"] for row in rows] == [c.digest for c in reversed(committed)]
    assert rows[0]["metric/fid16"] == pytest.approx(result["metrics"]["metric/fid16"], rel=1e-5)

    # Every number carries how it was measured, and the run the code it was made with.
    assert set(result["fingerprints"]) == set(result["metrics"])
    for name, fingerprint in result["fingerprints"].items():
        for row in (rows[0], rows[-1]):
            assert row[f"{name} fingerprint"] == fingerprint
    revision = client.get_run(result["tracking_run_id"]).data.tags["code_revision"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", revision), "Ray uploads the code without .git"


def test_the_registered_model_is_pulled_and_draws_images_in_another_process(
    finished, mlflow, tmp_path
):
    result = json.loads(storage.read_bytes(f"{finished}/result.json"))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.uri}
    for name in [name for name in environment if name.startswith("AWS_")]:
        del environment[name]  # the server hands the artifacts out

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("pipeline.registry", "pull", "tiny@champion", "pulled")
    lineage = json.loads((tmp_path / "pulled" / "lineage.json").read_text())
    assert lineage["checkpoint_digest"] == result["checkpoint_digest"]
    run("pipeline.generate", "images", "--model", "pulled", "--seeds", "0-3", "--out", "images")
    assert len(list((tmp_path / "images").glob("*.png"))) == 5


def test_no_secret_is_in_anything_that_a_run_writes_logs_or_says(
    finished, ray_cluster, mlflow, s3_server, store, config_file
):
    """All objects, the tracking database, what workers and drivers logged, and local caches."""
    contents = {name: storage.read_bytes(f"{store}/{name}") for name in storage.find(store)}
    for folder in (ray_cluster.folder, mlflow.folder, config_file.parent):
        for path in folder.rglob("*"):
            if path.is_file():
                contents[str(path)] = path.read_bytes()
    secret = {
        "S3": s3_server.environment["AWS_SECRET_ACCESS_KEY"],
        "Ray": ray_cluster.environment["RAY_AUTH_TOKEN"],
        "MLflow": ray_cluster.environment["MLFLOW_TRACKING_PASSWORD"],
    }

    found = {
        (name, where)
        for where, content in contents.items()
        for name, word in secret.items()
        if word.encode() in content
    }

    assert found == set()
    names = " ".join(contents)
    for written in ("commit.json", "config.yaml", "run.json", "server.db", "job-driver", "MLmodel"):
        assert written in names
    url = finished.encode()
    assert sum(url in content for content in contents.values()) > 10, "what is looked for is found"


def test_the_same_job_again_goes_on_with_the_same_tracking_run_and_trains_nothing(
    finished, ray_cluster, config_file
):
    before = json.loads(storage.read_bytes(f"{finished}/result.json"))
    done = ray_cluster.submit("--config", str(config_file), f"run_url={finished}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on at 0.7 kimg" in done.stdout
    assert json.loads(storage.read_bytes(f"{finished}/result.json")) == before


def test_a_killed_worker_is_restarted_and_the_run_ends_with_the_same_bits(
    finished, ray_cluster, config_file, tmp_path
):
    """kill -9 of one worker in the middle; Ray Train restarts the group by itself."""
    run_url = str(tmp_path / "run")
    training = Training(
        ray_cluster,
        tmp_path / "log",
        *("--config", str(config_file), f"run_url={run_url}", "evaluation.metrics=[]"),
    )
    training.wait_for(lambda: len(Checkpoints(run_url).list()) >= 2)
    training.send(signal.SIGKILL, "RayTrainWorker")
    training.wait_for_end(0)

    assert training.said().count("training goes on at") == 1
    assert digests(run_url) == digests(finished)


def test_a_shard_altered_after_it_was_written_ends_the_run_at_once_and_by_name(
    ray_cluster, config_file, tmp_path
):
    source = draw_images(tmp_path / "images", 50, 16)
    data = str(tmp_path / "data")
    make_data_set(source, data, 16)
    shard = Path(shard_url(data, 8, 0))
    content = bytearray(shard.read_bytes())
    for offset in range(512, len(content), 512):
        content[offset] ^= 1
    shard.write_bytes(content)

    done = ray_cluster.submit(
        *("--config", str(config_file), f"run_url={tmp_path}/run", f"data.url={data}"),
        "evaluation.metrics=[]",
    )
    assert done.returncode == 1
    assert f"in {shard} was altered" in done.stdout + done.stderr
    assert [c.nimg for c in Checkpoints(f"{tmp_path}/run").list()] == [0]
    assert done.stdout.count("training") <= 2, "a restart does not mend data"
