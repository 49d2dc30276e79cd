"""A training while its store, its workers or its tracking server are away."""

import time

from data_prep import storage
from pipeline.checkpoint import Checkpoints
from pipeline.loop import train
from pipeline.observer import Tick
from tests.services import BUCKET, start_s3_server
from tests.test_loop import Recorder, tiny_config


def test_a_store_that_is_away_for_some_commits_does_not_stop_the_training(
    tiny_data, tmp_path, monkeypatch, caplog
):
    """It goes away after the first commit and comes back before the end."""
    server = start_s3_server(tmp_path / "s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    away_at: list[int] = []

    class Outage(Recorder):
        def tick(self, tick: Tick) -> None:
            super().tick(tick)
            if not away_at:
                while Checkpoints(config.run_url).latest() is None:
                    time.sleep(0.05)
                server.stop()
                away_at.append(tick.nimg)
            elif tick.nimg == 720:
                server.start()

    whole = Recorder()
    try:
        config = tiny_config(
            tiny_data,
            f"s3://{BUCKET}/run",
            checkpoint={"keep_last": 100, "in_flight": 1, "wait_s": 0.1},
        )
        outage = Outage()
        assert train(config, observer=outage) == 720
        committed = [commit.checkpoint.nimg for commit in outage.commits]
        assert storage.exists(outage.commits[-1].samples_url)
    finally:
        server.stop()

    train(tiny_config(tiny_data, tmp_path / "whole"), observer=whole)
    assert [tick.nimg for tick in outage.ticks] == [tick.nimg for tick in whole.ticks]
    assert away_at[0] < 240
    whole_commits = [commit.checkpoint.nimg for commit in whole.commits]
    assert committed[:2] == [0, 240], caplog.text
    assert committed[-1] == 720
    assert set(committed) < set(whole_commits), "some are left out, none is new"
    assert "is left out: 1 are on their way" in caplog.text
    last = Checkpoints(str(tmp_path / "whole")).latest()
    assert last is not None
    tensors = {name: file for name, file in last.files.items() if name != "state.json"}
    kept = outage.commits[-1].checkpoint
    assert {name: kept.files[name] for name in tensors} == tensors
