"""What is made once for everybody who asks within a moment."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
KEEP_SECONDS = 0.25
"""How long a thing is reused while its *version* stays the same."""


class Cached(Generic[T]):
    """A thing that is kept; a changed *version* says that *make* would surely make another one."""

    def __init__(
        self,
        make: Callable[[], T],
        version: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._version = version
        self._clock = clock
        self._kept: T
        self._of: object = None
        self._until = float("-inf")

    def __call__(self) -> T:
        """Returns the thing, made at most a moment ago."""
        version, now = self._version(), self._clock()
        if now >= self._until or version != self._of:
            self._kept = self._make()
            self._of, self._until = version, now + KEEP_SECONDS
        return self._kept
