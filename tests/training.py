"""The user's command under a Ray cluster, as a process that can be waited for and harmed."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.ray_cluster import ROOT, RayCluster

WAIT_S = 240.0


class Training:
    """The user's command on the cluster, with what it has said."""

    def __init__(self, cluster: RayCluster, log: Path, *arguments: str) -> None:
        self.cluster = cluster
        self.log = log
        command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *arguments]
        with log.open("ab") as file:
            self.start = file.tell()
            self.process = subprocess.Popen(
                command, cwd=log.parent, env=cluster.environment, stdout=file, stderr=file
            )

    def said(self) -> str:
        return self.log.read_bytes()[self.start :].decode()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end_s, self.said()
            time.sleep(0.05)

    def wait_for_words(self, words: str, times: int = 1) -> None:
        self.wait_for(lambda: self.said().count(words) >= times)

    def wait_for_end(self, code: int, timeout_s: float = WAIT_S) -> None:
        assert self.process.wait(timeout_s) == code, self.said()

    def send(self, number: int, process: str) -> None:
        """A signal to a process of the cluster."""
        self.wait_for(lambda: self.cluster.processes(process))
        self.cluster.processes(process)[0].send_signal(number)
