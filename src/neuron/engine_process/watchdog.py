"""Decides when an engine that has work is stuck; pure, no clock, no torch."""

from collections import deque
from dataclasses import dataclass

RECENT_STEPS = 64


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long an engine may be silent, in seconds."""

    load_seconds: float = 300.0
    """Between two messages while it loads."""
    first_step_seconds: float = 120.0
    """Until its first step ends, which may compile kernels."""
    step_seconds: float = 30.0
    """Least time allowed for each later step; see *factor*."""
    factor: float = 10.0
    """A step may take this many times as long as the slowest recent one."""
    stopped_seconds: float = 2.0
    """How long a process may be stopped by a signal while it has work."""


class StepWatch:
    """Measures how long the engine has had work without finishing a step."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self.silent_seconds = 0.0
        self._stopped_seconds = 0.0

    @property
    def deadline(self) -> float:
        """Seconds of silence after which the engine is stuck."""
        if not self._recent:
            return self._deadlines.first_step_seconds
        return max(self._deadlines.step_seconds, self._deadlines.factor * max(self._recent))

    def step(self, seconds: float) -> None:
        """Records a step that took *seconds*."""
        self._recent.append(seconds)
        self.silent_seconds = 0.0

    def tick(self, seconds: float, *, has_work: bool, is_stopped: bool = False) -> str:
        """Counts *seconds* without a finished step; returns why the engine is stuck, empty while it
        is not. One that *is stopped* by a signal computes nothing, whatever its steps take."""
        self.silent_seconds = self.silent_seconds + seconds if has_work else 0.0
        self._stopped_seconds = self._stopped_seconds + seconds if has_work and is_stopped else 0.0
        if self.silent_seconds > self.deadline:
            return (
                f"no step finished for {self.silent_seconds:.1f} s (deadline {self.deadline:.1f} s)"
            )
        if self._stopped_seconds > self._deadlines.stopped_seconds:
            return f"a signal had stopped it for {self._stopped_seconds:.1f} s"
        return ""
