"""Trainings that are killed, stopped or gone astray at chosen places, on real process groups."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from data_prep import storage
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.divergence import DivergenceError
from pipeline.feed import Feed
from pipeline.loop import train
from pipeline.pulse import Pulse
from stylegan.step import TrainingStep
from tests.processes import ProcessGroup, free_port, run_ranks
from tests.test_loop import OPTIONS, Recorder, digests, tiny_config, train_in_processes

# Killed at chosen places.


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _train_and_die(rank: int, config: TrainConfig, place: str) -> None:
    if place == "between the steps of D and G":
        backward = TrainingStep._G_backward

        def dying(self: TrainingStep, *arguments: object) -> None:
            (_die if self.state.nimg >= 348 else backward)(self, *arguments)

        TrainingStep._G_backward = dying
    else:
        write = storage.write_atomic

        def writing(url: str, *arguments: object, **options: object) -> None:
            (_die if url.endswith(place) else write)(url, *arguments, **options)

        storage.write_atomic = writing
    train(config, observer=Recorder())


def test_a_run_killed_at_the_worst_places_in_turn_ends_with_the_same_bits(tiny_data, tmp_path):
    """In the fade, in a sample grid, in the middle of a checkpoint and just before its marker."""
    train_in_processes(tiny_config(tiny_data, tmp_path / "whole"))

    config = tiny_config(tiny_data, tmp_path / "killed")
    committed = []
    for place in (
        "samples/000-000000000240.png",
        "between the steps of D and G",
        "000-000000000432/Gs.safetensors",
        "000-000000000624/commit.json",
    ):
        with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
            run_ranks(_train_and_die, 1, config, place)
        committed.append([c.nimg for c in Checkpoints(config.run_url).list()])
    train_in_processes(config)

    assert committed == [[0], [0, 240], [0, 240], [0, 240, 432]]
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


# Asked to stop.


class StopAt(Pulse):
    """What a signal does, at a chosen place."""

    def enter(self, phase: str, *, nimg: int, first: bool = False) -> None:
        super().enter(phase, nimg=nimg, first=first)
        if nimg >= 300:
            self.stop.set()


def _train_and_stop(rank: int, config: TrainConfig, port: int) -> None:
    with ProcessGroup(rank, config.workers, port):
        pulse = StopAt(config.watchdog) if rank == config.workers - 1 else Pulse(config.watchdog)
        nimg = train(config, observer=Recorder(), pulse=pulse)
    assert 336 <= nimg <= 336 + 2 * 48, "within two outer iterations"


@pytest.mark.slow
def test_a_group_of_which_one_is_stopped_commits_and_goes_on_with_the_same_bits(
    tiny_data, tmp_path
):
    """Three workers: their sums depend on how DDP has laid out its buckets by then."""
    train_in_processes(tiny_config(tiny_data, tmp_path / "whole", workers=3))

    config = tiny_config(tiny_data, tmp_path / "stopped", workers=3)
    run_ranks(_train_and_stop, 3, config, free_port())
    stopped = Checkpoints(config.run_url).latest()
    assert stopped is not None
    assert stopped.nimg > 300
    train_in_processes(config)

    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


# Gone astray.


def test_a_run_whose_gradients_are_no_numbers_goes_back_and_draws_anew(
    tiny_data, tmp_path, monkeypatch, caplog
):
    """The first attempt meets poisoned images; the second does not."""
    parts = Feed.parts

    def poisoned(self: Feed, minibatch):
        clean = parts(self, minibatch)
        if self._state.attempt == 0 and minibatch.nimg >= 300:
            clean[0].reals.fill_(torch.nan)
        return clean

    monkeypatch.setattr(Feed, "parts", poisoned)
    config = tiny_config(tiny_data, tmp_path, divergence={"window": 4})
    recorder = Recorder()

    assert train(config, observer=recorder) == 720

    assert [nimg for nimg, _ in recorder.beginnings] == [0, 240]
    checkpoints = Checkpoints(str(tmp_path))
    kept = [(c.attempt, c.nimg) for c in checkpoints.list()]
    assert kept == [(0, 0), (0, 240), (1, 240), (1, 432), (1, 624), (1, 720)]
    (before, *_, last) = (checkpoints.load(c) for c in checkpoints.list()[1:])
    assert all(torch.isfinite(tensor).all() for tensor in last[0].values())
    (rollback,) = last[1]["rollbacks"]
    assert rollback["to_nimg"] == 240
    assert 300 <= rollback["from_nimg"] <= 432
    assert "gradients that are not finite): it goes back to 0.24 kimg" in caplog.text
    assert torch.equal(before[0]["G.w_avg"], checkpoints.load(checkpoints.list()[2])[0]["G.w_avg"])


def test_a_run_that_diverges_whatever_it_draws_ends_clearly(tiny_data, tmp_path):
    schedule = {**OPTIONS["schedule"], "G_lr": {8: 1e30, 16: 1e30}, "D_lr": {8: 1e30, 16: 1e30}}
    config = tiny_config(
        tiny_data, tmp_path, schedule=schedule, divergence={"window": 4, "max_rollbacks": 2}
    )
    recorder = Recorder()
    with pytest.raises(DivergenceError, match=r"max_rollbacks allows \(2\) have not helped: lower"):
        train(config, observer=recorder)
    assert [nimg for nimg, _ in recorder.beginnings] == [0, 0, 0]
    assert [c.checkpoint.attempt for c in recorder.commits] == [0, 1, 2]


def test_a_discriminator_that_tells_everything_apart_for_long_is_gone_back_from(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.divergence._ALL", -1.0)  # any D is taken for such a one
    config = tiny_config(
        tiny_data, tmp_path, divergence={"collapsed_kimg": 0.3, "max_rollbacks": 0}
    )
    with pytest.raises(DivergenceError, match=r"told all reals from all fakes for 0\.3"):
        train(config, observer=Recorder())
    assert Path(tmp_path, "checkpoints", "000-000000000240").is_dir()
