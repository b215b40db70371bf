"""The order of a run: rounds of all loads, in each the contestants one after the other.

Owns when a sample is taken, taken again, or left out. In every round each load is run by all
contestants in turn, so that what changes about the machine meanwhile changes for all; every
second round goes the other way around.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from bench.engine import quiet
from bench.engine.figures import SPEED
from bench.engine.loads import GUIDE, Load
from bench.engine.peer import Maker
from bench.engine.rival import Rival
from bench.engine.samples import Memory, Sample, Store
from bench.engine.worker import Order

LONG_SECONDS = 40.0
"""A sample that took longer is not taken again, however disturbed."""
WARM_UP = -1
"""The seed of what a contestant runs before its first sample."""


class Pace(msgspec.Struct, frozen=True):
    """How much time a run may take."""

    minutes: float
    """No sample begins later."""
    quiet_limit: float
    """Foreign share of the machine beyond which a sample is disturbed; 0 … 1."""
    patience_seconds: float
    """How long to wait for quiet before a sample."""
    tries: int
    repeats: int | None = None
    """Instead of the loads' own."""


class Turn(NamedTuple):
    """A sample to be taken."""

    load: Load
    repeat: int
    rival: Rival


class Run:
    """Takes the samples that a store lacks."""

    def __init__(self, store: Store, pace: Pace, say: Callable[[str], None]) -> None:
        self._store, self._pace, self._say = store, pace, say
        self._end = time.monotonic() + pace.minutes * 60

    def take(self, loads: list[Load], rivals: list[Rival]) -> None:
        """Runs until everything is there or the time is over."""
        warm: set[str] = set()
        for turn in self._turns(loads, rivals):
            if time.monotonic() >= self._end:
                self._say("The time is over; the same command goes on from here.")
                break
            if turn.rival.contestant.name not in warm:
                warm.add(turn.rival.contestant.name)
                turn.rival.run(Order(loads[0], WARM_UP))
            self._sample(turn)
            self._note(turn.rival)

    def _turns(self, loads: list[Load], rivals: list[Rival]) -> Iterator[Turn]:
        for repeat in range(max(self._repeats(load) for load in loads)):
            for load in loads:
                able = [rival for rival in rivals if load.kind in rival.loaded.kinds]
                if load.heavy:
                    able = quickest(able, self._store)
                for rival in able[::-1] if repeat % 2 else able:
                    if repeat < self._repeats(load) and not self._has(rival, load, repeat):
                        yield Turn(load, repeat, rival)

    def _repeats(self, load: Load) -> int:
        return self._pace.repeats or load.repeats

    def _has(self, rival: Rival, load: Load, repeat: int) -> bool:
        return self._store.best(rival.contestant.name, load.name, repeat) is not None

    def _sample(self, turn: Turn) -> None:
        load, repeat, rival = turn
        for attempt in range(self._pace.tries):
            quiet.wait_for_quiet(self._pace.quiet_limit, self._pace.patience_seconds)
            began = time.monotonic()
            # A second try has other prompts: the first ones may be in a prefix cache.
            ran, foreign = rival.run(Order(load, repeat * self._pace.tries + attempt))
            seconds = time.monotonic() - began
            name = rival.contestant.name
            self._store.add(Sample(name, load.name, repeat, ran.figures, foreign, ran.error))
            shown = ran.error or ", ".join(f"{k} {v:.4g}" for k, v in ran.figures.items())
            self._say(
                f"{load.name} #{repeat + 1} {name}: {shown} "
                f"({seconds:.0f} s, foreign {foreign:.0%})"
            )
            if ran.error or foreign < self._pace.quiet_limit or seconds > LONG_SECONDS:
                return

    def _note(self, rival: Rival) -> None:
        memory = Memory(
            rival.private_loaded_mib,
            rival.private_peak_mib,
            rival.resident_peak_mib,
            rival.loaded.seconds,
        )
        self._store.note(rival.contestant.name, rival.loaded.about, memory)


def quickest(rivals: list[Rival], store: Store) -> list[Rival]:
    """Who runs a heavy load: all of ours, and of each other maker the quickest at GUIDE.

    Without a sample of that, all of a maker that are not quantised.
    """

    def speed(rival: Rival) -> float:
        sample = store.best(rival.contestant.name, GUIDE, 0)
        return sample.figures.get(SPEED.name, 0.0) if sample else 0.0

    peers = [r for r in rivals if not r.contestant.quantised]
    best = {
        maker: max((speed(r) for r in peers if r.contestant.maker is maker), default=0.0)
        for maker in Maker
    }
    return [
        r for r in peers if r.contestant.maker is Maker.OURS or speed(r) == best[r.contestant.maker]
    ]
