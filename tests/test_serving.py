"""`mlflow models serve` with a registered generator: a real server, asked over HTTP."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.registry import register
from pipeline.tracking import Tracker, TrackingConfig
from stylegan import sample
from tests import generators
from tests.mlflow_server import free_port
from tests.services import die_with_parent

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

START_S = 200
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URL of a server of a model with 3 classes."""
    folder = tmp_path_factory.mktemp("serving")
    uri, port = f"sqlite:///{folder}/mlflow.db", free_port()
    config = TrackingConfig(uri=uri, system_metrics=False)
    tracker = Tracker.open(config, run_id=None, spool=folder / "spool")
    tracker.finish("FINISHED")
    bundle = generators.bundle(label_size=3)
    register(bundle, uri=uri, run_id=tracker.run_id, name="faces", alias="champion")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/faces@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    bin_folder = str(Path(sys.executable).parent)  # where MLflow looks for uvicorn
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, folder / "log")
        yield url
    finally:
        # The group is that of this server alone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")


def ask(url: str, content: Any) -> tuple[int, dict[str, Any]]:
    """Status and answer of a request; `content` is what JSON can hold, or a text as it is."""
    body = content if isinstance(content, str) else json.dumps(content)
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/invocations", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as err:
        return err.code, json.load(err)


def of_rows(rows: list[list[Any]], **params: Any) -> dict[str, Any]:
    data = {"columns": ["seed", "label"], "data": rows}
    return {"dataframe_split": data, **({"params": params} if params else {})}


def pixels(prediction: dict[str, Any]) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(prediction["png"]))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_seeds_and_psi_are_answered_with_pngs_of_those_images(server):
    status, answer = ask(server, of_rows([[7, 2], [3, 0]], psi=0.5, cutoff=4, noise="none"))

    assert status == 200
    assert [row["seed"] for row in answer["predictions"]] == [7, 3]
    Gs = generators.generator(label_size=3)
    labels = sample.one_hot(sample.torch.tensor([2, 0]), 3)
    expected = sample.sample(Gs, [7, 3], psi=0.5, cutoff=4, labels=labels, noise="none")
    for row, image in zip(answer["predictions"], expected, strict=True):
        np.testing.assert_array_equal(pixels(row), image.permute(1, 2, 0))
    # Left out, psi is that of the model's pictures.
    _, usual = ask(server, of_rows([[3, 0]]))
    expected = sample.sample(Gs, [3], psi=0.7, labels=labels[1:])
    np.testing.assert_array_equal(pixels(usual["predictions"][0]), expected[0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (of_rows([[1, 0]], psi=3.0), "psi is 3.0; choose from -2 to 2"),
        (('{"dataframe_split": {"columns": ["seed", "label"], "data": [[1, 0]]}, '
         '"params": {"psi": NaN}}'), "psi is nan"),
        (of_rows([[1, 0]], psi="strong"), "psi"),
        (of_rows([[1, 0]], cutoff=99), "cutoff is 99, but the network has 8 layers"),
        (of_rows([[1, 0]], noise="loud"), "noise is 'loud'; choose from fixed, random, none"),
        (of_rows([[1, 3]]), "label is 3, but the network has 3 classes"),
        (of_rows([[-1, 0]]), "seed is -1; choose from 0 to 4294967295"),
        (of_rows([[2**32, 0]]), "seed is 4294967296; choose from"),
        (of_rows([["one", 0]]), "seed"),
        (of_rows([[None, 0]]), "seed"),
        (of_rows([[n, 0] for n in range(65)]), "65 images are asked for, but a"),
        (of_rows([]), "there is no seed"),
        ({"dataframe_split": {"columns": ["label"], "data": [[0]]}}, "seed"),
        ({"dataframe_split": 3}, "must be a dictionary"),
        ({}, "must be a JSON"),
        ("[1, 2]", "Received a list"),
        ("{", "valid JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_with_a_sentence(server, content, message):
    status, answer = ask(server, content)

    assert status == 400, answer
    assert message in answer["message"]
    assert "Traceback" not in json.dumps(answer)


def test_the_readmes_request_is_answered(server):
    text = README.read_text()
    (body,) = re.findall(r"/invocations [^`]*?-d '(\{.*?\})'", text, flags=re.DOTALL)
    content = json.loads(body.replace("\\\n", ""))
    content["dataframe_split"]["columns"].append("label")
    content["dataframe_split"]["data"] = [[*row, 0] for row in content["dataframe_split"]["data"]]

    status, answer = ask(server, content)

    assert status == 200
    assert [pixels(row).shape for row in answer["predictions"]] == [(32, 32, 3)] * 2
