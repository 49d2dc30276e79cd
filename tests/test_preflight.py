"""What is wrong with a request is said before anything starts, in one sentence."""

import multiprocessing
from pathlib import Path

import pytest

from data_prep import storage
from data_prep.manifest import DigestError
from data_prep.ray_start import JOB_VARIABLE
from pipeline.checkpoint import Checkpoints
from pipeline.loop import train
from pipeline.options import ConfigError
from pipeline.preflight import absolute, claimed, local_folder, preflight, tracking_uri
from tests.test_loop import OPTIONS, Recorder, tiny_config

SHORT = {**OPTIONS["schedule"], "total_kimg": 0.048}


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A run with checkpoints at 0 and 48 images."""
    run = tmp_path_factory.mktemp("finished")
    train(tiny_config(tiny_data, run, schedule=SHORT), observer=Recorder())
    return run


@pytest.fixture
def job(monkeypatch):
    """As the driver of a submitted job sees it."""
    monkeypatch.setenv(JOB_VARIABLE, "{}")


# Paths.


@pytest.mark.parametrize(
    ("data", "run", "changes", "option"),
    [
        ("data/x", "/run", {}, "data.url is data/x"),
        ("/data", "runs/x", {}, "run_url is runs/x"),
        ("/data", "/run", {"init_from": "runs/y/checkpoints/0"}, "init_from is runs/y"),
        ("/data", "/run", {"tracking": {"uri": "sqlite:///x.db"}}, "tracking.uri is x.db"),
    ],
    ids=["data.url", "run_url", "init_from", "tracking.uri"],
)
def test_a_submitted_job_refuses_paths_below_the_folder_that_ray_deletes(
    data, run, changes, option, job
):
    with pytest.raises(ConfigError, match=f"{option}.*relative.*give an absolute path.*or a URL"):
        absolute(tiny_config(data, run, **changes))


def test_a_submitted_job_takes_urls_and_absolute_paths(job):
    config = tiny_config("s3://bucket/data", "/run", tracking={"uri": "sqlite:////x.db"})
    assert absolute(config) == config


def test_elsewhere_relative_paths_are_those_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = absolute(
        tiny_config("data", "~/run", tracking={"uri": "sqlite:///x.db"}, init_from="memory://a")
    )
    assert config.data.url == f"{tmp_path}/data"
    assert config.run_url == "/home/me/run"
    assert config.init_from == "memory://a"
    assert config.tracking.uri == f"sqlite:///{tmp_path}/x.db"


def test_the_tracking_uri_of_the_environment_does_not_depend_on_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    assert tracking_uri(tiny_config("data", "run")) == f"sqlite:///{tmp_path}/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri(tiny_config("data", "run")) == "http://host:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(tiny_config("data", "/run")) == "sqlite:////run/mlflow.db"
    with pytest.raises(ConfigError, match=r"tracking\.uri is empty and run_url s3://b/run is no"):
        tracking_uri(tiny_config("data", "s3://b/run"))


# Earlier checkpoints, and weights to begin with.


def test_a_damaged_newest_checkpoint_is_passed_over_as_the_workers_do(
    finished, tiny_data, tmp_path, caplog
):
    run = _copy(finished, tmp_path / "run")
    newest = Checkpoints(str(run)).latest()
    assert newest is not None
    storage.write_atomic(f"{newest.url}/state.json", b"damaged")

    preflight(tiny_config(tiny_data, run))

    assert "falling back to the one before it" in caplog.text
    for checkpoint in Checkpoints(str(run)).list():
        storage.write_atomic(f"{checkpoint.url}/state.json", b"damaged")
    with pytest.raises(DigestError, match="every checkpoint under"):
        preflight(tiny_config(tiny_data, run))


def test_another_configuration_is_refused_before_the_start(finished, tiny_data):
    with pytest.raises(ConfigError, match=r"loss\.r1_gamma is 5\.0, it was 10\.0"):
        preflight(tiny_config(tiny_data, finished, loss={"r1_gamma": 5}))


def test_networks_of_a_run_cannot_be_changed_in_it(finished, tiny_data):
    network = {**OPTIONS["network"], "D": {"fmap_base": 64, "fmap_max": 4}}
    with pytest.raises(ConfigError, match=r"accept_changes has network\.D\.fmap_max, but a run k"):
        preflight(
            tiny_config(tiny_data, finished, network=network, accept_changes=["network.D.fmap_max"])
        )


def test_weights_of_other_networks_cannot_begin_a_run(finished, tiny_data, tmp_path):
    source = Checkpoints(str(finished)).latest()
    assert source is not None
    network = {**OPTIONS["network"], "D": {"fmap_base": 64, "fmap_max": 4}}
    config = tiny_config(tiny_data, tmp_path / "run", network=network, init_from=source.url)
    with pytest.raises(ConfigError, match=r"cannot begin with init_from .*D is another network: "):
        preflight(config)
    preflight(tiny_config(tiny_data, tmp_path / "run", init_from=source.url))


def test_init_from_must_be_a_whole_checkpoint(finished, tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "run", init_from=str(finished))
    with pytest.raises(ConfigError, match=f"init_from {finished} is no checkpoint .*give the fold"):
        preflight(config)

    copy = _copy(finished, tmp_path / "copy")
    source = Checkpoints(str(copy)).latest()
    assert source is not None
    storage.write_atomic(f"{source.url}/G.safetensors", b"damaged")
    with pytest.raises(DigestError, match=r"G\.safetensors is damaged"):
        preflight(tiny_config(tiny_data, tmp_path / "run", init_from=source.url))


def test_a_run_that_has_begun_needs_its_init_from_no_more(finished, tiny_data):
    preflight(tiny_config(tiny_data, finished, init_from="/deleted/since"))


def test_preflight_writes_nothing(tiny_data, tmp_path):
    preflight(tiny_config(tiny_data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# The run's folder.


def _train_elsewhere(config, ready, done):
    with claimed(config):
        ready.set()
        done.wait(60)


def test_a_second_training_of_the_same_run_is_refused_until_the_first_has_ended(tmp_path):
    config = tiny_config("/data", tmp_path / "run")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=_train_elsewhere, args=(config, ready, done))
    first.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(ConfigError, match=f"is being trained already, by process {first.pid} "),
            claimed(config),
        ):
            pass
        with claimed(tiny_config("/data", tmp_path / "other")):
            pass
        first.kill()
        first.join()
        with claimed(config):
            assert (tmp_path / "run" / "config.yaml").read_text().startswith("name: tiny")
    finally:
        first.kill()
        first.join()


def test_a_run_in_a_store_is_locked_on_this_machine(tmp_path, s3):
    config = tiny_config(
        "/data", f"{s3.url}/run", loader={"threads": 1, "cache_dir": str(tmp_path / "cache")}
    )
    assert local_folder(config).parent == tmp_path / "cache" / "runs"
    with (
        claimed(config),
        pytest.raises(ConfigError, match="being trained already"),
        claimed(config),
    ):
        pass
    assert storage.exists(f"{s3.url}/run/config.yaml")


@pytest.mark.parametrize("run_url", ["/proc/nope", "{tmp}/file/run"])
def test_a_run_url_that_cannot_be_written_is_named(run_url, tmp_path):
    (tmp_path / "file").touch()
    url = run_url.format(tmp=tmp_path)
    with (
        pytest.raises(ConfigError, match=f"run_url: {url} cannot be written .*choose another"),
        claimed(tiny_config("/data", url)),
    ):
        pass


def _copy(run: Path, to: Path) -> Path:
    for path in run.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to
