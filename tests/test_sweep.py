"""`python -m pipeline.sweep`: tables of papers, trained or taken and measured alike."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pipeline import bundle as bundles
from pipeline import sweep, values
from pipeline.checkpoint import Checkpoints
from pipeline.sweep_table import SWEEPS, RowResult, Table, read_table, to_markdown
from tests.measured import evaluate_quickly

TINY = ["network.resolution=16", "schedule.total_kimg=0.1", "loader.threads=1", "commit_kimg=1"]
TINY += ["network.G.widths=[8]", "network.D.widths=[6,6]"]
QUICK = ["--no-ray", "--evaluate=--device cpu --cache ''"]


def write(folder, rows, **more):
    """Path of a table of these rows."""
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"title": "Mine", "metrics": ["msssim4"], "rows": rows, **more}))
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_every_row_of_the_papers_tables_can_be_tried_on_small_data(name, tiny_data, tmp_path):
    """All that can be wrong with a row is looked at, and nothing is trained."""
    arguments = [name, "--out", str(tmp_path), "--overlay", "small", "--num-images", "20"]
    arguments += [f"data.url={tiny_data}", "network.resolution=16"]
    asked = sweep._parser().parse_intermixed_args(arguments)

    plans = sweep.Sweep(read_table(name), asked, Console(quiet=True)).plans

    assert plans
    for plan in plans:
        assert plan.config.network.G.resolution == 16
        assert plan.config.evaluation.metrics == ()
        assert plan.config.network.D.fmap_max == 64, "narrow, whatever kind it is"
        assert all(re.fullmatch(r"[a-z]+20(_\w+)?", metric) for metric in plan.metrics)
    assert not any(tmp_path.iterdir())


def test_the_papers_tables_ask_for_what_the_papers_show():
    metrics = {path.stem: read_table(path.stem).metrics for path in SWEEPS.glob("*.yaml")}

    assert metrics["stylegan-table-1"] == ("fid50k",)
    assert metrics["stylegan-table-2"][1:] == tuple(f"fid50k_mix{n}" for n in (2, 3, 4))
    assert metrics["stylegan-table-3"] == ("ppl100k_wfull", "ppl100k_wend", "ls200k")
    assert metrics["stylegan2-table-1"] == ("fid50k", "ppl50k_wend", "pr50k_vgg16")
    assert metrics["pggan-table-1"] == ("swd16384", "msssim10k")
    depths = list(read_table("stylegan-table-4").rows)
    assert depths[:3] == ["traditional 0", "traditional 8", "style-based 0"]


def test_rows_are_trained_and_taken_and_a_failed_one_does_not_keep_the_others(
    run, data, tmp_path, capsys
):
    model = tmp_path / "model"
    bundle = bundles.from_checkpoint(Checkpoints(run).latest().url)
    bundles.write(bundle, model, grid=Image.new("RGB", (8, 8)))
    rows = {
        "trained": {"config": ["gan", "small-gan"], "overrides": TINY},
        "lost": {"run": str(tmp_path / "nowhere")},
        "earlier": {"run": run},
        "pulled": {"model": str(model), "metrics": ["msssim4", "ls4"]},
    }
    out = tmp_path / "out"
    command = [write(tmp_path, rows), "--out", str(out), *QUICK, f"data.url={data}"]

    assert sweep.main(command) == 1

    printed = capsys.readouterr()
    assert "error: row lost: nothing was committed under" in printed.err
    assert "error: row pulled: ls4 left out; the evaluation says why" in printed.err
    table = json.loads((out / "table.json").read_text())
    trained, lost, earlier, pulled = table["rows"]
    assert trained["digest"] == Checkpoints(str(out / "trained")).latest().digest
    assert (trained["nimg"] >= 100, earlier["nimg"], pulled["nimg"]) == (True, 8000, 8000)
    assert lost["results"] == []
    assert earlier["results"][0]["value"] == pulled["results"][0]["value"]
    value, digest = (earlier["results"][0][key] for key in ("value", "fingerprint_digest"))
    markdown = (out / "table.md").read_text()
    assert "|  | kimg | msssim4 | ls4_z | ls4_w |\n|---|---|---|---|---|\n" in markdown
    assert f"| earlier | 8 | {value:.5g} | - | - |\n" in markdown
    assert f"| *fingerprint* |  | `{digest[:12]}` |  |  |\n" in markdown
    assert markdown in printed.out
    assert values.read(str(out / "values" / "earlier.json"))[0].value == value

    # The same again: what is there is neither trained nor measured again.
    marker = Path(trained["url"], "commit.json")
    before = marker.stat().st_mtime_ns, (out / "values" / "trained.json").stat().st_mtime_ns
    assert sweep.main(command) == 1
    after = marker.stat().st_mtime_ns, (out / "values" / "trained.json").stat().st_mtime_ns
    assert after == before
    assert "trained: training" not in capsys.readouterr().out
    assert (out / "table.md").read_text() == markdown


def test_values_that_were_measured_in_two_ways_say_so(checkpoint, data):
    a = evaluate_quickly(checkpoint, data)[0]
    b = dataclasses.replace(a, fingerprint={**a.fingerprint, "seed": 7})
    table = Table(title="T", metrics=("fid10",), rows={})
    rows = [RowResult(name=n, columns=("fid10",), results=(r,)) for n, r in (("x", a), ("y", b))]

    text = to_markdown(table, rows)

    assert f"| x | - | {a.value:.5g} (`{a.fingerprint_digest[:12]}`) |" in text
    assert f"| y | - | {b.value:.5g} (`{b.fingerprint_digest[:12]}`) |" in text
    assert "| *fingerprint* |  | differ |" in text


GAN = {"config": "gan"}


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ({"a": GAN}, [], "row a: data is missing; set it"),
        ({"a": GAN}, ["data.url={data}"], r"row a: network.resolution is .*, but .* has no level"),
        ({"a": {**GAN, "overrides": ["x.y=1"]}}, ["data.url={data}"], "row a: unknown option x"),
        ({"a": {"config": "ga"}}, [], "row a: --config ga is neither a file nor a preset"),
        ({"a": {**GAN, "run": "x"}}, [], "row a has config and run; give it one of config"),
        ({"a": {}}, [], "row a has nothing; give it one of config"),
        ({"a": {"confg": "gan"}}, [], r"rows.a.confg: .*; a table has title, metrics, rows and"),
        ({"a/b": GAN}, [], "row 'a/b' cannot name a folder and a model; use letters"),
        ({}, [], "has no rows; name some"),
        ({"a": {"run": "x", "metrics": ["fdi"]}}, [], "row a: evaluation.metrics: 'fdi' is no met"),
        ({"a": {"run": "x", "overrides": ["workers=1"]}}, [], "row a is not trained; leave its ov"),
        ({"a": {"model": "x"}}, [], "row a: a model does not say where its data are; name them"),
        ({"a": {"run": "x"}}, ["--num-images", "1"], "--num-images is 1; choose at least 2"),
        ({"a": {"run": "x"}}, ["--evaluate=--workers 0"], "row a: --workers is 0; choose at least"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_starts(
    rows, arguments, message, data, tmp_path, capsys
):
    filled = [argument.format(data=data) for argument in arguments]
    out = tmp_path / "out"

    assert sweep.main([write(tmp_path, rows), "--out", str(out), *filled]) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.match("error: .*" + message, printed.err)
    assert printed.err.count("\n") == 1
    assert not out.exists()


def test_a_table_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "odd.yaml").write_text("a: [\n")
    for name, message in (
        ("table-9", "neither a file nor a table; choose from pggan-table-1, stylegan-table-1"),
        (str(tmp_path / "list.yaml"), "list.yaml: the file: .*; a table has title"),
        (str(tmp_path / "odd.yaml"), "odd.yaml cannot be read as YAML"),
    ):
        assert sweep.main([name, "--out", str(tmp_path)]) == 2
        assert re.search(message, capsys.readouterr().err)
