"""A whole installation on hosts of its own: S3, MLflow, a Ray head, nodes, a driver; all can die.

Whoever runs it plays the operator: `tend` starts again what has ended, as Kubernetes would.
"""

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from pipeline.mlflow_client import connect
from tests.hosts import INTERFACE, LOOPBACK, Host, Network
from tests.mlflow_server import MlflowServer
from tests.ray_cluster import RAY, ROOT, kill_tree
from tests.services import BUCKET, die_with_parent, free_ports, s3_client, start_s3_server

logger = logging.getLogger(__name__)

NODES = ("a", "b")
HOSTS = ("head", *NODES, "services")


class Installation:
    """See the head of this file; for the time of a `with`."""

    def __init__(self, network: Network | None = None) -> None:
        """`network`: of `HOSTS`; without one everything runs on this machine's loopback."""
        self.network = network
        self._stack = ExitStack()
        (self._gcs_port,) = free_ports(1)
        self._ray: dict[str, subprocess.Popen[bytes]] = {}
        self.driver: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self.commands_given = 0

    def host(self, name: str) -> Host:
        """One of `HOSTS`."""
        return self.network[name] if self.network else LOOPBACK

    def __enter__(self) -> "Installation":
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="s-")))
            services = self.host("services")
            self.s3 = start_s3_server(self.folder / "s3", services)
            self._stack.callback(self.s3.stop)
            self.environment = self._environment(self.s3.environment)
            self.start_head()
            self.mlflow = MlflowServer(
                self.folder,
                artifacts=f"s3://{BUCKET}/mlflow",
                env=dict(self.s3.environment),
                host=services,
            )
            self._stack.callback(self.mlflow.stop)
            self.mlflow.start()
            for name in NODES:
                self.start_node(name)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_driver()
        for name in list(self._ray):
            self.kill_ray(name)
        self._stack.close()

    def start_head(self) -> None:
        """A head without CPUs, so that every worker has a node."""
        for _ in range(3):  # on a busy machine Ray itself gives up after half a minute
            self._start_ray("head", "--head", f"--port={self._gcs_port}", "--num-cpus=0")
            while self._ray["head"].poll() is None:
                if "Ray runtime started" in (self.folder / "head.log").read_text():
                    return
                time.sleep(0.2)
        raise RuntimeError(f"the Ray head did not come up: {self.logs()}")

    def start_node(self, name: str) -> None:
        """A node for one worker."""
        address = f"{self.host('head').ip}:{self._gcs_port}"
        self._start_ray(name, f"--address={address}", "--num-cpus=1")

    def start_driver(self, *arguments: str) -> None:
        """`pipeline/train.py` on the head's host."""
        self._command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *arguments]
        self.commands_given = 0
        self._give_command()

    def tend(self) -> None:
        """Start again what has ended: nodes, and the driver by the same command."""
        for name in NODES:
            if self._ray[name].poll() is not None:
                self.kill_ray(name)
                self.start_node(name)
        if self.driver is not None and self.driver.poll() not in (None, 0):
            logger.info("the driver ended with %d: the same command again", self.driver.returncode)
            self._give_command()

    def finished(self) -> bool:
        """Whether the driver has ended well."""
        return self.driver is not None and self.driver.poll() == 0

    def end_driver(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to it and wait for its end."""
        if self.driver is not None:
            self.driver.send_signal(sig)
            self.driver.wait(300)

    def kill_ray(self, name: str) -> None:
        """As if the power of a head or node failed: all its Ray processes at once."""
        kill_tree(self._ray[name])

    def workers(self) -> list[psutil.Process]:
        """Of the group that trains."""
        return self._processes("RayTrainWorker")

    def controllers(self) -> list[psutil.Process]:
        """Of Ray Train."""
        return self._processes("TrainController")

    def upload(self, folder: Path, key: str) -> None:
        """All files of a folder, into the bucket."""
        client = s3_client(self.s3)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{key}/{path.relative_to(folder).as_posix()}"
                content = path.read_bytes()
                self.s3.host.call(client.put_object, Bucket=BUCKET, Key=name, Body=content)

    def tracking(self, run_url: str) -> dict[str, Any]:
        """What MLflow has of a training: its runs, and points that are there twice."""
        return self.mlflow.host.call(_tracked, self.mlflow.uri, run_url)

    def logs(self) -> str:
        """The end of what everyone has said."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}: {_tail(path)}" for path in paths)

    def _give_command(self) -> None:
        self.commands_given += 1
        self.driver = self._popen("driver", self._command, self.host("head"))

    def _start_ray(self, name: str, *arguments: str) -> None:
        agent, agent_grpc, agent_http, metrics, client = free_ports(5)
        command = [RAY, "start", "--block", "--disable-usage-stats", *arguments]
        command += [f"--node-ip-address={self.host(name).ip}"]
        command += [f"--runtime-env-agent-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--dashboard-agent-grpc-port={agent_grpc}"]
        command += [f"--dashboard-agent-listen-port={agent_http}"]
        if name == "head":
            command += [
                f"--temp-dir={self.folder}/ray",
                "--include-dashboard=false",
                "--no-monitor",
            ]
            command += [f"--ray-client-server-port={client}"]
        self._ray[name] = self._popen(name, command, self.host(name))

    def _popen(self, name: str, command: list[str], host: Host) -> "subprocess.Popen[bytes]":
        environment = dict(self.environment)
        if name != "driver":
            del environment["RAY_ADDRESS"]
        mode = "ab" if name == "driver" else "wb"
        with (self.folder / f"{name}.log").open(mode) as log:
            return subprocess.Popen(
                [*host.prefix, *command],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
            )

    def _environment(self, s3: Mapping[str, str]) -> dict[str, str]:
        return {
            **os.environ,
            **s3,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"{self.host('head').ip}:{self._gcs_port}",
            "PYTHONUNBUFFERED": "1",
            **({"GLOO_SOCKET_IFNAME": INTERFACE} if self.network else {}),
        }

    def _processes(self, title: str) -> list[psutil.Process]:
        """Of our Ray nodes, by title; other people's Rays are none of ours."""
        found = []
        for node in self._ray.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if title in " ".join(process.cmdline()):
                            found.append(process)
        return found


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:]


def _tracked(uri: str, run_url: str) -> dict[str, Any]:
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.run_url = '{run_url}'")
    points = [
        (run.info.run_id, name, metric.step)
        for run in runs
        for name in run.data.metrics
        if not name.startswith("system/")
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    return {
        "runs": len(runs),
        "status": ", ".join(run.info.status for run in runs),
        "points": len(points),
        "repeated": len(points) - len(set(points)),
    }
