"""Who is stuck, from what the ranks report."""

import dataclasses

import pytest

from pipeline.pulse import COMMIT, DATA, END, START, STEP, Beat, Pulse, WatchdogConfig
from pipeline.watchdog import Watchdog

CONFIG = WatchdogConfig(silent_s=10, stuck_s=20)
BEAT = Beat(
    group="a",
    rank=0,
    world=2,
    host="node",
    pid=7,
    phase=STEP,
    phase_s=0.1,
    limit_s=20,
    nimg=96,
    collectives=5,
    collective="w_avg",
)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watchdog(clock):
    return Watchdog(CONFIG, clock=clock)


def _hear(watchdog, **changes):
    watchdog.hear(dataclasses.replace(BEAT, **changes))


def test_a_silent_rank_is_named_with_its_phase_and_last_collective_once(watchdog, clock):
    for rank in (0, 1):
        _hear(watchdog, rank=rank, phase=DATA)
    for clock.now_s in range(1, 11):
        _hear(watchdog)
        assert watchdog.look() is None
    clock.now_s = 10.5
    _hear(watchdog)

    alarm = watchdog.look()

    assert alarm.group == "a"
    assert alarm.message == (
        "worker 1 has been silent for 10 s, last seen in phase 'data' at 96 images (last "
        "collective: w_avg; process 7 of node)"
    )
    _hear(watchdog)
    assert watchdog.look() is None


def test_who_keeps_the_others_waiting_is_named_and_not_who_waits(watchdog):
    """Both are over their limit; rank 0 has begun the collective that rank 1 has not reached."""
    _hear(watchdog, rank=0, phase=STEP, phase_s=21, collectives=6)
    _hear(watchdog, rank=1, phase=DATA, phase_s=22, collectives=5)

    alarm = watchdog.look()

    assert alarm.message.startswith("worker 1 is stuck in phase 'data' at 96 images")
    assert "worker 0" not in alarm.message


def test_a_new_group_is_watched_anew_and_reports_of_the_old_one_are_late(watchdog, clock):
    for rank in (0, 1):
        _hear(watchdog, rank=rank)
    clock.now_s = 9
    for rank in (0, 1):
        _hear(watchdog, rank=rank, group="b")
    _hear(watchdog, rank=1, phase_s=1000)
    clock.now_s = 15
    assert watchdog.look() is None

    _hear(watchdog, rank=0, group="c", world=1)
    clock.now_s = 24
    assert watchdog.look() is None, "a smaller group has no rank 1"


def test_nothing_is_wrong_while_ray_starts_a_group_again(watchdog, clock):
    """One has died and Ray has ended the others: nobody reports."""
    for rank in (0, 1):
        _hear(watchdog, rank=rank)
    clock.now_s = 5
    _hear(watchdog, rank=0)
    clock.now_s = 14
    assert watchdog.look() is None


def test_each_phase_has_its_limit():
    config = WatchdogConfig(stuck_s=20, first_s=300, commit_s=120)
    pulse = Pulse(config)
    assert pulse.place()[2] == 300
    for phase, limit_s in {DATA: 20, STEP: 20, COMMIT: 120, END: float("inf"), START: 300}.items():
        pulse.enter(phase, nimg=96)
        assert (pulse.place()[0], pulse.place()[2:]) == (phase, (limit_s, 96))
    pulse.enter(STEP, nimg=96, first=True)
    assert pulse.place()[2] == 300, "it may be compiled"


def test_slow_minibatches_are_given_more_time_and_forgotten(monkeypatch):
    """On one CPU a minibatch of 1024 px takes minutes."""
    clock = Clock()
    monkeypatch.setattr("pipeline.pulse.time.monotonic", clock)
    pulse = Pulse(WatchdogConfig(stuck_s=20))
    pulse.enter(STEP, nimg=0, first=True)
    clock.now_s = 60
    pulse.enter(STEP, nimg=8)
    assert pulse.place()[2] == 300
    for _ in range(16):
        clock.now_s += 1
        pulse.enter(STEP, nimg=16)
    assert pulse.place()[2] == 20


def test_a_collective_may_wait_for_a_rank_in_its_longest_phase():
    assert WatchdogConfig().collective_s < 600
    assert WatchdogConfig(first_s=50, commit_s=200, silent_s=5).collective_s == 205


def test_limits_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"watchdog\.stuck_s is 0; choose seconds above 0"):
        WatchdogConfig(stuck_s=0)
