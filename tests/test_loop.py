"""The training loop on real process groups: the same run whatever kills it."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing

from data_prep import storage
from pipeline import config as configs
from pipeline.checkpoint import Checkpoints
from pipeline.config import ConfigError, TrainConfig
from pipeline.loop import train
from pipeline.minibatches import minibatches
from pipeline.observer import Commit, Tick
from tests.datasets import draw_images, make_data_set
from tests.processes import ProcessGroup, free_port, run_ranks

# Two levels with a fade between them in some 700 images; three workers have 3 groups to share.
OPTIONS: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "commit_kimg": 0.2,
    "network": {
        "resolution": 16,
        "G": {
            "z_size": 8,
            "w_size": 8,
            "mapping_width": 8,
            "mapping_layers": 2,
            "fmap_base": 64,
            "fmap_max": 8,
        },
        "D": {"fmap_base": 64, "fmap_max": 8},
    },
    "schedule": {
        "first_resolution": 8,
        "stable_kimg": 0.24,
        "fade_kimg": 0.24,
        "total_kimg": 0.72,
        "table": "none",
        "batch": {8: 12, 16: 12},
        "tick_kimg": {8: 0.06, 16: 0.06},
    },
    "data": {"mirror": True},
    "loader": {"threads": 1},
    "evaluation": {"metrics": []},
    "checkpoint": {"keep_last": 100},
}


def tiny_config(data: str, run: Path, **changes: Any) -> TrainConfig:
    options = json.loads(json.dumps(OPTIONS))
    options["schedule"] = OPTIONS["schedule"]
    options["data"]["url"] = data
    return configs.parse({**options, "run_url": str(run), **changes})


class Recorder:
    """Remembers what it was told; kills its process at a tick, if asked to."""

    def __init__(self, kill_at_nimg: int = 0) -> None:
        self.kill_at_nimg = kill_at_nimg
        self.beginnings: list[tuple[int, str]] = []
        self.ticks: list[Tick] = []
        self.commits: list[Commit] = []

    def began(self, nimg: int, url: str) -> None:
        self.beginnings.append((nimg, url))

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)
        if self.kill_at_nimg and tick.nimg >= self.kill_at_nimg:
            os.kill(os.getpid(), signal.SIGKILL)

    def committed(self, commit: Commit) -> None:
        self.commits.append(commit)


def _train_rank(rank: int, config: TrainConfig, port: int, kill_at_nimg: int) -> None:
    recorder = Recorder(kill_at_nimg if rank == 0 else 0)
    if config.workers == 1:
        train(config, observer=recorder)
        return
    with ProcessGroup(rank, config.workers, port):
        train(config, observer=recorder)


def train_in_processes(config: TrainConfig, kill_at_nimg: int = 0) -> None:
    run_ranks(_train_rank, config.workers, config, free_port(), kill_at_nimg)


def digests(run: Path | str) -> dict[str, str]:
    """SHA-256 of all tensors of the newest checkpoint."""
    latest = Checkpoints(str(run)).latest()
    assert latest is not None
    files = {name: file.sha256 for name, file in latest.files.items() if name != "state.json"}
    assert set(files) == {f"{name}.safetensors" for name in ("G", "D", "Gs", "G_opt", "D_opt")}
    return {"nimg": str(latest.nimg), **files}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_that_was_killed_ends_with_the_same_bits(workers, tiny_data, tmp_path):
    """kill -9 of rank 0 in the fade, between two commits; the same command again."""
    train_in_processes(tiny_config(tiny_data, tmp_path / "whole", workers=workers))

    config = tiny_config(tiny_data, tmp_path / "killed", workers=workers)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        train_in_processes(config, kill_at_nimg=350)
    interrupted = Checkpoints(config.run_url).latest()
    assert interrupted is not None
    assert 0 < interrupted.nimg < 350
    train_in_processes(config)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_the_same_command_again_after_the_end_trains_nothing(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path)
    first, again = Recorder(), Recorder()
    train(config, observer=first)
    before = digests(tmp_path)
    train(config, observer=again)
    assert first.beginnings == [(0, "")]
    assert again.beginnings[0][0] == first.ticks[-1].nimg
    assert not again.ticks
    assert digests(tmp_path) == before


def test_ticks_and_commits_tell_where_the_run_is(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path)
    recorder = Recorder()
    nimg = train(config, observer=recorder)
    # Outer iterations are 4 minibatches of 12.
    assert nimg == 720
    assert [commit.checkpoint.nimg for commit in recorder.commits] == [0, 240, 432, 624, 720]
    lods = [commit.lod for commit in recorder.commits]
    assert lods == pytest.approx([1.0, 1.0, 0.2, 0.0, 0.0])
    last = recorder.ticks[-1]
    assert (last.nimg, last.total_nimg, last.resolution) == (720, 720, 16)
    for name in ("loss/D", "loss/G", "loss/r1", "progress/lod", "time/data_wait_s"):
        assert name in last.metrics
    for commit in recorder.commits:
        assert storage.read_bytes(commit.samples_url).startswith(b"\x89PNG")


def test_every_epoch_shows_every_image_once_whatever_the_batches():
    """Positions are global image indices, so the loader's order makes them epochs."""
    config = tiny_config("unused", Path("unused"))
    places = [
        minibatch.nimg + offset
        for minibatch in minibatches(config, 0)
        for part in config.split(0, 1).parts(minibatch.phase.batch)
        for offset in part.tolist()
    ]
    assert sorted(places) == list(range(720))


