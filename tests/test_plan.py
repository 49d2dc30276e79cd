"""The planner: what a run takes, and what binds."""

import itertools
import json

import pytest
import torch

from pipeline import config as configs
from pipeline.beginning import new_state
from pipeline.footprint import footprint, largest_batch
from pipeline.plan import Cluster, main, plan
from pipeline.trial import levels
from tests.small_sets import make_folder, shard

TINY = ["network.G.fmap_base=256", "network.D.fmap_base=256"]
GIVEN = ["data.url=none", "run_url=none", *TINY, "network.resolution=32", "schedule.batch.32=32"]
RATES = {8: 100.0, 16: 50.0, 32: 10.0}
BYTES = {8: 100.0, 16: 1e3, 32: 1e4}


def _config(*options):
    return configs.load("ffhq-256", [*GIVEN, "workers=4", *options])


def test_hours_and_bytes_are_those_of_the_images_of_each_level():
    config = _config("schedule.total_kimg=4000")
    rows = plan(config, Cluster(gpus=4, price=2), rates=RATES, image_bytes=BYTES)

    # 600 stable, then 600 fading and 600 stable at 16 px, the rest at 32 px.
    assert [row.resolution for row in rows] == [8, 16, 32]
    assert [row.kimg for row in rows] == pytest.approx([600, 1200, 2200], abs=0.002)
    assert [row.share for row in rows] == [64, 32, 8]
    assert [row.images_per_s for row in rows] == pytest.approx([400, 200, 40])
    assert rows[-1].hours == pytest.approx(2200e3 / 40 / 3600)
    assert rows[-1].cost == pytest.approx(rows[-1].hours * 4 * 2)
    assert rows[-1].read_gb == pytest.approx(22)
    assert {row.binds for row in rows} == {"compute"}


def test_what_is_slowest_binds():
    def of(**cluster):
        rows = plan(_config(), Cluster(gpus=4, **cluster), rates=RATES, image_bytes=BYTES)
        return rows[-1].binds, rows[-1].images_per_s

    assert of(read_mb_s=0.1) == ("data", pytest.approx(10))
    binds, images_per_s = of(exchange_gb_s=1e-3)
    assert binds == "network"
    assert images_per_s < 40


def test_memory_is_that_of_the_state_and_grows_with_the_images():
    config = _config()
    phase = levels(config)[-1]
    used = [footprint(config, phase, batch=batch) for batch in (4, 8, 16)]

    assert used[0].state_bytes == used[1].state_bytes
    steps = [b.peak_bytes - a.peak_bytes for a, b in itertools.pairwise(used)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.05)
    memory = used[1].peak_bytes * 1.01
    assert largest_batch(config, phase, most=32, memory_bytes=memory) == 8
    assert largest_batch(config, phase, most=32, memory_bytes=used[0].state_bytes) == 0


def test_the_state_is_three_networks_and_two_moments_of_those_that_train():
    config = _config("network.kind=stylegan2", "schedule.first_resolution=32")
    (phase,) = levels(config)
    state = new_state(config, torch.device("cpu"))
    G, D, Gs = (
        sum(tensor.nbytes for tensor in network.parameters())
        for network in (state.G, state.D, state.Gs)
    )
    buffers = 2 * sum(tensor.nbytes for tensor in state.G.buffers())
    counted = footprint(config, phase, batch=4).state_bytes
    assert counted == pytest.approx(3 * G + 3 * D + Gs + buffers, abs=1000)


def test_the_command_measures_plans_and_reads_the_data_set(tmp_path, capsys):
    data = tmp_path / "data"
    shard(make_folder(tmp_path / "images", 8, side=32), data, resolution=32)
    small = [
        "--config", "ffhq-256", *GIVEN[1:], f"data.url={data}", "schedule.first_resolution=16",
        *(f"schedule.batch.{side}=4" for side in (16, 32)),
    ]  # fmt: skip

    assert main([*small, "--measure", str(tmp_path / "rates.json")]) == 0
    assert (
        main([*small, "--rates", str(tmp_path / "rates.json"), "--json", str(tmp_path / "p")]) == 0
    )

    rows = json.loads((tmp_path / "p").read_text())
    assert [row["resolution"] for row in rows] == [16, 32]
    assert all(row["hours"] > 0 for row in rows)
    shown = capsys.readouterr().out
    assert f"images: {data}" in shown
    assert "no rate" not in shown


def test_what_cannot_be_planned_is_said_in_one_sentence(tmp_path, capsys):
    (tmp_path / "rates.json").write_text("[]")

    assert main(["--config", "ffhq-1024", "--gpus", "64"]) == 2
    assert "too few for 64 workers; use at most" in capsys.readouterr().err
    assert main(["--config", "ffhq-256", "--rates", str(tmp_path / "rates.json")]) == 2
    assert "is no file of rates" in capsys.readouterr().err
    assert main(["--config", "ffhq-256", *GIVEN]) == 0
    assert "no rate for 8 px" in capsys.readouterr().out.replace("\n", " ")
