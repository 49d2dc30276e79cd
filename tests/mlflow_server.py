"""A real MLflow server over HTTP: a process on a free loopback port, with a SQLite file."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.hosts import LOOPBACK, Host
from tests.services import die_with_parent

START_S = 300
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that nobody here needs
}


class MlflowServer:
    """Starts, pauses, kills and restarts one server on one port."""

    def __init__(
        self,
        folder: Path,
        *,
        artifacts: str | None = None,
        env: dict | None = None,
        host: Host = LOOPBACK,
    ):
        """`artifacts`: where the server keeps them, e.g. s3://bucket/mlflow; default: `folder`."""
        self.folder = folder
        self.artifacts = artifacts or str(folder / "artifacts")
        self.port = free_port()
        self.host = host
        self.uri = f"http://{host.ip}:{self.port}"
        self._env = env or {}
        self.process: subprocess.Popen | None = None

    def start(self) -> "MlflowServer":
        command = [*self.host.prefix, sys.executable, "-m", "mlflow", "server"]
        command += ["--host", self.host.ip, "--port", str(self.port), "--workers", "1"]
        command += ["--allowed-hosts", f"{self.host.ip}:{self.port}"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", self.artifacts]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **_ENVIRONMENT, **self._env},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
            )
        self._wait()
        return self

    def stop(self) -> None:
        """End all its processes."""
        if self.process is None:
            return
        for sig, wait_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            self._signal(sig)
            try:
                self.process.wait(wait_s)
                break
            except subprocess.TimeoutExpired:
                continue
        self._signal(signal.SIGKILL)  # children that have outlived it
        self.process = None

    def kill(self) -> None:
        """As a crash would."""
        self._signal(signal.SIGKILL)
        self.process.wait(10)

    def pause(self) -> None:
        """Connections are taken, but nobody answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, sig: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, sig)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            if self.host.call(self._answers):
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"no MLflow server:\n{(self.folder / 'server.log').read_text()[-3000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """One server for all tests; those that stop it start it again."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server")).start()
    yield server
    server.stop()
