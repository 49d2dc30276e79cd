"""A registered generator comes back as it was registered, or not at all."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.manifest import DigestError
from pipeline import bundle as bundles
from pipeline import registry
from pipeline.bundle import MetricValue
from pipeline.mlflow_client import TrackingError, connect
from pipeline.names import check_alias, check_name
from pipeline.registry import RegistryError, pull, register
from pipeline.tracking import Tracker, TrackingConfig
from stylegan import sample
from tests import generators

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A finished run for each tracking URI."""
    runs = {}

    def make(uri):
        if uri not in runs:
            spool = tmp_path_factory.mktemp("spool")
            config = TrackingConfig(uri=uri, experiment="registry", system_metrics=False)
            tracker = Tracker.open(config, run_id=None, spool=spool)
            tracker.finish("FINISHED")
            runs[uri] = tracker.run_id
        return runs[uri]

    return make


@pytest.fixture
def registered(sqlite_uri, run_of):
    """Registers bundles in the SQLite registry."""

    def make(bundle, name, **options):
        run_id = run_of(sqlite_uri)
        return register(
            bundle, uri=sqlite_uri, run_id=run_id, name=name, decide_by="fid300", **options
        )

    return make


def stored(uri, name, version, file):
    """Path of an artifact of a version in the store of a SQLite registry."""
    base = connect(uri).get_model_version_download_uri(name, str(version))
    return Path(base.removeprefix("file://"), "artifacts", file)


