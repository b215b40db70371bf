"""What this gateway's requests wait for, told to the placer: ``cortex_wanted``.

A want is written when a request joins the line of a model that is not ready, again while it stands,
and removed when nobody waits any more; should this gateway die, it expires.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from cortex.identity import GatewayIdentity
from protocol import codec, keys
from protocol.bus import KvBucket
from protocol.placement import Wanted
from protocol.runtime.waiting import wait_at_most

LOOK_SECONDS = 0.25
ASKED_SECONDS = 1.0
"""Whoever wants a place asks more often."""
CHANGED_SECONDS = 0.5
"""Between two writings because the numbers have changed."""


class WaitingRequests(NamedTuple):
    """For one model."""

    waiting: int
    waited_seconds: float
    """The oldest request."""


class _Asked(NamedTuple):
    first: float
    last: float


class Unplaced:
    """Models of which nobody has a replica, as requests ask for them: a new one again and again
    until its turn, a stream that has lost its node until it has another."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def asked_for(self, model: str) -> bool:
        """A request wants to be placed. Whether that is news."""
        now = time.monotonic()
        known = self._asked.get(model)
        self._asked[model] = _Asked(known.first if known else now, now)
        return known is None

    def waiting(self, without: Callable[[str], object]) -> dict[str, WaitingRequests]:
        """What was asked for a moment ago, *without* models that are ready."""
        now = time.monotonic()
        self._asked = {
            model: asked
            for model, asked in self._asked.items()
            if now - asked.last < ASKED_SECONDS and not without(model)
        }
        return {
            model: WaitingRequests(1, now - asked.first) for model, asked in self._asked.items()
        }


class _Written(NamedTuple):
    waiting: int
    at: float


class DemandWriter:
    """Of one gateway. *waiting* says what its lines hold."""

    def __init__(
        self,
        identity: GatewayIdentity,
        waiting: Callable[[], dict[str, WaitingRequests]],
        bound_seconds: float,
    ) -> None:
        self._timing = identity.timing
        self._bucket = KvBucket(identity.bus, keys.WANTED)
        self._gateway = identity.gateway
        self._instance = identity.instance
        self._waiting = waiting
        self._bound = bound_seconds
        self._written: dict[str, _Written] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A request waits that did not a moment ago."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._woken.clear()
            await self._write()
            await wait_at_most(self._woken, LOOK_SECONDS)

    async def _write(self) -> None:
        waiting = self._waiting()
        now = time.monotonic()
        for model, (count, seconds) in waiting.items():
            known = self._written.get(model)
            if known is not None:
                pause = self._timing.wanted_every_seconds
                if known.waiting != count:
                    pause = CHANGED_SECONDS
                if now - known.at < pause:
                    continue
            wanted = Wanted(
                self._instance, model, self._gateway, count, round(seconds, 2), self._bound
            )
            key = keys.wanted(model, self._gateway)
            ttl = self._timing.wanted_ttl_seconds
            if await self._bucket.put(key, codec.encode(wanted), ttl_seconds=ttl):
                self._written[model] = _Written(count, now)
        for model in set(self._written) - set(waiting):
            if await self._bucket.delete(keys.wanted(model, self._gateway)):
                del self._written[model]
