"""How long a load will still take: what the last one of the model took, else what the reading
suggests."""

import time

LEAST_SHARE = 0.05
"""Share of the bytes that must have been read before it says anything."""


class LoadForecast:
    """The forecast of one load, which begins now."""

    def __init__(self, expected_seconds: float) -> None:
        """*expected_seconds*: what the load should take; 0 = not known."""
        self._expected = expected_seconds
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._began

    def left(self, done: int, total: int) -> float | None:
        """Seconds left when *done* of *total* bytes have been read; None while that is unknown."""
        if self._expected:
            return round(max(0.0, self._expected - self.elapsed), 1)
        if not total or done < LEAST_SHARE * total:
            return None
        return round(self.elapsed * (total - done) / done, 1)
