"""S3, MLflow and a Ray head on this machine, on loopback, for as long as this process lives.

    make stack                                # or python -m tests.stack
    source .cache/stack/environment           # in another terminal; then, for example
    ray job submit --working-dir . -- python pipeline/train.py --config demo …

Ctrl-C or SIGTERM ends everything and leaves nothing behind. The file holds this stack's secrets and
is readable by its owner alone. Started again while it runs, it says so and where the file is.
"""

import fcntl
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from tests.mlflow_server import MlflowServer
from tests.ray_cluster import ROOT, RayCluster
from tests.services import BUCKET, start_s3_server

FOLDER = ROOT / ".cache" / "stack"
CPUS = max(os.cpu_count() or 1, 4)


def main() -> int:
    """Run the stack until it is told to end; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    FOLDER.mkdir(parents=True, exist_ok=True)
    environment = FOLDER / "environment"
    with (FOLDER / "lock").open("a+") as lock:
        if not _locked(lock):
            print(f"the stack is running already; source {environment}")
            return 0
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, FOLDER)
            try:
                _run(stack, environment)
            except KeyboardInterrupt:
                print("the stack ends", flush=True)
                return 0
            except RuntimeError as err:
                print(f"error: {err}", file=sys.stderr)
    return 1


def _run(stack: ExitStack, environment: Path) -> None:
    """Start everything, write the environment, and wait for a signal."""
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    stack.callback(shutil.rmtree, folder)
    s3 = start_s3_server(folder / "s3")
    stack.callback(s3.stop)
    mlflow = MlflowServer(folder, artifacts=f"s3://{BUCKET}/mlflow", env=dict(s3.environment))
    stack.callback(mlflow.stop)
    mlflow.start()
    variables = {**s3.environment, "MLFLOW_TRACKING_URI": mlflow.uri}
    cluster = RayCluster(variables, cpus=CPUS)
    stack.callback(cluster.stop)
    cluster.start()

    variables |= cluster.variables
    environment.touch(mode=0o600)
    lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    environment.write_text("".join(lines))
    print(f"S3      {s3.endpoint}, bucket s3://{BUCKET}")
    print(f"MLflow  {mlflow.uri}")
    print(f"Ray     http://127.0.0.1:{cluster.dashboard}, {CPUS} CPUs")
    print(f"source {environment}", flush=True)
    parts = {"S3": s3.process, "MLflow": mlflow.process, "Ray": cluster.process}
    while not (ended := [name for name, process in parts.items() if process.poll() is not None]):
        time.sleep(1)
    raise RuntimeError(f"{', '.join(ended)} ended by itself")


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
