"""What `make demo` decides by itself; the whole of it is run by `make demo`."""

import dataclasses
import os

import pytest
from rich.console import Console

from pipeline import config as configs
from pipeline import demo, weights
from pipeline.result import Result, read_result


def _result(first: float, last: float, run_url: str = "run") -> Result:
    return Result(
        run_url=run_url,
        checkpoint_url="run/checkpoints/000-000000024000",
        checkpoint_digest="ab",
        nimg=24_000,
        metrics={"metric/kid300": last},
        first_metrics={"metric/kid300": first},
        fingerprints={"metric/kid300": "cd"},
        model="demo/1",
        alias="champion",
        tracking_uri="sqlite:///mlflow.db",
        tracking_run_id="1",
    )


def test_the_demo_images_come_with_pip_and_stay_as_they_are_when_it_installs_them_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    first, second, *_ = copies = sorted(demo.images().glob("*.png"))
    assert len(copies) == 4009
    whole = first.read_bytes()
    first.write_bytes(whole[:10])  # an interrupted copy
    os.utime(second, ns=(0, 0))  # older than what pip has now

    demo.images()

    assert first.read_bytes() == whole
    assert second.stat().st_mtime_ns == 0


def test_the_demo_does_not_begin_without_what_it_measures_with(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "demo")
    monkeypatch.setattr(weights, "CACHE", tmp_path)
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    with pytest.raises(demo.DemoError, match=r"are not below .*get them with `make weights`"):
        demo.steps(Console(quiet=True))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("missing", "when"), [("metrics", "end"), ("first_metrics", "start")])
def test_the_demo_says_that_nothing_was_measured(missing, when):
    result = dataclasses.replace(_result(0.4, 0.2), **{missing: {}})
    with pytest.raises(demo.DemoError, match=f"KID was not measured at the {when}; what the eval"):
        demo.check(result)


def test_the_demo_accepts_half_of_the_first_kid_and_nothing_worse():
    demo.check(_result(0.4, 0.2))
    with pytest.raises(demo.DemoError, match=r"from 0\.4000 to 0\.2010, but at most 0\.2000"):
        demo.check(_result(0.4, 0.201))


def test_the_demo_config_is_what_the_demo_promises():
    config = configs.load("demo")
    assert config.workers == 2
    assert config.schedule.first_resolution == 8
    assert config.network.resolution == 32
    assert config.step.average_half_life_kimg <= 0.5
    assert config.evaluation.num_images >= 300
    assert config.evaluation.metrics == ("fid", "kid")


def test_the_last_screen_says_what_was_made_where_it_is_and_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    _result(0.4, 0.2, str(tmp_path / "run")).write()
    assert read_result(str(tmp_path / "run")).metrics == {"metric/kid300": 0.2}
    console = Console(width=200, record=True)
    console.print(demo.last_screen(300))
    text = console.export_text()
    for part in (
        "done in 5.0 minutes",
        "mixing.png",
        "run/report.html",
        "demo/1 as champion",
        "0.4 → 0.2",
        "mlflow ui",
    ):
        assert part in text


def test_the_last_screen_shows_paths_as_they_are_and_puts_nothing_where_clean_removes_it(
    tmp_path, monkeypatch
):
    folder = tmp_path / "a[/b] c"
    monkeypatch.setattr(demo, "FOLDER", folder)
    result = _result(0.4, 0.2, str(folder / "run"))
    dataclasses.replace(result, first_metrics={}).write()
    console = Console(width=300, record=True)
    console.print(demo.last_screen(300), soft_wrap=True)
    text = console.export_text()
    assert f"{folder}/mixing.png" in text
    assert f"--model '{folder}'/model" in text
    own = next(line for line in text.splitlines() if "data_prep shard" in line)
    assert str(folder) not in own
    assert f"run_url={demo.OWN_FOLDER}/run" in own
