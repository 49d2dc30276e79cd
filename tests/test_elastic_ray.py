"""A training on as many nodes as there are, under Ray's elastic scaling."""

import re
import signal

import pytest
import yaml

from pipeline.checkpoint import Checkpoints
from tests.ray_cluster import RayCluster, kill_tree
from tests.test_loop import OPTIONS
from tests.training import Training

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.slow]


def test_a_lost_node_shrinks_the_group_and_a_new_one_makes_it_grow(tiny_data, tmp_path):
    """Two workers on two nodes, one of which is killed; another joins; then it is stopped."""
    options = {
        **OPTIONS,
        "workers": [1, 2],
        "schedule": {**OPTIONS["schedule"], "total_kimg": 100},
        "data": {"url": tiny_data, "mirror": True},
        "ray": {"resize_s": 3},
        "tracking": {"system_metrics": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    run_url = str(tmp_path / "run")
    cluster = RayCluster({}, cpus=1)
    try:
        cluster.start()
        node = cluster.add_node(cpus=1)
        arguments = ["--config", str(tmp_path / "config.yaml"), f"run_url={run_url}"]
        training = Training(cluster, tmp_path / "log", *arguments)
        training.wait_for(lambda: cluster.processes("RayTrainWorker", node))
        training.wait_for(lambda: len(Checkpoints(run_url).list()) >= 2)
        kill_tree(node)
        training.wait_for_words("workers is 1, it was 2")
        training.wait_for_words("training goes on")
        node = cluster.add_node(cpus=1)
        training.wait_for_words("workers is 2, it was 1")
        training.process.send_signal(signal.SIGTERM)
        training.wait_for_end(130)
    finally:
        cluster.stop()

    found = Checkpoints(run_url).load_latest()
    assert found is not None
    assert found[2]["workers"] == 2
    beginnings = re.findall(r"training goes on at [\d.]+ kimg from (\S+)", training.said())
    assert len(beginnings) >= 2
    assert all("/checkpoints/000-" in url for url in beginnings)
