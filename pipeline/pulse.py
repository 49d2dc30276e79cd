"""What a rank is doing, for whoever watches over it; and what it is told to do.

    pulse.enter("step")      # the loop: plain assignments, no synchronization
    pulse.beat(...)          # a thread of the same process, now and then
    pulse.stop.set()         # a signal or the driver: commit and end

A phase has a limit of its own: the first minibatch of a level may compile for minutes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

START, DATA, STEP, COMMIT, END = "start", "data", "step", "commit", "end"


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """When a rank counts as stuck, and its group is started again."""

    silent_s: float = 20
    """Seconds without a report after which a rank is stopped, dead or cut off."""
    stuck_s: float = 25
    """Seconds for a minibatch or its data; more where the last minibatches took a fifth of them."""
    first_s: float = 300
    """Seconds for the start, and for the first minibatch of a level, which may be compiled."""
    commit_s: float = 120
    """Seconds for a sample grid and a copy of the state in host memory."""

    def __post_init__(self) -> None:
        for name in ("silent_s", "stuck_s", "first_s", "commit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"watchdog.{name} is {getattr(self, name)}; choose seconds above 0"
                )

    @property
    def collective_s(self) -> float:
        """Limit of a collective: ranks may wait in it for one that is in its longest phase."""
        return max(self.first_s, self.commit_s, self.stuck_s) + self.silent_s


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A report of one rank."""

    group: str
    """Of the processes that have started together."""
    rank: int
    world: int
    host: str
    pid: int
    phase: str
    phase_s: float
    """Seconds in this phase."""
    limit_s: float
    """Seconds after which it is stuck there."""
    nimg: int
    collectives: int
    """Collective operations begun."""
    collective: str
    """The last one."""


@dataclass(frozen=True)
class _Place:
    phase: str
    since_s: float
    first: bool
    nimg: int


class Pulse:
    """Where the loop of this process is (see the head of this file)."""

    def __init__(self, config: WatchdogConfig | None = None) -> None:
        self.config = config or WatchdogConfig()
        self.stop = threading.Event()
        """Whoever sets it wants a checkpoint and the end, at the next opportunity of all ranks."""
        self.collective: Callable[[], tuple[int, str]] = lambda: (0, "none")
        """How many collectives have begun, and the last one."""
        self._recent_s: deque[float] = deque([0.0], maxlen=16)
        self._place = _Place(START, time.monotonic(), True, 0)

    def enter(self, phase: str, *, nimg: int, first: bool = False) -> None:
        """Say that a phase begins; `first` for the first minibatch of a level."""
        now_s, before = time.monotonic(), self._place
        if before.phase == STEP:
            self._recent_s.append(now_s - before.since_s)
        self._place = _Place(phase, now_s, first, nimg)

    def place(self) -> tuple[str, float, float, int]:
        """Phase, seconds in it, seconds it may take, images shown."""
        place, config = self._place, self.config
        limit_s = {
            START: config.first_s,
            DATA: config.stuck_s,
            STEP: max(config.stuck_s, 5 * max(self._recent_s)),
            COMMIT: config.commit_s,
            END: float("inf"),
        }[place.phase]
        if place.first:
            limit_s = max(limit_s, config.first_s)
        return place.phase, time.monotonic() - place.since_s, limit_s, place.nimg
