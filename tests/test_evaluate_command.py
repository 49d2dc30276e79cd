"""`python -m pipeline.evaluate`: what it measures, prints and refuses."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import bundle as bundles
from pipeline import evaluate as command
from pipeline import registry
from pipeline.checkpoint import Checkpoints
from pipeline.mlflow_client import make_client
from pipeline.record import update_record
from pipeline.tracking import Tracker, TrackingConfig, history
from tests.measured import values

ROOT = Path(command.__file__).parents[1]
COMMAND = ["--num-images", "10", "--batch", "4", "--device", "cpu"]


def test_the_command_line_measures_the_newest_checkpoint_of_a_run(run, results, cache, capsys):
    assert command.main(["--run", run, *COMMAND, "--cache", cache]) == 0

    printed = capsys.readouterr().out.splitlines()
    digests = [result.fingerprint_digest[:12] for result in results]
    assert printed[0].startswith(f"fid10  {results[0].value:.6g}  {digests[0]}  biased upwards")
    assert printed[1] == f"kid10  {results[1].value:.6g}  {digests[1]}"
    assert "  nimg: 8000" in printed
    assert f"  data_digest: {results[0].fingerprint['data_digest']}" in printed
    assert "  ddof: 1 (fid10)" in printed
    assert "  metric: fid (fid10)" in printed


def test_the_command_line_prints_json_of_a_chosen_checkpoint(run, data, results, cache, capsys):
    arguments = ["--run", run, "--nimg", "8000", "--data", data, *COMMAND]

    assert command.main([*arguments, "--metrics", "kid", "--cache", cache, "--json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)
    digest = results[1].fingerprint_digest
    expected = {**dataclasses.asdict(results[1]), "fingerprint_digest": digest}
    # The working tree may have been committed since `results` were measured.
    assert row["subject"].pop("code_revision")
    del expected["subject"]["code_revision"]
    assert row == json.loads(json.dumps(expected))


# MLflow's own use of SQLAlchemy.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_registered_model_is_measured_and_values_of_a_checkpoint_get_their_curve(
    run, data, tmp_path, capsys
):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = TrackingConfig(uri=uri, experiment="evaluate", system_metrics=False)
    tracker = Tracker.open(config, run_id=None, spool=tmp_path / "spool")
    tracker.finish("FINISHED")
    url = Checkpoints(run).latest().url
    own = tmp_path / "run" / "checkpoints" / Path(url).name
    shutil.copytree(url, own)
    update_record(str(tmp_path / "run"), tracking_uri=uri, tracking_run_id=tracker.run_id)
    asked = ["--metrics", "msssim", "--num-images", "2", "--device", "cpu", "--cache", ""]

    for seed in ("0", "0", "1"):
        assert command.main(["--checkpoint", str(own), *asked, "--seed", seed]) == 0
    first, other = history(uri, tracker.run_id).items()
    assert first[0] == "metric/msssim2"
    assert [nimg for nimg, _ in first[1]] == [8000], "the same value is logged once"
    assert other[0].startswith("metric/msssim2-"), "another seed has a curve of its own"
    folder = tmp_path / "pictures"
    make_client(uri).set_tag(tracker.run_id, "run_url", str(tmp_path / "run"))
    assert command.main(["--checkpoint", str(own), *asked, "--pictures", str(folder)]) == 0
    names = {"neighbours.png", "metrics.png"}
    assert {path.name for path in folder.iterdir()} == names
    said = capsys.readouterr().err
    assert str(folder / "metrics.png") in said
    artifacts = make_client(uri).list_artifacts(tracker.run_id, f"evaluation/{Path(url).name}")
    assert {Path(file.path).name for file in artifacts} == names

    bundle = bundles.from_checkpoint(url)
    registry.register(bundle, uri=uri, run_id=tracker.run_id, name="small", alias="champion")
    model = ["--model", "models:/small@champion", "--data", data, "--tracking-uri", uri]
    capsys.readouterr()
    assert command.main([*model, *asked]) == 0
    assert capsys.readouterr().out.startswith(f"msssim2  {first[1][0][1]:.6g}  ")


def test_values_go_into_their_run_and_compare_like_for_like(run, data, tmp_path, capsys):
    old, new = sorted(map(str, Path(run, "checkpoints").iterdir()))
    arguments = ["--num-images", "4", "--batch", "4", "--device", "cpu", "--cache", ""]
    asked = ["--metrics", "msssim", *arguments]
    for url, more in ((old, []), (new, []), (old, ["--seed", "1"])):
        assert command.main(["--checkpoint", url, *asked, *more]) == 0
    capsys.readouterr()

    assert command.main(["compare", old, new]) == 0
    head = capsys.readouterr().out.split()
    assert head[0] == "msssim4"
    assert float(head[3]) == pytest.approx(float(head[2]) - float(head[1]), abs=1e-5)
    # The newest measured checkpoint of the run is `new`.
    assert command.main(["compare", run, new]) == 0
    assert capsys.readouterr().out.split()[3] == "+0"

    command.main(["--checkpoint", new, *asked, "--seed", "2", "--json"])
    (tmp_path / "other.json").write_text(capsys.readouterr().out)
    assert command.main(["compare", old, str(tmp_path / "other.json")]) == 1
    printed = capsys.readouterr()
    assert "not comparable" in printed.out
    assert "error: msssim4 was measured in two ways:\n  seed: 0 against 2" in printed.err
    for wrong in (str(tmp_path), str(tmp_path / "none.json")):
        assert command.main(["compare", old, wrong]) == 2
        assert "holds no values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--run", "{run}", "--nimg", "5"], 2, "no checkpoint of nimg 5; choose from 4000, 8000"),
        (["--run", "{tmp}"], 2, "nothing was committed under"),
        (["--checkpoint", "{tmp}"], 1, "cannot read .*commit.json"),
        (["--checkpoint", "{tmp}", "--nimg", "5"], 2, "--nimg chooses a checkpoint of a run"),
        (["--model", "{tmp}"], 2, "does not say where its data are; name them with --data"),
        (["--run", "{run}", "--metrics", ""], 2, "--metrics is empty; choose from fid, kid"),
        (["--run", "{run}", "--metrics", "lpips"], 2, "'lpips' is no metric; choose from fid, kid"),
        (["--run", "{run}", "--workers", "0"], 2, "--workers is 0; choose at least 1"),
        (["--run", "{run}", "--num-images", "1"], 2, "choose at least 2"),
        (["--run", "{run}", "--data", "{tmp}"], 1, "cannot read .*manifest.json"),
    ],
)
def test_the_command_line_says_what_is_wrong(run, tmp_path, capsys, arguments, code, message):
    filled = [argument.format(run=run, tmp=tmp_path) for argument in arguments]

    assert command.main(filled) == code

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert re.search(message, printed.err)
    assert printed.err.count("\n") == 1


def test_python_m_pipeline_evaluate_gives_equal_bits_in_two_processes(checkpoint, results):
    arguments = ["--checkpoint", checkpoint, *COMMAND, "--cache", "", "--workers", "2", "--json"]

    done = subprocess.run(
        [sys.executable, "-m", "pipeline.evaluate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert {row["name"]: row["value"] for row in json.loads(done.stdout)} == values(results)
    assert all(line.endswith("minutes left") for line in done.stderr.splitlines())
