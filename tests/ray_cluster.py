"""A real Ray cluster of one node, as `ray start --head` makes it, for the tests of a module."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import psutil
import pytest

from tests.services import S3Server, die_with_parent, free_ports

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
READY_S = 180.0


class RayCluster:
    """One head node with some CPUs; jobs go to its dashboard."""

    def __init__(self, environment: Mapping[str, str], *, cpus: int) -> None:
        """`environment`: what all processes of the node see, such as credentials of a store."""
        self.cpus = cpus
        # Short, because sockets lie in it; not below the node's working directory.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.dashboard, self.gcs, *self._ports = free_ports(7)
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token_hex(),
            "RAY_ADDRESS": f"127.0.0.1:{self.gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }
        self.environment = {
            **os.environ,
            **environment,
            # `python` in a job is that of the node.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.folder),
            # Else Ray takes another address of this machine instead of loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            **self.variables,
        }
        self._log = self.folder / "start.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []
        """Besides the head."""

    def start(self) -> "RayCluster":
        """Start the node and wait until it takes jobs."""
        client, agent, agent_grpc, metrics, self.agent_http = self._ports
        command = [RAY, "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"--port={self.gcs}", f"--num-cpus={self.cpus}"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={self.dashboard}", f"--temp-dir={self.folder}"]
        command += [f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"]
        command += [f"--dashboard-agent-grpc-port={agent_grpc}"]
        command += [f"--dashboard-agent-listen-port={self.agent_http}"]
        command += [f"--runtime-env-agent-port={agent}"]
        environment = {name: v for name, v in self.environment.items() if "ADDRESS" not in name}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
            )
        end_s = time.monotonic() + READY_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"Ray did not start: {self._log.read_text()}")
            time.sleep(0.5)
        return self

    def stop(self) -> None:
        """End all its processes."""
        for node in [*self.nodes, *filter(None, [self.process])]:
            kill_tree(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self, *, cpus: int) -> subprocess.Popen[bytes]:
        """Another node on this machine; it joins a while later."""
        command = [RAY, "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"]
        command += [f"--address=127.0.0.1:{self.gcs}", "--node-ip-address=127.0.0.1"]
        environment = {name: v for name, v in self.environment.items() if "ADDRESS" not in name}
        del environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # it allows one node alone
        with (self.folder / "nodes.log").open("ab") as log:
            node = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
            )
        self.nodes.append(node)
        return node

    def processes(
        self, name: str = "", node: subprocess.Popen[bytes] | None = None
    ) -> list[psutil.Process]:
        """The head or a node and all it has started, if the command line has `name` in it."""
        node = node or self.process
        assert node is not None
        root, found = psutil.Process(node.pid), []
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def submit(
        self, *arguments: str, program: str = "pipeline/train.py", timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """The user's command: `ray job submit --working-dir . -- python pipeline/train.py …`."""
        command = [
            RAY,
            "job",
            "submit",
            "--working-dir",
            ".",
            "--",
            "python",
            *program.split(),
            *arguments,
        ]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def _answers(self) -> bool:
        if "Ray runtime started" not in self._log.read_text():
            return False
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}/api/jobs/",
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """A node with all it has started, at once: asked politely, it drains for half a minute."""
    with suppress(psutil.NoSuchProcess):
        node = psutil.Process(process.pid)
        for each in [node, *node.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


@pytest.fixture(scope="module")
def ray_cluster(s3_server: S3Server) -> Iterator[RayCluster]:
    """A cluster whose nodes know the S3 server."""
    credentials = {"MLFLOW_TRACKING_USERNAME": "tests", "MLFLOW_TRACKING_PASSWORD": token_hex()}
    cluster = RayCluster({**s3_server.environment, **credentials}, cpus=4)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
