"""Predicts how long an engine's next step will take with one more row than now.

A neuron sends the prediction with its pulls, so that the fastest of all free neurons gets a job, on
any mix of machines. Learned from observed steps; pure.
"""

import math

PRIORITIES = 10
_FASTEST_SECONDS = 0.002
"""Steps up to this time have the best priority; each further priority doubles the time."""
_WEIGHT = 0.1
"""Weight of the newest step in the average."""


class StepTime:
    """Averages of step times, by the number of rows in powers of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._last_step = 0

    def saw(self, step: int, rows: int, seconds: float) -> None:
        """Records step number *step* with *rows* sequences; each step counts once."""
        if step == self._last_step or rows < 1 or seconds <= 0:
            return
        self._last_step = step
        level = rows.bit_length()
        known = self._seconds.get(level, seconds)
        self._seconds[level] = known + _WEIGHT * (seconds - known)

    def predicted(self, rows: int) -> float:
        """Predicts the seconds of a step with *rows* sequences; 0 when nothing is known.

        Between observed numbers of rows, the nearest smaller one gives a lower bound, because more
        rows never take less time; without a smaller one, the nearest greater one is used.
        """
        level = rows.bit_length()
        smaller = [known for known in self._seconds if known <= level]
        if smaller:
            return self._seconds[max(smaller)]
        return self._seconds[min(self._seconds)] if self._seconds else 0.0

    def priority(self, rows: int) -> int:
        """Priority of a pull, 0 (first) to 9; an engine without observations gets 0."""
        seconds = self.predicted(rows)
        if seconds <= _FASTEST_SECONDS:
            return 0
        return min(PRIORITIES - 1, math.ceil(math.log2(seconds / _FASTEST_SECONDS)))
