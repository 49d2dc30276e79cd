"""What `make demo` decides by itself; the whole of it is run by `make demo`."""

import pytest
from rich.console import Console

from pipeline import config as configs
from pipeline import demo
from pipeline.result import Result, read_result


def _result(first: float, last: float, run_url: str = "run") -> Result:
    return Result(
        run_url=run_url,
        checkpoint_url="run/checkpoints/000-000000024000",
        checkpoint_digest="ab",
        nimg=24_000,
        metrics={"metric/kid300": last},
        first_metrics={"metric/kid300": first},
        model="demo/1",
        alias="champion",
        tracking_uri="sqlite:///mlflow.db",
        tracking_run_id="1",
    )


def test_the_demo_images_come_with_pip():
    assert len(list(demo.images().glob("*.png"))) == 4009


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
    assert config.evaluation.names == ("fid300", "kid300")


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
        "demo/1 as champion",
        "0.4 → 0.2",
        "mlflow ui",
    ):
        assert part in text
