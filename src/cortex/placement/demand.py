"""What requests wait for, over all gateways: a reducer over ``cortex_wanted``.

A record says how long its oldest request had waited when it was written; the time since then is
counted here, on this gateway's own clock.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from protocol import codec, keys
from protocol.placement import Wanted
from protocol.timing import NORMAL, Timing

log = logging.getLogger("placer")


class Demand(NamedTuple):
    """The demand for one model."""

    waiting: int
    waited_seconds: float
    """How long the oldest request has waited by now."""
    bound_seconds: float
    """The shortest of the wait limits that gateways set."""
    released: Mapping[str, float] = {}
    """Models that nobody but the waiting clients has used lately, with the seconds since; empty
    unless that holds at every gateway where somebody waits."""


class _Heard(NamedTuple):
    wanted: Wanted
    at: float


class Demands:
    """The demand for every model, over all gateways."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, timing: Timing = NORMAL
    ) -> None:
        self._clock = clock
        self._timing = timing
        self._heard: dict[str, _Heard] = {}

    def key_changed(self, key: str, value: bytes | None) -> None:
        """Takes in a key of ``cortex_wanted`` that was written, or removed (None)."""
        try:
            if value:
                self._heard[key] = _Heard(codec.read_wanted(value), self._clock())
            else:
                self._heard.pop(key, None)
        except codec.UnreadableMessage as error:
            log.warning("ignored the unreadable record %s in %s: %s", key, keys.WANTED, error)

    def __bool__(self) -> bool:
        return bool(self._heard)

    def by_model(self) -> dict[str, Demand]:
        """Sums up the demand for each model, as of now."""
        now = self._clock()
        found: dict[str, Demand] = {}
        for wanted, at in self._heard.values():
            if now - at > self._timing.wanted_ttl_seconds:
                continue  # its gateway is gone; while NATS is away, no expiry reports that
            waited = wanted.waited_seconds + now - at
            released = {model: ago + now - at for model, ago in wanted.released.items()}
            one = Demand(wanted.waiting, waited, wanted.bound_seconds, released)
            known = found.get(wanted.model)
            found[wanted.model] = one if known is None else _sum(known, one)
        return found


def _sum(one: Demand, other: Demand) -> Demand:
    return Demand(
        one.waiting + other.waiting,
        max(one.waited_seconds, other.waited_seconds),
        min(one.bound_seconds, other.bound_seconds),
        {**one.released, **other.released} if one.released and other.released else {},
    )
