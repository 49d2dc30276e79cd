"""The page that shows a run: in a real browser, of a real training, without anything else."""

import io
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline import report
from pipeline.loop import train
from pipeline.mlflow_client import connect
from pipeline.record import update_record
from pipeline.report import __main__ as command
from pipeline.report import inside, records
from pipeline.tracking import Tracker, TrackingConfig, default_uri
from stylegan import sample
from tests.browser import look_at
from tests.test_loop import OPTIONS, Recorder, tiny_config

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SECTIONS = ["How it learned", "Curves", "Real or generated", "Which resolution does the work"]
SECTIONS += ["Inside w", "Feature maps", "Where it comes from"]


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> Path:
    """A training of 0.3 kimg from 8 to 16 px, with its MLflow in its folder, and its report."""
    folder = tmp_path_factory.mktemp("report") / "run"
    schedule = OPTIONS["schedule"] | {"stable_kimg": 0.096, "fade_kimg": 0.096, "total_kimg": 0.288}
    kept = {"keep_last": 2}
    config = tiny_config(tiny_data, folder, schedule=schedule, checkpoint=kept, commit_kimg=0.096)
    recorder = Recorder()
    folder.mkdir()
    tracking = TrackingConfig(uri=default_uri(folder), system_metrics=False)
    tracker = Tracker.open(tracking, run_id=None, spool=folder / "tracking-spool")
    tracker.describe(params={}, tags={"run_url": str(folder)}, config_text="")
    train(config, observer=recorder, tracking_run_id=tracker.run_id)
    for tick in recorder.ticks:
        tracker.log_tick(tick.nimg, tick.metrics)
    for nimg, value in ((0, 400.0), (288, 200.0)):
        tracker.log_tick(nimg, {"metric/fid300": value})
    update_record(str(folder), tracking_run_id=tracker.run_id, tracking_uri=tracking.uri)
    tracker.flush()
    # As the driver does at the end.
    for name, content in report.make(str(folder)).items():
        tracker.log_file(name, content)
    assert tracker.finish("FINISHED", timeout_s=200)
    return folder


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "narrow"])
def test_the_page_opens_in_a_browser_with_all_pictures_and_loads_nothing(run, width):
    seen = look_at(run / report.NAME, width=width)

    assert seen.facts["title"] == "tiny · training report"
    assert seen.facts["headings"] == SECTIONS
    images = dict(seen.facts["images"])
    assert all(width > 0 for width in images.values()), images
    alts = "|".join(images)
    for shown in ("FID-300 over", "Losses over", "Histograms", "component 4", "norms at 16 px"):
        assert shown in alts
    assert "400 → 200" in seen.facts["text"]
    assert seen.facts["overflow"] <= 0
    assert seen.complaints == []
    page, *embedded = seen.requests
    assert page == (run / report.NAME).as_uri()
    assert all(url.startswith("data:") for url in embedded)
    with Image.open(io.BytesIO(seen.screenshot)) as shot:
        assert shot.width == width
        assert len(shot.convert("RGB").getcolors(2**24)) > 1000


def test_the_page_names_nothing_outside_of_itself_and_runs_no_code(run):
    html = (run / report.NAME).read_text()
    assert not re.findall(r"<script|@import|url\(|\son\w+=", html)
    links = re.findall(r'\s(?:src|href|srcset|action)="([^"]{0,40})', html)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def test_the_report_and_its_pictures_are_artifacts_of_the_run(run):
    record = records.read_record(str(run))
    client = connect(record["tracking_uri"])
    run_id = record["tracking_run_id"]

    assert report.NAME in {file.path for file in client.list_artifacts(run_id)}
    pictures = {file.path for file in client.list_artifacts(run_id, "report")}
    assert {"report/logits.svg", "report/octaves.svg", "report/w-component-1.png"} <= pictures
    path = Path(client.download_artifacts(run_id, report.NAME))
    assert path.read_bytes() == (run / report.NAME).read_bytes()


def test_a_copy_gives_the_same_page_and_leaves_the_originals_tracking_alone(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / report.NAME).unlink()
    original = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    assert command.main([str(copy)]) == 0

    assert "report.html: " in capsys.readouterr().out
    html = (copy / report.NAME).read_text()
    assert html.replace(str(copy), str(run)) == (run / report.NAME).read_text()
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == original


def test_samples_are_read_off_their_grid_as_they_were_drawn(run):
    found = records.read(str(run))
    Gs = inside._generator(found, inside.Checkpoints.load(found.latest, {"Gs"})[0], "Gs")

    expected = sample.sample(Gs, range(32)).float() / 127.5 - 1

    assert [grid.nimg for grid in found.grids] == [0, 96, 192, 288]
    assert [grid.side for grid in found.grids][::3] == [8, 16]
    # A network this young enlarges rounding, in which memory formats differ.
    difference = (found.grids[-1].tensor() - expected).abs()
    assert difference.mean() < 0.002
    assert difference.amax() < 0.1


def test_what_is_out_of_reach_is_said_on_the_page_and_the_rest_is_shown(tiny_data, tmp_path):
    network = {"kind": "stylegan2", "resolution": 16, "D": {"fmap_base": 64, "fmap_max": 8}}
    network["G"] = {"fmap_base": 64, "fmap_max": 8, "z_size": 8, "w_size": 8, "mapping_layers": 2}
    schedule = {"total_kimg": 0.048, "table": "none", "batch": {16: 12}}
    data = shutil.copytree(tiny_data, tmp_path / "data")
    config = tiny_config(str(data), tmp_path / "run", network=network, schedule=schedule)
    train(config, observer=Recorder())
    shutil.rmtree(data)

    artifacts = report.make(config.run_url)

    html = artifacts[report.NAME].decode()
    assert re.search(r"Real images are missing: .*/data", html)
    assert "report/to-rgb.svg" in artifacts
    assert "report/logits.svg" not in artifacts
    assert "What D says now" not in html


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no checkpoint to report on; name the folder of a run, which holds "
        f"checkpoints/\n"
    )
