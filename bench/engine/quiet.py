"""A meter of what else the machine computes: /proc/stat less the process that is measured.

OpenMP programs become many times slower as soon as anything keeps one of their cores busy, so a
sample that was taken beside foreign work says nothing about its contestant.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
WINDOW_SECONDS = 1.0
IDLE_FIELDS = (3, 4)
"""idle and iowait, in the first line of /proc/stat; its eighth field, steal, counts as busy."""
STAT_FIELDS = 8
"""The later ones, guests, are contained in the first two."""


class Reading(NamedTuple):
    """CPU time since boot, in ticks of all cores together."""

    total: int
    busy: int
    own: int

    def foreign_since(self, before: "Reading") -> float:
        """The share of the machine that others used since *before*; 0 … 1."""
        total = self.total - before.total
        foreign = (self.busy - before.busy) - (self.own - before.own)
        return max(0.0, foreign / total) if total else 0.0


def read(pids: Sequence[int], proc: Path = PROC) -> Reading:
    """The meter now; the processes *pids* are not foreign."""
    own = sum(_ticks(pid, proc) for pid in pids)
    first = (proc / "stat").read_text().splitlines()[0]
    fields = [int(field) for field in first.split()[1 : 1 + STAT_FIELDS]]
    return Reading(sum(fields), sum(fields) - sum(fields[i] for i in IDLE_FIELDS), own)


def _ticks(pid: int, proc: Path) -> int:
    """utime and stime of all threads of *pid*."""
    # The name of the program, in brackets, may hold anything.
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_for_quiet(
    limit: float,
    patience_seconds: float,
    *,
    measure: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Returns True once a window had less foreign work than *limit*, False when patience ends."""
    deadline = clock() + patience_seconds
    measure = measure or _window
    while measure() >= limit:
        if clock() >= deadline:
            return False
    return True


def _window() -> float:
    before = read([os.getpid()])
    time.sleep(WINDOW_SECONDS)
    return read([os.getpid()]).foreign_since(before)
