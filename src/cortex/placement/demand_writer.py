"""Tells the placer what this gateway's requests wait for: ``cortex_wanted``.

A record is written when a request joins the queue of a model that is not ready, is renewed while
requests wait, and is removed when none waits any more; if this gateway dies, it expires.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

from cortex.identity import GatewayIdentity
from protocol import codec, keys
from protocol.bus import KvBucket
from protocol.placement import Wanted
from protocol.runtime.waiting import wait_at_most

LOOK_SECONDS = 0.25
ASKED_SECONDS = 1.0
"""How long one question counts as demand; a request that waits asks more often."""
CHANGED_SECONDS = 0.5
"""Shortest time between two writes when only the numbers changed."""


class WaitingRequests(NamedTuple):
    """The requests that wait for one model."""

    waiting: int
    waited_seconds: float
    """How long the oldest request has waited."""
    released: Mapping[str, float] = {}
    """Models that only their clients used lately, with the seconds since; see ``Wanted``."""


class _Asked(NamedTuple):
    first: float
    last: float


class Unplaced:
    """Models without a replica, as requests ask for them: a new request asks again and again until
    its turn, a stream that lost its node until it has another."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def asked_for(self, model: str) -> bool:
        """Records that a request waits for *model*; True if none did before."""
        now = time.monotonic()
        known = self._asked.get(model)
        self._asked[model] = _Asked(known.first if known else now, now)
        return known is None

    def waiting(self, without: Callable[[str], object]) -> dict[str, WaitingRequests]:
        """Lists what was asked for within the last second, *without* models that are ready."""
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
    released: Set[str]
    at: float


class DemandWriter:
    """Writes one gateway's demand. *waiting* reports what its queues hold."""

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
        """Writes soon, because a request has begun to wait."""
        self._woken.set()

    async def run(self) -> None:
        """Writes demand until it is cancelled."""
        while True:
            self._woken.clear()
            await self._write()
            await wait_at_most(self._woken, LOOK_SECONDS)

    async def _write(self) -> None:
        waiting = self._waiting()
        now = time.monotonic()
        for model, (count, seconds, released) in waiting.items():
            known = self._written.get(model)
            if known is not None:
                pause = self._timing.wanted_every_seconds
                if known.waiting != count or known.released != released.keys():
                    pause = CHANGED_SECONDS
                if now - known.at < pause:
                    continue
            wanted = Wanted(
                self._instance,
                model,
                self._gateway,
                count,
                round(seconds, 2),
                self._bound,
                {name: round(ago, 2) for name, ago in released.items()},
            )
            key = keys.wanted(model, self._gateway)
            ttl = self._timing.wanted_ttl_seconds
            if await self._bucket.put(key, codec.encode(wanted), ttl_seconds=ttl):
                self._written[model] = _Written(count, set(released), now)
        for model in set(self._written) - set(waiting):
            if await self._bucket.delete(keys.wanted(model, self._gateway)):
                del self._written[model]