PREDICT = """
import base64, io, sys, mlflow, numpy as np, pandas as pd
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/" + sys.argv[2])
answer = model.predict(pd.DataFrame({"seed": [3, 1]}), params={"psi": 0.7})
images = [Image.open(io.BytesIO(base64.b64decode(png))) for png in answer["png"]]
np.save(sys.argv[3], np.stack([np.asarray(image) for image in images]))
assert "pipeline" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["sqlite", "http"])
def test_a_registered_model_predicts_in_a_clean_process_without_this_project(
    request, tmp_path, run_of, kind
):
    fixture = {"sqlite": "sqlite_uri", "http": "mlflow_server"}[kind]
    uri = request.getfixturevalue(fixture)
    uri = uri if kind == "sqlite" else uri.uri
    bundle = generators.bundle()
    result = register(bundle, uri=uri, run_id=run_of(uri), name="clean", alias="champion")
    assert (result.version, result.alias_moved) == (1, True)

    # Isolated (-I) and elsewhere, so that nothing of ours can be imported but what was logged.
    environment = {"PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"}
    blocked = "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
    blocked += f"sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + PREDICT, uri, "clean@champion", "images.npy"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    expected = sample.sample(bundle.generator(), [3, 1], psi=0.7).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), expected)

    folder = pull("models:/clean@champion", tmp_path / "pulled", uri=uri)
    loaded = bundles.load(folder)
    assert all(torch.equal(loaded.tensors[k], v) for k, v in bundle.tensors.items())
    assert loaded.lineage == bundle.lineage
    assert loaded.metrics == bundle.metrics
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        (*bundles.FILES, "digests.json")
    )


def test_an_alias_moves_only_to_a_better_version_measured_in_the_same_way(registered, sqlite_uri):
    first = registered(generators.bundle(fid=50), "faces", alias="champion")
    worse = registered(generators.bundle(fid=60, seed=2), "faces", alias="champion")
    other = registered(
        generators.bundle(fid=10, fingerprint={"reals": 100}), "faces", alias="champion"
    )
    better = registered(generators.bundle(fid=40, seed=3), "faces", alias="champion")
    equal = registered(generators.bundle(fid=40, seed=4), "faces", alias="champion")

    assert first.reason == "champion is new and names this version"
    assert worse.reason == "champion stays with version 1: fid300 60 against 50 is not better"
    assert other.reason == (
        "champion stays with version 1: fid300 was measured differently (reals 100 against 300)"
    )
    assert better.reason == "champion moves from version 1: fid300 40 against 50"
    assert [r.alias_moved for r in (first, worse, other, better, equal)] == [1, 0, 0, 1, 0]
    rows = [row for row in registry.list_versions(sqlite_uri) if row["name"] == "faces"]
    assert [(row["version"], row["aliases"]) for row in rows] == [
        (5, []),
        (4, ["champion"]),
        (3, []),
        (2, []),
        (1, []),
    ]
    assert rows[1]["tags"]["fid300"] == "40"


@pytest.mark.parametrize("file", bundles.FILES)
def test_changed_bytes_are_refused_with_the_name_of_the_file(
    registered, sqlite_uri, tmp_path, file
):
    name = f"changed-{file.partition('.')[0]}"
    version = registered(generators.bundle(), name).version
    path = stored(sqlite_uri, name, version, file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DigestError, match=rf"{name}/1/artifacts/{file} was changed"):
        pull(f"{name}/1", tmp_path / "pulled", uri=sqlite_uri)
    assert not list(tmp_path.iterdir())


def test_a_file_changed_together_with_its_digest_is_refused_all_the_same(
    registered, sqlite_uri, tmp_path, capsys
):
    version = registered(generators.bundle(), "forged").version
    weights = stored(sqlite_uri, "forged", version, bundles.WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    path = stored(sqlite_uri, "forged", version, bundles.DIGESTS)
    digests = json.loads(path.read_text())
    digests["sha256"][bundles.WEIGHTS] = hashlib.sha256(weights.read_bytes()).hexdigest()
    path.write_text(json.dumps(digests))

    argv = ["pull", "forged/1", str(tmp_path / "pulled"), "--tracking-uri", sqlite_uri]
    assert registry.main(argv) == 1
    assert "digests.json was changed" in capsys.readouterr().err


def test_a_missing_file_is_refused(registered, sqlite_uri, tmp_path):
    version = registered(generators.bundle(), "missing").version
    stored(sqlite_uri, "missing", version, bundles.WEIGHTS).unlink()

    with pytest.raises(DigestError, match=r"missing/1/artifacts/G\.safetensors cannot be read"):
        pull("missing/1", tmp_path / "pulled", uri=sqlite_uri)


def test_a_version_that_others_have_registered_is_refused(sqlite_uri, tmp_path):
    client = connect(sqlite_uri)
    client.create_registered_model("foreign")
    (tmp_path / "model").mkdir()
    client.create_model_version("foreign", source=str(tmp_path / "model"))

    with pytest.raises(RegistryError, match="has no tag digests_sha256: it was not registered by"):
        pull("foreign/1", tmp_path / "pulled", uri=sqlite_uri)


@pytest.mark.parametrize("model", ["nobody@champion", "nobody/1", "listed@challenger", "listed/9"])
def test_a_model_that_does_not_exist_is_named_with_those_that_do(
    registered, sqlite_uri, tmp_path, model
):
    if not any(row["name"] == "listed" for row in registry.list_versions(sqlite_uri)):
        registered(generators.bundle(), "listed", alias="champion")
    with pytest.raises(RegistryError, match=f"has no {model}; choose from .*listed/1 @champion"):
        pull(model, tmp_path / "pulled", uri=sqlite_uri)


@pytest.mark.parametrize("model", ["faces", "faces@", "models:/faces", "faces/latest", ""])
def test_a_malformed_model_is_refused_with_the_right_form_before_anyone_is_asked(tmp_path, model):
    with pytest.raises(RegistryError, match="write it as NAME@ALIAS or NAME/VERSION"):
        pull(model, tmp_path, uri="http://127.0.0.1:1")


def test_the_command_line_pulls_and_lists(registered, sqlite_uri, tmp_path, capsys, monkeypatch):
    registered(generators.bundle(), "listed", alias="best")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)

    assert registry.main(["list"]) == 0
    assert "@best  nimg 64000  checkpoint s3://b/run/checkpoints/1" in capsys.readouterr().out
    assert registry.main(["pull", "listed@best", str(tmp_path / "a" / "b")]) == 0
    assert "5 files verified" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert registry.main(["list"]) == 1
    assert "which MLflow?" in capsys.readouterr().err


def test_what_cannot_be_decided_is_refused_before_anything_is_registered(registered):
    bundle = generators.bundle()
    bundle.metrics.clear()
    with pytest.raises(ValueError, match="alias 'champion' is decided by fid300, which was not"):
        registered(bundle, "undecided", alias="champion")


BAD_NAMES = ["", " ", "faces.v2", "a/b", "a:b", "it's", 'a"b', "50%", "a@b", "a\n", " a", "n" * 201]
BAD_ALIASES = ["bad alias", "a.b", "a@b", "latest", "LATEST", "v1", "V20", "a" * 256, "a\n"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_mlflow_refuses_is_refused_before_it_is_asked(name, tmp_path):
    options = {"uri": f"sqlite:///{tmp_path}/new/mlflow.db", "run_id": "none"}
    with pytest.raises(
        ValueError, match=r"^model name is .*, which cannot name a registered model"
    ):
        register(generators.bundle(), name=name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alias", BAD_ALIASES)
def test_an_alias_that_mlflow_refuses_is_refused_before_it_is_asked(alias, tmp_path):
    options = {"uri": f"sqlite:///{tmp_path}/new/mlflow.db", "run_id": "none"}
    with pytest.raises(ValueError, match=r"^alias is "):
        register(generators.bundle(), name="faces", alias=alias, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "ffhq-256", "My faces_2", "größe", "-".join("a" * 100)])
def test_a_name_that_is_allowed_is_allowed_by_both_rules_of_mlflow(name):
    from mlflow.utils import validation

    check_name(name)
    validation._validate_model_name(name)
    validation._validate_logged_model_name(name)


@pytest.mark.parametrize("alias", ["champion", "v", "v1a", "latest-2", "a" * 255])
def test_an_alias_that_is_allowed_is_allowed_by_mlflow(alias):
    from mlflow.utils import validation

    check_alias(alias)
    validation._validate_model_alias_name(alias)
    validation._validate_model_alias_name_reserved(alias)


def test_what_mlflow_refuses_is_said_in_one_sentence(sqlite_uri, run_of):
    run_of(sqlite_uri)
    with pytest.raises(TrackingError, match=r"failed to take the files of faces: .*not found; see"):
        register(generators.bundle(), uri=sqlite_uri, run_id="0" * 32, name="faces")


def test_a_version_that_no_name_could_have_is_not_there(registered, sqlite_uri, tmp_path):
    registered(generators.bundle(), "quoted")
    connect(sqlite_uri).create_registered_model("it's")  # by somebody else
    for model in ("it's/1", "it's@champion", "it's all/1", "../1"):
        with pytest.raises(RegistryError, match=r"(has no|write it as) "):
            pull(model, tmp_path / "pulled", uri=sqlite_uri)
    assert "quoted" in {row["name"] for row in registry.list_versions(sqlite_uri)}


def test_models_beyond_the_first_page_of_mlflow_are_listed_with_their_aliases(
    registered, sqlite_uri
):
    client = connect(sqlite_uri)
    for number in range(100):
        client.create_registered_model(f"page-{number}")
    registered(generators.bundle(), "page-last", alias="champion")

    rows = registry.list_versions(sqlite_uri)
    assert [row["aliases"] for row in rows if row["name"] == "page-last"] == [["champion"]]


@pytest.mark.parametrize("argv", [["list"], ["pull", "faces/1", "pulled"]])
def test_a_mistyped_registry_is_named_and_not_made(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert registry.main([*argv, "--tracking-uri", "sqlite:///rnu/mlflow.db"]) == 1
    assert f"MLflow's file {tmp_path}/rnu/mlflow.db does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bundle_of_a_checkpoint_knows_where_it_comes_from(tmp_path):
    committed, Gs = generators.checkpoint(str(tmp_path), lod=1.5)
    metrics = {"fid300": MetricValue(value=1.0, fingerprint={})}
    bundle = bundles.from_checkpoint(committed.url, metrics=metrics, code_revision="r")

    assert all(torch.equal(bundle.tensors[k], v) for k, v in Gs.state_dict().items())
    assert bundle.lod == 1.5
    assert bundle.lineage["checkpoint"] == committed.url
    assert bundle.lineage["checkpoint_digest"] == committed.digest
    assert bundle.lineage["nimg"] == 8000
    assert bundle.lineage["data_digest"] == "d" * 64


def test_mlflow_itself_does_not_load_changed_weights(registered, sqlite_uri):
    import mlflow.pyfunc

    version = registered(generators.bundle(), "changed-inside").version
    weights = stored(sqlite_uri, "changed-inside", version, bundles.WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    with pytest.raises(ValueError, match=r"G\.safetensors was changed.*it is not used"):
        mlflow.pyfunc.load_model(str(weights.parents[1]))
