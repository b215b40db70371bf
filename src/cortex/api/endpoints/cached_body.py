"""A response body that is rendered once for everybody who asks within a moment."""

import time
from collections.abc import Callable

KEEP_SECONDS = 0.25
"""How long a body is reused while its *version* stays the same."""


class CachedBody:
    """A cached body; a changed *version* says that *make* would surely render another one."""

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
        """Returns the body, rendered at most a moment ago."""
        version, now = self._version(), self._clock()
        if now >= self._until or version != self._of:
            self._body = self._make()
            self._of, self._until = version, now + KEEP_SECONDS
        return self._body
