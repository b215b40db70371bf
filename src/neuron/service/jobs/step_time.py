"""How long the next step of an engine will take, with one more row than now.

A neuron tells it with its pulls, so that of all free ones the one that would serve a job fastest
gets it, on any mix of machines. Learnt from the steps seen; pure.
"""

import math

PRIORITIES = 10
_FASTEST_SECONDS = 0.002
"""What this or less takes is the best priority; each further one is for twice the time."""
_WEIGHT = 0.1
"""Of the newest step in the average."""


class StepTime:
    """Averages of step times, by the number of rows in powers of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._last_step = 0

    def saw(self, step: int, rows: int, seconds: float) -> None:
        """Step number *step* computed *rows* sequences; the same one is counted once."""
        if step == self._last_step or rows < 1 or seconds <= 0:
            return
        self._last_step = step
        level = rows.bit_length()
        known = self._seconds.get(level, seconds)
        self._seconds[level] = known + _WEIGHT * (seconds - known)

    def predicted(self, rows: int) -> float:
        """Seconds of a step with *rows* sequences; 0 when nothing is known.

        Between numbers of rows that were seen, the nearest smaller one is a lower bound, as more
        rows never take less time; else the nearest greater one.
        """
        level = rows.bit_length()
        smaller = [known for known in self._seconds if known <= level]
        if smaller:
            return self._seconds[max(smaller)]
        return self._seconds[min(self._seconds)] if self._seconds else 0.0

    def priority(self, rows: int) -> int:
        """Of a pull, 0 to 9, the lowest first; an engine that is not known yet is tried."""
        seconds = self.predicted(rows)
        if seconds <= _FASTEST_SECONDS:
            return 0
        return min(PRIORITIES - 1, math.ceil(math.log2(seconds / _FASTEST_SECONDS)))
