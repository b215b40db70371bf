"""How long to wait between two tries of the same thing."""


class Pauses:
    """Pauses between tries, each twice as long as the one before."""

    def __init__(self, first_seconds: float, longest_seconds: float, failures: int) -> None:
        """*failures*: how many loads have failed before; each doubles the first pause."""
        self._first = first_seconds
        self._longest = longest_seconds
        self._seconds = min(first_seconds * 2.0 ** min(failures, 32), longest_seconds)

    def reset(self) -> None:
        """Begins with the shortest again, because it has worked for a while, or was changed."""
        self._seconds = self._first

    def next(self) -> float:
        """Returns the pause before the next try."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, self._longest)
        return seconds
