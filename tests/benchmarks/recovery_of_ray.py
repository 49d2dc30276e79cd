"""Seconds from a death to training again, under Ray; a part of `tests.benchmarks.recovery`."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from pipeline.checkpoint import Checkpoints
from tests.datasets import draw_images, make_data_set
from tests.ray_cluster import ROOT, RayCluster, kill_tree
from tests.test_loop import OPTIONS

WORKERS = 2
WAIT_S = 300.0

# Says when it begins, and then does nothing.
FLOOR = """
import sys, time
import ray, ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

def train():
    if ray.train.get_context().get_world_rank() == 0:
        open(sys_argv[0] + "/log", "a").write(f"training {time.time()}\\n")
    time.sleep(1000)

sys_argv = sys.argv[1:]
ray.init(address="auto", log_to_driver=False)
ray.train.torch.TorchTrainer(
    train,
    scaling_config=ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
    run_config=RunConfig(
        name="floor", storage_path=sys_argv[0], failure_config=FailureConfig(max_failures=9)
    ),
).fit()
"""


def lost_worker(folder: Path) -> str:
    """kill -9 of one worker process."""
    with _cluster(cpus=4) as cluster:

        def kill() -> None:
            cluster.processes("RayTrainWorker")[0].send_signal(signal.SIGKILL)

        ours, floor = _ours(cluster, folder, kill), _floor(cluster, folder, kill)
    return f"training again {ours:.1f} s after a worker (goal 20 s); Ray's floor {floor:.1f} s"


def lost_node(folder: Path) -> str:
    """kill -9 of a node with one of the workers; another is there in reserve."""
    seconds = []
    for measured in (_ours, _floor):
        with _cluster(cpus=1) as cluster:
            nodes = [cluster.add_node(cpus=1) for _ in range(2)]

            def kill(cluster: RayCluster = cluster, nodes: list = nodes) -> None:
                kill_tree(next(n for n in nodes if cluster.processes("TrainWorker", n)))

            time.sleep(20)  # until all have joined
            seconds.append(measured(cluster, folder, kill))
    ours, floor = seconds
    return f"training again {ours:.1f} s after a node (goal 60 s); Ray's floor {floor:.1f} s"


@contextlib.contextmanager
def _cluster(*, cpus: int) -> Iterator[RayCluster]:
    cluster = RayCluster({}, cpus=cpus)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def _ours(cluster: RayCluster, folder: Path, kill: Callable[[], None]) -> float:
    """Until the first images after a restart have been trained on."""
    if not (folder / "data").exists():
        source = draw_images(folder / "images", 50, 16)
        make_data_set(source, str(folder / "data"), 16)
    schedule = {**OPTIONS["schedule"], "total_kimg": 1000, "tick_kimg": {8: 0.01, 16: 0.01}}
    options = {**OPTIONS, "workers": WORKERS, "schedule": schedule, "checkpoint": {}}
    options["data"] = {"url": str(folder / "data")}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    run_url = f"{folder}/run-{time.time():.0f}"
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), "--config"]
    command += [str(folder / "config.yaml"), f"run_url={run_url}"]
    with _running(command, cluster, folder / "ours.log") as said:
        _wait(lambda: len(Checkpoints(run_url).list()) >= 2, said)
        begun_s = time.monotonic()
        kill()
        _wait(lambda: re.search(r"training goes on.*\n(.*\n)*?.* kimg .*loss", said()), said)
        return time.monotonic() - begun_s


def _floor(cluster: RayCluster, folder: Path, kill: Callable[[], None]) -> float:
    """Until an empty function runs again."""
    log = folder / "log"
    log.unlink(missing_ok=True)

    def starts() -> int:
        return log.read_text().count("training") if log.exists() else 0

    with _running([sys.executable, "-c", FLOOR, str(folder)], cluster, folder / "f.log") as said:
        _wait(lambda: starts() == 1, said)
        time.sleep(5)
        begun_s = time.monotonic()
        kill()
        _wait(lambda: starts() == 2, said)
        return time.monotonic() - begun_s


@contextlib.contextmanager
def _running(command: list[str], cluster: RayCluster, log: Path) -> Iterator[Callable[[], str]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env=cluster.environment, stdout=file, stderr=file
        )
    try:
        yield log.read_text
    finally:
        process.kill()
        process.wait()


def _wait(condition: Callable[[], object], said: Callable[[], str]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(said())
        time.sleep(0.05)
