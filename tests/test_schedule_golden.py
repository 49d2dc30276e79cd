"""The schedule against the official tables and the events they imply (MANIFEST section 9)."""

import csv
import gzip
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from stylegan.schedule import Phase, ScheduleConfig, phase_at, phases
from tests.goldens import GOLDEN_DIR, entry, sets

Row = dict[str, str]

# Progressive GAN reports more often at large sizes than StyleGAN does.
PGGAN_TICK_KIMG = {512: 20, 1024: 10}


def tables(pattern: str) -> list[str]:
    """Sets with a row for each of many kimg."""
    return [name for name in sets(pattern) if "kimg" in entry(name)["columns"]]


def event_lists(pattern: str) -> list[str]:
    """Sets with a row for each event of a training."""
    return [name for name in sets(pattern) if "event" in entry(name)["columns"]]


def rows(name: str) -> list[Row]:
    with gzip.open(GOLDEN_DIR / entry(name)["file"], "rt", newline="") as file:
        found = list(csv.DictReader(file))
    assert found, f"{name} has no rows"
    return found


def official_config(options: dict[str, Any], *, num_gpus: int, **fields: Any) -> ScheduleConfig:
    """Official schedule options, spelt out by resolution without any of our tables."""
    sides = [2**r for r in range(2, 11)]
    batch = {s: options["minibatch_dict"].get(str(s), options["minibatch_base"]) for s in sides}
    for side, most in options.get("max_minibatch_per_gpu", {}).items():
        batch[int(side)] = min(batch[int(side)], most * num_gpus)
    return ScheduleConfig(
        table="none",
        batch={side: size - size % num_gpus for side, size in batch.items()},
        G_lr={int(side): lr for side, lr in options.get("G_lrate_dict", {}).items()},
        D_lr={int(side): lr for side, lr in options.get("D_lrate_dict", {}).items()},
        first_resolution=options.get("lod_initial_resolution", 4),
        stable_kimg=options.get("lod_training_kimg", 600),
        fade_kimg=options.get("lod_transition_kimg", 600),
        lr_rampup_kimg=options.get("lrate_rampup_kimg", 0),
        **fields,
    )


def assert_phase(phase: Phase, row: dict[str, Any], lod_error: float = 1e-9) -> None:
    assert phase.lod == pytest.approx(float(row["lod"]), abs=lod_error), row
    assert phase.resolution == int(row["resolution"]), row
    assert phase.batch == int(row["minibatch"]), row
    assert phase.G_lr == pytest.approx(float(row["G_lrate"]), abs=1e-9), row
    assert phase.D_lr == pytest.approx(float(row.get("D_lrate", row["G_lrate"])), abs=1e-9), row
    assert phase.tick_kimg == pytest.approx(float(row.get("tick_kimg", phase.tick_kimg))), row


def nimg_of(kimg: float) -> int:
    nimg = round(kimg * 1000)
    assert nimg == pytest.approx(kimg * 1000, abs=1e-6), f"{kimg} kimg are no whole images"
    return nimg


def test_every_golden_schedule_is_compared():
    compared = {*tables("C1_*"), *event_lists("C1_*"), *tables("C2_*")}
    assert compared == {*sets("C1_*"), *sets("C2_*")}


@pytest.mark.parametrize("name", tables("C1_*"))
def test_golden_stylegan_tables(name: str):
    for row in rows(name):
        config = ScheduleConfig(table=f"official-{row['num_gpus']}")
        nimg = nimg_of(float(row["kimg"]))
        assert_phase(phase_at(nimg, config, resolution=int(row["resolution_max"])), row)


@pytest.mark.parametrize("name", tables("C1_*"))
def test_golden_stylegan_options(name: str):
    for row in entry(name)["extra_option_checks"]:
        num_gpus = row["num_gpus"]
        options = entry(name)["configs"][str(num_gpus)] | row["overrides"]
        config = official_config(options, num_gpus=num_gpus)
        phase = phase_at(
            nimg_of(row["kimg"]), config, resolution=row["resolution"] << int(row["lod"])
        )
        # These lods are printed with 8 digits.
        assert_phase(phase, row, lod_error=1e-6)


@pytest.mark.parametrize("name", tables("C2_*"))
def test_golden_progressive_gan_tables(name: str):
    configs = {
        preset: official_config(
            config["sched"], num_gpus=config["num_gpus"], tick_kimg=PGGAN_TICK_KIMG
        )
        for preset, config in entry(name)["configs"].items()
    }
    for row in rows(name):
        config = configs[f"{row['preset']}-{row['precision']}"]
        nimg = nimg_of(float(row["kimg"]))
        assert_phase(phase_at(nimg, config, resolution=int(row["resolution_max"])), row)


def _runs() -> list[tuple[str, str, str]]:
    return [
        (name, *run)
        for name in event_lists("C1_*")
        for run in sorted({(row["num_gpus"], row["resolution_max"]) for row in rows(name)})
    ]


