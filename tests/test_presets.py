"""Presets: each is what its paper says, and trains."""

import csv
import functools
import gzip
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import config as configs
from pipeline.loop import train
from pipeline.observer import Commit, Tick
from pipeline.options import PRESETS
from pipeline.summary import show
from stylegan.networks import family
from stylegan.schedule import phase_at
from tests.goldens import GOLDEN_DIR, entry, sets

GIVEN = ["data.url=data", "run_url=run"]
ROOT = Path(__file__).parents[1]
OVERLAYS = {
    "demo-data": "gan",
    "small-gan": "gan",
    "small-dcgan": "dcgan",
    "small-pggan": "pggan",
    "small": "stylegan-f",
}
"""Laid over another preset; with one that fits."""


def names(pattern: str = "*") -> list[str]:
    return sorted(
        path.stem for path in PRESETS.glob(f"{pattern}.yaml") if path.stem not in OVERLAYS
    )


@pytest.mark.parametrize("preset", names())
def test_every_preset_is_valid_and_survives_being_written_out(preset, tmp_path):
    config = configs.load(preset, GIVEN)
    assert config.name == preset
    path = tmp_path / "written.yaml"
    path.write_text(configs.to_yaml(config))
    assert configs.load(str(path)) == config
    assert configs.parse(configs.to_dict(config)) == config


@pytest.mark.parametrize(("overlay", "preset"), OVERLAYS.items())
def test_an_overlay_keeps_the_name_of_what_it_is_laid_over(overlay, preset):
    config = configs.load([preset, overlay], GIVEN)
    assert config.name == preset
    assert config.network.resolution == 32


@pytest.mark.parametrize("preset", [*names("stylegan*"), "pggan", "dcgan", "gan", "demo"])
def test_every_preset_is_shown_by_a_dry_run(preset):
    small = [preset, "small-pggan"] if preset == "pggan" else [preset, "small"]
    config = configs.load(preset if preset in ("gan", "dcgan") else small, GIVEN)
    console = Console(record=True, width=100)
    show(config, console)
    text = console.export_text()
    assert f"name: {preset}" in text
    assert "G: " in text
    assert "nan" not in text


def test_the_presets_that_are_promised_ship():
    assert {"demo", "ffhq-256", "ffhq-512", "ffhq-1024", "celebahq-1024"} <= set(names())


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_ffhq_presets_are_the_official_run_on_eight_gpus(resolution):
    config = configs.load(f"ffhq-{resolution}", GIVEN)
    assert config.schedule.total_kimg == 25_000
    assert config.schedule.table == "official-8"
    assert config.network.resolution == config.network.G.resolution == resolution
    assert config.loss.r1_gamma == 10
    assert config.data.mirror


def test_the_celebahq_preset_trains_with_wgan_gp_and_capped_learning_rates():
    config = configs.load("celebahq-1024", GIVEN)
    assert (config.loss.adversarial, config.loss.wgan_gp_weight) == ("wgan", 10)
    assert config.loss.r1_gamma == 0
    assert max(config.schedule.lr.values()) == 0.002


DIFFERENCES = [
    ("stylegan-f", "ffhq-1024", {}),
    ("stylegan-e", "stylegan-f", {"step.mixing_prob": 0}),
    ("stylegan-d", "stylegan-e", {"network.G.use_noise": False}),
    ("stylegan-c", "stylegan-d", {"network.G.const_input": False}),
    (
        "stylegan-b",
        "stylegan-c",
        {
            "network.G.mapping_layers": 0,
            "network.G.use_styles": False,
            "network.G.use_instance_norm": False,
            "network.G.use_pixel_norm": True,
        },
    ),
    ("stylegan-traditional-0", "stylegan-b", {}),
    ("stylegan-traditional-8", "stylegan-b", {"network.G.mapping_layers": 8}),
    ("stylegan-mapping-0", "stylegan-f", {"network.G.mapping_layers": 0}),
    ("stylegan-mapping-1", "stylegan-f", {"network.G.mapping_layers": 1}),
    ("stylegan-mapping-2", "stylegan-f", {"network.G.mapping_layers": 2}),
    ("stylegan-mapping-8", "stylegan-f", {}),
    ("stylegan-mixing-0", "stylegan-e", {}),
    ("stylegan-mixing-50", "stylegan-f", {"step.mixing_prob": 0.5}),
    ("stylegan-mixing-90", "stylegan-f", {}),
    ("stylegan-mixing-100", "stylegan-f", {"step.mixing_prob": 1}),
    ("stylegan2-a", "stylegan-f", {}),
    ("stylegan2-c", "stylegan2-b", {"loss.r1_interval": 16}),
    ("stylegan2-d", "stylegan2-c", {"loss.path_weight": 2}),
    (
        "stylegan2-f",
        "stylegan2-e",
        {
            "loss.r1_gamma": 10,
            "network.G.fmap_base": 16384,
            "network.D.fmap_base": 16384,
        },
    ),
]


@pytest.mark.parametrize(("preset", "other", "expected"), DIFFERENCES)
def test_rows_of_the_tables_differ_in_what_the_papers_say(preset, other, expected):
    mine, theirs = (configs.load(name, GIVEN).identity() for name in (preset, other))
    changed = configs.differences(mine, theirs)
    assert {key: mine for key, (mine, _) in changed.items()} == expected


def _rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(GOLDEN_DIR / entry(name)["file"], "rt", newline="") as file:
        found = list(csv.DictReader(file))
    assert found, f"{name} has no rows"
    return found


