"""Decides when a text process that has not answered has had enough time. Pure.

Processor time counts, as it does not depend on what else the host does: work that used up its share
is to blame. A process that gets none, because it was stopped or waits for a disk, is replaced and
nobody is blamed.
"""

from enum import Enum

from neuron.hardware.host import ProcessTime
from neuron.ipc.text_messages import Working

GRACE_SECONDS = 0.5
"""Processor time in which the process may still say by itself that it was too much."""
STOPPED_SECONDS = 0.5
"""How long it may be stopped."""
IDLE_SECONDS = 5.0
"""How long it may get no processor time although it has something to do."""
CLOCK_FACTOR = 6.0
"""Work may take this many times its processor time by the clock, on a busy host."""
LEAST_CLOCK_SECONDS = 15.0
LOAD_SECONDS = 60.0
"""Time by the clock in which a model's files must be read, however slow the disk."""


class Verdict(Enum):
    """What is to be done about a process."""

    WAIT = "wait"
    TOO_MUCH = "too much"
    """Its work is to blame."""
    STUCK = "stuck"
    """Nobody is."""


class Patience:
    """Watches one piece of work after the other."""

    def __init__(self, work: Working, now: float) -> None:
        self.begin(work, now)

    def begin(self, work: Working, now: float) -> None:
        """Notes that the process is at *work* from *now* on."""
        self.work = work
        self._began = now
        self._start: float | None = None
        self._last = 0.0
        self._moved = now
        self._ran = now

    def judge(self, now: float, seen: ProcessTime | None) -> Verdict:
        """Judges by what was *seen* of the process; None = it cannot be seen."""
        passed = now - self._began
        if not self.work.cpu_seconds:
            if passed > LOAD_SECONDS:
                return Verdict.TOO_MUCH if self._used > passed / 2 else Verdict.STUCK
        elif passed > max(LEAST_CLOCK_SECONDS, CLOCK_FACTOR * self.work.cpu_seconds):
            return Verdict.TOO_MUCH if seen is None else Verdict.STUCK
        if seen is None:
            return Verdict.WAIT
        if self._start is None:
            # at most what has passed; what it had done before is not known
            self._start = seen.cpu_seconds - min(passed, seen.cpu_seconds)
        if seen.cpu_seconds > self._last:
            self._last, self._moved = seen.cpu_seconds, now
        if not seen.is_stopped:
            self._ran = now
        if now - self._ran > STOPPED_SECONDS:
            return Verdict.STUCK
        if not self.work.cpu_seconds:
            return Verdict.WAIT
        if self._used > self.work.cpu_seconds + GRACE_SECONDS:
            return Verdict.TOO_MUCH
        return Verdict.STUCK if now - self._moved > IDLE_SECONDS else Verdict.WAIT

    @property
    def _used(self) -> float:
        """Processor seconds that the work took, as far as is known."""
        return 0.0 if self._start is None else self._last - self._start
