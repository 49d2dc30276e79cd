"""As many workers as there are: the same images with the same random numbers, whoever has them."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.feed import Feed
from pipeline.loop import train
from pipeline.options import ConfigError
from pipeline.pulse import Pulse
from stylegan.draws import D_STEP, G_STEP
from tests.processes import ProcessGroup, free_port, run_ranks
from tests.test_loop import Recorder, tiny_config

# Ids and draws.


class _StopAt(Pulse):
    nimg = 10**9

    def enter(self, phase: str, *, nimg: int, first: bool = False) -> None:
        super().enter(phase, nimg=nimg, first=first)
        if nimg >= self.nimg:
            self.stop.set()


def _write_down(path: Path) -> None:
    """Have every Feed of this process record what it hands out, image by image."""
    parts, request = Feed.parts, Feed.draws

    def recorded(self: Feed, minibatch):
        taken = parts(self, minibatch)
        draws = request(self, minibatch)
        with path.open("a") as file:
            for number, (offsets, part) in enumerate(
                zip(self.split.parts(minibatch.phase.batch), taken, strict=True)
            ):
                z = [draws.fakes(step, number).z for step in (D_STEP, G_STEP)]
                for place, offset in enumerate(offsets.tolist()):
                    seen = [part.reals[place].double().sum().item()]
                    seen += [each[place].double().sum().item() for each in z]
                    file.write(json.dumps([minibatch.nimg + offset, *seen]) + "\n")
        return taken

    Feed.parts = recorded


def _train(rank: int, world: int, config: TrainConfig, port: int, until: int, log: Path) -> None:
    _write_down(log / f"{world}-{rank}.jsonl")
    pulse = _StopAt(config.watchdog)
    pulse.nimg = until
    with ProcessGroup(rank, world, port):
        train(config, observer=Recorder(), pulse=pulse)


@pytest.mark.slow
def test_ids_and_draws_do_not_depend_on_how_many_workers_there_are_when(tiny_data, tmp_path):
    """Two workers, then three, then one; the number of each image, its pixels and both its z."""
    config = tiny_config(tiny_data, tmp_path / "run", workers=(1, 3))
    logs = {"whole": tmp_path / "whole", "parts": tmp_path / "parts"}
    for log in logs.values():
        log.mkdir()
    whole = tiny_config(tiny_data, tmp_path / "once", workers=(1, 3))
    run_ranks(_train, 1, 1, whole, free_port(), 10**9, logs["whole"])
    for world, until in ((2, 250), (3, 450), (1, 10**9)):
        run_ranks(_train, world, world, config, free_port(), until, logs["parts"])

    seen = {}
    for name, log in logs.items():
        written = "".join(path.read_text() for path in log.iterdir())
        lines = [json.loads(line) for line in written.splitlines()]
        seen[name] = sorted(lines)
    assert [line[0] for line in seen["whole"]] == list(range(720))
    # After a stop DDP rehearses with a minibatch, which is trained on right after: seen twice.
    assert sorted({tuple(line) for line in seen["parts"]}) == [tuple(w) for w in seen["whole"]]
    for run in ("run", "once"):
        latest = Checkpoints(str(tmp_path / run)).load_latest()
        assert latest[0].nimg == 720
        assert all(torch.isfinite(tensor).all() for tensor in latest[1].values())


def test_every_number_of_workers_in_the_range_must_be_able_to_share_every_minibatch():
    assert tiny_config("/data", Path("/run"), workers=[1, 3]).worker_range == (1, 3)
    with pytest.raises(ConfigError, match="has 3 minibatch-stddev groups of 4, too few for 4 work"):
        tiny_config("/data", Path("/run"), workers=[1, 4])
    for workers in ([0, 2], [3, 2], 0):
        with pytest.raises(ConfigError, match=r"choose at least 1, or \[LEAST, MOST\]"):
            tiny_config("/data", Path("/run"), workers=workers)
