"""What requests wait for, over all gateways: a reducer over ``cortex_wanted``.

A record says how long its oldest request had waited when it was written; time since then is
counted here, on this gateway's own clock.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from protocol import codec, keys
from protocol.placement import Wanted
from protocol.timing import NORMAL, Timing

log = logging.getLogger("placer")


class Demand(NamedTuple):
    """For one model."""

    waiting: int
    waited_seconds: float
    """The oldest request, by now."""
    bound_seconds: float
    """The shortest of those that gateways set."""


class _Heard(NamedTuple):
    wanted: Wanted
    at: float


class Demands:
    """All of them."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, timing: Timing = NORMAL
    ) -> None:
        self._clock = clock
        self._timing = timing
        self._heard: dict[str, _Heard] = {}

    def key_changed(self, key: str, value: bytes | None) -> None:
        """A key of ``cortex_wanted`` was written, or is gone (None)."""
        try:
            if value:
                self._heard[key] = _Heard(codec.read_wanted(value), self._clock())
            else:
                self._heard.pop(key, None)
        except codec.UnreadableMessage as error:
            log.warning("ignored %s in %s: %s", key, keys.WANTED, error)

    def __bool__(self) -> bool:
        return bool(self._heard)

    def by_model(self) -> dict[str, Demand]:
        """What is wanted now."""
        now = self._clock()
        found: dict[str, Demand] = {}
        for wanted, at in self._heard.values():
            if now - at > self._timing.wanted_ttl_seconds:
                continue  # its gateway is gone, and nobody says so while NATS is away
            waited = wanted.waited_seconds + now - at
            one = Demand(wanted.waiting, waited, wanted.bound_seconds)
            known = found.get(wanted.model, Demand(0, 0.0, one.bound_seconds))
            found[wanted.model] = Demand(
                known.waiting + one.waiting,
                max(known.waited_seconds, one.waited_seconds),
                min(known.bound_seconds, one.bound_seconds),
            )
        return found