@pytest.mark.parametrize(("name", "num_gpus", "resolution"), _runs())
def test_golden_events_of_whole_runs(name: str, num_gpus: str, resolution: str):
    """Resets, changes and ticks happen after exactly as many images as officially."""
    config = ScheduleConfig(table=f"official-{num_gpus}")
    expected = [
        row
        for row in rows(name)
        if (row["num_gpus"], row["resolution_max"]) == (num_gpus, resolution)
    ]
    mine = list(_events(config, int(resolution)))
    totals = entry(name)["totals"][f"{num_gpus}gpu_{resolution}"]
    *_, (_, iterations, nimg, last_tick) = mine
    assert (iterations, nimg, last_tick) == (
        totals["outer_iterations"],
        totals["final_nimg"],
        totals["ticks"],
    )
    # Of the ticks only the first 60, then every 50th and the last are listed.
    listed = {(row["event"], int(row["iteration"]), int(row["cur_nimg"])) for row in expected}
    assert listed <= {event[:3] for event in mine}
    not_ticks = [event[:3] for event in mine if event[0] != "tick"]
    assert set(not_ticks) == {event for event in listed if event[0] != "tick"}
    assert len(not_ticks) == len(set(not_ticks))


def _events(config: ScheduleConfig, resolution: int) -> Iterator[tuple[str, int, int, int]]:
    """(event, iteration, nimg, tick); between two `phases` nothing but the lod changes."""
    starts = phases(config, resolution)
    ends = [phase.nimg for phase in starts[1:]] + [config.total_kimg * 1000]
    total = config.total_kimg * 1000
    iteration, nimg, tick, tick_start = 0, 0, 0, 0
    key, values = None, None
    for start, end in zip(starts, ends, strict=True):
        if nimg >= end:
            continue
        phase = phase_at(nimg, config, resolution=resolution)
        assert (phase.key, phase.batch, phase.resolution) == (
            start.key,
            start.batch,
            start.resolution,
        )
        if phase.key != key:
            key = phase.key
            yield "optimizer_reset", iteration, nimg, tick
        if (phase.batch, phase.G_lr, phase.resolution) != values:
            values = (phase.batch, phase.G_lr, phase.resolution)
            yield "params_change", iteration, nimg, tick
        while nimg < end:
            nimg += config.minibatch_repeats * phase.batch
            iteration += 1
            if nimg >= tick_start + phase.tick_kimg * 1000 or nimg >= total:
                tick, tick_start = tick + 1, nimg
                yield "tick", iteration, nimg, tick


def test_phases_name_every_boundary_of_a_run():
    config = ScheduleConfig(first_resolution=4, stable_kimg=2, fade_kimg=1, total_kimg=100)

    table = phases(config, 16)

    assert [(p.nimg, p.key, p.resolution) for p in table] == [
        (0, (2, 2), 4),
        (2001, (1, 2), 8),
        (3000, (1, 1), 8),
        (5001, (0, 1), 16),
        (6000, (0, 0), 16),
    ]
    for before, after in itertools.pairwise(table):
        assert phase_at(after.nimg - 1, config, resolution=16).key == before.key


def test_phases_end_with_the_run():
    config = ScheduleConfig(stable_kimg=2, fade_kimg=1, total_kimg=2.5)

    assert [p.key for p in phases(config, 32)] == [(2, 2), (1, 2)]


def test_without_a_fade_a_level_enters_at_once():
    config = ScheduleConfig(stable_kimg=1, fade_kimg=0, total_kimg=10)

    assert [(p.nimg, p.lod) for p in phases(config, 16)] == [(0, 1.0), (1000, 0.0)]


def test_overrides_take_precedence_over_the_table():
    config = ScheduleConfig(
        batch={8: 64}, lr={8: 0.002}, D_lr={8: 0.004}, tick_kimg={8: 5}, stable_kimg=1, fade_kimg=1
    )

    first, second, *_ = phases(config, 16)

    assert (first.batch, first.G_lr, first.D_lr, first.tick_kimg) == (64, 0.002, 0.004, 5)
    assert (second.batch, second.G_lr, second.D_lr) == (128, 0.001, 0.001)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_resolution": 6}, r"schedule\.first_resolution names 6 px.*powers of two"),
        ({"stable_kimg": -1}, r"schedule\.stable_kimg is -1; it must be 0 or above"),
        ({"fade_kimg": float("nan")}, r"schedule\.fade_kimg is nan"),
        ({"total_kimg": 0}, r"schedule\.total_kimg is 0; it must be above 0"),
        ({"minibatch_repeats": 0}, r"schedule\.minibatch_repeats is 0; it must be 1 or above"),
        ({"batch": {8: 0}}, r"schedule\.batch\.8 is 0; it must be above 0"),
        ({"lr": {12: 0.1}}, r"schedule\.lr names 12 px"),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "resolution", "message"),
    [
        ({"first_resolution": 64}, 32, r"first_resolution is 64, above the 32 px.*set it to 32"),
        ({"stable_kimg": 0, "fade_kimg": 0}, 32, r"never grow.*first_resolution to 32"),
        ({"table": "none", "batch": {8: 8}}, 32, r"no value for 16 px.*set schedule\.batch\.16"),
        ({}, 48, r"resolution names 48 px"),
    ],
)
def test_a_schedule_that_does_not_fit_the_data_is_refused(
    fields: dict[str, Any], resolution: int, message: str
):
    with pytest.raises(ValueError, match=message):
        phases(ScheduleConfig(**fields), resolution)
