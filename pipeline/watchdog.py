"""Watches over the ranks of a group by what they report, and names the one that is stuck.

watchdog = Watchdog(config)
watchdog.hear(beat)                # each report
alarm = watchdog.look()            # now and then; one alarm a group
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.pulse import Beat, WatchdogConfig


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A group that has to be started again."""

    group: str
    message: str
    """Which ranks, and where they are; one sentence."""


class Watchdog:
    """Remembers the last report of each rank of the newest group."""

    def __init__(
        self, config: WatchdogConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self._clock = clock
        self._group = ""
        self._over: set[str] = set()
        """Groups that have been given up or followed by another."""
        self._beats: dict[int, tuple[float, Beat]] = {}
        self._begun_s = 0.0

    def hear(self, beat: Beat) -> None:
        """Take a report."""
        if beat.group in self._over:
            return
        if beat.group != self._group:
            self._over.add(self._group)
            self._group, self._beats, self._begun_s = beat.group, {}, self._clock()
        self._beats[beat.rank] = (self._clock(), beat)

    def look(self) -> Alarm | None:
        """The group that has to be started again now; None if all is well."""
        if not self._beats or self._group in self._over:
            return None
        message = self._silent() or self._stuck()
        if not message:
            return None
        self._over.add(self._group)
        return Alarm(group=self._group, message=message)

    def _silent(self) -> str:
        """Of ranks that do not report."""
        now_s, limit_s = self._clock(), self.config.silent_s
        world = next(iter(self._beats.values()))[1].world
        newest_s = max(heard_s for heard_s, _ in self._beats.values())
        if world > 1 and now_s - newest_s > limit_s / 2:
            return ""  # all are gone: Ray starts them again
        said = []
        for rank in range(world):
            heard_s, beat = self._beats.get(rank, (self._begun_s, None))
            if now_s - heard_s > limit_s:
                last = f", last seen in {_where(beat)}" if beat else ""
                said.append(f"worker {rank} has been silent for {now_s - heard_s:.0f} s{last}")
        return "; ".join(said)

    def _stuck(self) -> str:
        """Of ranks that report and do not move: those that the others wait for."""
        late = [
            beat
            for heard_s, beat in self._beats.values()
            if beat.phase_s + (self._clock() - heard_s) > beat.limit_s
        ]
        if not late:
            return ""
        # Who waits in a collective has begun it; who keeps the others waiting has not.
        fewest = min(beat.collectives for _, beat in self._beats.values())
        culprits = [beat for beat in late if beat.collectives == fewest] or late
        return "; ".join(
            f"worker {beat.rank} is stuck in {_where(beat)} for {beat.phase_s:.0f} s"
            for beat in culprits
        )


def _where(beat: Beat) -> str:
    return (
        f"phase {beat.phase!r} at {beat.nimg} images (last collective: {beat.collective}; process "
        f"{beat.pid} of {beat.host})"
    )
