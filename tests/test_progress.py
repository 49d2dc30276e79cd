"""What a training looks like on a terminal and in a log."""

import dataclasses
import io

import pytest
from rich.console import Console

from pipeline.marker import CommittedCheckpoint
from pipeline.observer import Commit, Tick
from pipeline.progress import Bar, Lines, display

TICK = Tick(
    nimg=18_000,
    total_nimg=36_000,
    lod=0.25,
    resolution=32,
    batch=32,
    images_per_s=60,
    metrics={"loss/D": 0.9, "loss/G": 1.4, "loss/r1": 0.1399, "time/data_wait_s": 0.0},
)


@pytest.mark.parametrize("terminal", [True, False])
def test_everything_a_tick_says_fits_eighty_columns_on_a_terminal(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    with display(console) as shown:
        assert isinstance(shown, Bar if terminal else Lines)
        shown.began(0, "")
        shown.tick(TICK)
    text = out.getvalue()
    # 18,000 images at 60 a second are five minutes.
    for part in ("18.0/36.0 kimg", "32 px", "lod 0.25", "60 img/s", "D 0.900 G 1.400", "left 5:00"):
        assert part in text
    assert "…" not in text
    assert "training begins" in text


def test_only_losses_that_there_are_are_shown():
    """A tick without R1, such as one between two lazy updates or of WGAN-GP."""
    out = io.StringIO()
    metrics = {"loss/D": 0.9, "loss/G": 1.4, "loss/gp": 0.25, "time/data_wait_s": 0.0}
    Lines(Console(file=out, width=200)).tick(dataclasses.replace(TICK, metrics=metrics))
    assert "loss D 0.900 G 1.400 gp 0.250  data wait" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("path", ["/data/photos[old]/x", "/data/a[/b]/x", "/data/:smile:/x"])
def test_a_path_is_shown_as_it_is_whatever_brackets_it_has(path, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    checkpoint = CommittedCheckpoint(url=path, nimg=0, attempt=0, digest="ab", files={})
    with display(console) as shown:
        shown.began(1000, path)
        shown.committed(Commit(checkpoint=checkpoint, lod=0.0, samples_url=path))
        shown.say(path)
    assert out.getvalue().count(path) == 3


def test_a_run_that_goes_on_says_where_and_from_what():
    out = io.StringIO()
    Lines(Console(file=out, width=80)).began(64_000, "runs/x/checkpoints/000-000000064000")
    assert "goes on at 64.0 kimg from runs/x/checkpoints/000-000000064000" in out.getvalue()
