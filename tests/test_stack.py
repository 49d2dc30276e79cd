"""`make stack`: what it starts listens on loopback alone, asks who is there, and leaves nothing."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from tests.ray_cluster import ROOT
from tests.stack import FOLDER

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "tests.stack"]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def stack():
    """The process of a running stack."""
    if (FOLDER / "environment").exists():
        pytest.fail(f"a stack is running already (or left {FOLDER}): stop it for this test")
    temporary = tempfile.mkdtemp(prefix="t-")  # short, because Ray's sockets lie in it
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "TMPDIR": temporary}
    with subprocess.Popen(COMMAND, env=environment, **options) as process:
        said = [process.stdout.readline() for _ in range(4)]
        try:
            assert said[-1].startswith("source "), said
            yield process, "".join(said), temporary
        finally:
            process.terminate()
            process.wait(120)
            shutil.rmtree(temporary)


@pytest.fixture(scope="module")
def environment(stack):
    """The variables that the stack says to use."""
    lines = (FOLDER / "environment").read_text().splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def _status(url, **headers):
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as err:
        return err.code


def test_every_socket_of_the_stack_listens_on_loopback(stack):
    process, *_ = stack
    listening = {
        (child.name(), connection.laddr.ip)
        for child in psutil.Process(process.pid).children(recursive=True)
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len({name for name, _ in listening}) >= 4
    assert {ip for _, ip in listening} <= LOOPBACK, listening


def test_nobody_is_served_without_a_secret_and_none_is_printed(stack, environment):
    _, said, _ = stack
    jobs = f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    assert _status(jobs) in (401, 403)
    assert _status(jobs, Authorization=f"Bearer {environment['RAY_AUTH_TOKEN']}") == 200
    assert _status(f"{environment['AWS_ENDPOINT_URL']}/tests/ready") == 403
    runs = f"{environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert _status(runs) == 200
    assert _status(runs, Host="elsewhere.example") == 403, "a page of another site that asks for it"

    assert (FOLDER / "environment").stat().st_mode & 0o077 == 0
    for name, value in environment.items():
        if name.endswith(("KEY", "TOKEN", "KEY_ID")):
            assert value not in said


def test_the_probes_of_the_kubernetes_manifest_are_answered_without_a_token(environment):
    cluster = yaml.safe_load((ROOT / "infra" / "raycluster.yaml").read_text())["spec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    urls = {8265: environment["RAY_API_SERVER_ADDRESS"], 52365: _agent()}
    for container in (head, worker):
        probe = container["readinessProbe"]["httpGet"]
        assert container["livenessProbe"]["httpGet"] == probe
        assert _status(urls[probe["port"]] + probe["path"]) == 200


def _agent():
    """Of the node of this stack: the port that its command line says."""
    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or []:
            name, _, port = argument.partition("=")
            if name == "--dashboard-agent-listen-port" and _is_child(process):
                return f"http://127.0.0.1:{port}"
    raise AssertionError


def _is_child(process):
    return os.getpid() in [parent.pid for parent in process.parents()]


def test_a_second_stack_says_that_one_is_running(stack):
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout == f"the stack is running already; source {FOLDER}/environment\n"


def test_sigterm_ends_the_stack_and_leaves_no_process_and_no_file(stack):
    process, _, temporary = stack
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 8

    process.send_signal(signal.SIGTERM)

    assert process.wait(120) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert not FOLDER.exists()
    assert list(Path(temporary).iterdir()) == []