@pytest.mark.parametrize("name", sets("C3_*"))
def test_golden_stylegan2_schedules_are_those_of_the_presets(name):
    """Batch, learning rates, lod and ticks; the number of GPUs chooses nothing here."""
    load = functools.cache(configs.load)
    for row in _rows(name):
        resolution = int(row["resolution_max"])
        letter = row["config"].removeprefix("config-")[0]
        config = load(f"stylegan2-{letter}", (*GIVEN, f"network.resolution={resolution}"))
        phase = phase_at(round(float(row["kimg"]) * 1000), config.schedule, resolution=resolution)
        assert phase.resolution == int(row["resolution"]), row
        assert phase.batch == int(row["minibatch_size"]), row
        assert phase.G_lr == pytest.approx(float(row["G_lrate"]), abs=1e-9), row
        assert phase.D_lr == pytest.approx(float(row["D_lrate"]), abs=1e-9), row
        assert phase.tick_kimg == float(row["tick_kimg"]), row
        assert phase.lod == pytest.approx(float(row["lod"]), abs=1e-9), row


@pytest.mark.parametrize("name", sets("C3_*"))
def test_golden_stylegan2_options_are_those_of_the_presets(name):
    for key, official in entry(name)["configs"].items():
        letter = key.removeprefix("config-")[0]
        config = configs.load(f"stylegan2-{letter}", GIVEN)
        assert config.loss.r1_gamma == official["D_loss_args"]["gamma"], key
        lazy = official["lazy_regularization"]
        assert (config.loss.r1_interval, config.loss.D_interval) == ((16, 16) if lazy else (1, 0))
        assert config.loss.G_adam_interval == (4 if lazy else 0), key
        pathreg = official["G_loss_args"]["func_name"].endswith("pathreg")
        assert config.loss.G_interval == (4 if pathreg else 0), key
        for adam in ("G_opt_args", "D_opt_args"):
            assert official[adam] == {
                "beta1": config.optimizer.beta1,
                "beta2": config.optimizer.beta2,
                "epsilon": config.optimizer.epsilon,
            }
        if letter != "a":
            fmap_base = official["G_args"].get("fmap_base", 16384)
            assert config.network.G.fmap_base == config.network.D.fmap_base == fmap_base, key


TINY = [
    "run_url=run",
    "workers=1",
    "commit_kimg=1",
    "loader.threads=1",
    "evaluation.metrics=[]",
    "network.resolution=16",
    "schedule.table=none",
    "schedule.stable_kimg=0.06",
    "schedule.fade_kimg=0.06",
    "schedule.total_kimg=0.2",
    *(
        f"schedule.{key}.{side}={value}"
        for side in (8, 16)
        for key, value in (("batch", 8), ("tick_kimg", 0.04), ("lr", 0.002))
    ),
]
SIZES = {
    "gan": ["network.G.widths=[16]", "network.D.widths=[6,6]"],
    "dcgan": ["network.G.width=4", "network.D.width=4"],
    "growing": [f"network.{n}.{key}" for n in "GD" for key in ("fmap_base=64", "fmap_max=8")],
}
SYSTEMS = ["gan", "dcgan", "pggan"]
SYSTEMS += [f"stylegan-{letter}" for letter in "bcdef"]
SYSTEMS += [f"stylegan2-{letter}" for letter in "abcdef"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_trains_200_images_without_a_nan(system, tiny_data, tmp_path, monkeypatch):
    """Through a fade where the networks grow; lazy regularization falls due more than once."""
    monkeypatch.chdir(tmp_path)
    overlay = f"small-{system}" if f"small-{system}" in OVERLAYS else "small"
    sizes = SIZES.get(system, SIZES["growing"])
    wide = ["network.G.fmap_base=128", "network.D.fmap_base=128"] * (system == "stylegan2-f")
    config = configs.load([system, overlay], [*TINY, *sizes, *wide, f"data.url={tiny_data}"])
    ticks: list[Tick] = []
    nimg = train(config, observer=Ticks(ticks))

    assert nimg >= 200
    values = {
        key: [tick.metrics[key] for tick in ticks if key in tick.metrics]
        for key in ticks[-1].metrics.keys() | {"loss/D", "loss/G"}
    }
    for key, series in values.items():
        assert all(math.isfinite(value) for value in series), (key, series)
    assert len(values["loss/D"]) >= 4
    assert set(values["skipped/D"] + values["skipped/G"]) == {0.0}
    shown = {key for tick in ticks for key in tick.metrics}
    assert ("loss/r1" in shown) == (config.loss.r1_gamma > 0)
    assert ("loss/path" in shown) == (config.loss.path_weight > 0)
    assert ("loss/gp" in shown) == (config.loss.wgan_gp_weight > 0)
    grew = {tick.resolution for tick in ticks}
    assert grew == ({8, 16} if config.network.G.grows else {16})


class Ticks:
    """Keeps what it is told."""

    def __init__(self, ticks: list[Tick]) -> None:
        self.ticks = ticks

    def began(self, nimg: int, url: str) -> None:
        """Nothing is kept."""

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)

    def committed(self, commit: Commit) -> None:
        """Nothing is kept."""


def test_the_table_of_presets_is_complete_and_names_tests_that_there_are():
    text = (ROOT / "stylegan" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert listed == set(names())
    for test in re.findall(r"`(test_\w+)`", text):
        assert (ROOT / "tests" / f"{test}.py").is_file(), test
    for row in rows:
        assert "`test_" in row or "as `stylegan-f`" in row, row


def test_lazy_regularization_corrects_both_optimizers_also_where_only_D_is_regularized():
    """As the official training loop does in configuration C (4 and 16 minibatches)."""
    config = configs.load("stylegan2-c", GIVEN)
    assert (config.loss.G_interval, config.loss.G_adam_interval, config.loss.D_interval) == (
        0,
        4,
        16,
    )


def test_every_kind_of_network_has_a_preset():
    kinds = {configs.load(name, GIVEN).network.kind for name in names()}
    assert kinds == set(family.KINDS)
