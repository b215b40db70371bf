"""A body that is made once for many who ask at about the same time."""

import time
from collections.abc import Callable

KEEP_SECONDS = 0.25
"""As long as what it is made of says that it is the same."""


class CachedBody:
    """*version* is another one when *make* would make another body for sure."""

    def __init__(
        self,
        make: Callable[[], bytes],
        version: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._version = version
        self._clock = clock
        self._body = b""
        self._of: object = None
        self._until = float("-inf")

    def __call__(self) -> bytes:
        """The body, at most a moment old."""
        version, now = self._version(), self._clock()
        if now >= self._until or version != self._of:
            self._body = self._make()
            self._of, self._until = version, now + KEEP_SECONDS
        return self._body