def test_a_changed_config_is_refused_with_its_difference_unless_it_is_accepted(tiny_data, tmp_path):
    short = {**OPTIONS["schedule"], "total_kimg": 0.048}
    train(tiny_config(tiny_data, tmp_path, schedule=short), observer=Recorder())
    changed = tiny_config(tiny_data, tmp_path, loss={"r1_gamma": 5})
    with pytest.raises(ConfigError, match=r"loss\.r1_gamma is 5\.0, it was 10\.0.*accept_changes"):
        train(changed, observer=Recorder())
    accepted = tiny_config(
        tiny_data,
        tmp_path,
        loss={"r1_gamma": 5},
        accept_changes=["loss.r1_gamma"],
        schedule={**OPTIONS["schedule"], "total_kimg": 0.096},
    )
    recorder = Recorder()
    train(accepted, observer=recorder)
    assert recorder.beginnings[0][0] == 48
    assert recorder.ticks[-1].nimg == 96


def test_other_data_are_refused_by_their_digest(tiny_data, tmp_path):
    short = {**OPTIONS["schedule"], "total_kimg": 0.048}
    train(tiny_config(tiny_data, tmp_path / "run", schedule=short), observer=Recorder())
    source = draw_images(tmp_path / "images", 20, 16)
    make_data_set(source, str(tmp_path / "other"), 16)
    with pytest.raises(ConfigError, match=r"was begun with data of digest"):
        train(tiny_config(str(tmp_path / "other"), tmp_path / "run"), observer=Recorder())


def test_a_new_run_can_begin_with_the_weights_of_another(tiny_data, tmp_path):
    short = {**OPTIONS["schedule"], "total_kimg": 0.048}
    train(tiny_config(tiny_data, tmp_path / "first", schedule=short), observer=Recorder())
    source = Checkpoints(str(tmp_path / "first")).latest()
    assert source is not None
    config = tiny_config(tiny_data, tmp_path / "second", schedule=short, init_from=source.url)
    recorder = Recorder()
    train(config, observer=recorder)
    start = recorder.commits[0].checkpoint
    assert start.nimg == 0
    for name in ("G.safetensors", "D.safetensors", "Gs.safetensors"):
        assert start.files[name].sha256 == source.files[name].sha256


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        ("folder", {"network": {**OPTIONS["network"], "label_size": 2}}),
        ("none", {"step": {"micro_batch": 4, "mixing_prob": 0}}),
        (
            "none",
            {
                "loss": {
                    "adversarial": "wgan",
                    "r1_gamma": 0,
                    "wgan_gp_weight": 10,
                    "drift_weight": 0.001,
                }
            },
        ),
    ],
    ids=["labels", "micro-batches", "wgan-gp"],
)
def test_other_kinds_of_training_run_through_a_fade(labels, changes, tmp_path):
    for folder in ("a", "b"):
        draw_images(tmp_path / "images" / folder, 20, 16)
    make_data_set(tmp_path / "images", str(tmp_path / "data"), 16, labels=labels)
    schedule = {**OPTIONS["schedule"], "stable_kimg": 0.05, "fade_kimg": 0.1, "total_kimg": 0.2}
    config = tiny_config(str(tmp_path / "data"), tmp_path / "run", schedule=schedule, **changes)
    recorder = Recorder()
    train(config, observer=recorder)
    last = recorder.ticks[-1]
    assert last.lod == 0
    assert all(math.isfinite(value) for value in last.metrics.values())
    assert last.metrics["skipped/G"] == last.metrics["skipped/D"] == 0
