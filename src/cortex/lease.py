"""The placer's lease: at most one gateway holds it, and knows when it no longer does.

A key with a TTL, taken and renewed by compare-and-set. Its holder counts the end on its own
monotonic clock, from before the request that renewed it, and with a margin: it stops before the
server lets anybody else in, also when it was frozen, or NATS is away. A term's epoch is the key's
revision when it was taken; neurons refuse the orders of earlier ones.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from protocol import codec, keys
from protocol.bus import Bus, KvBucket, KvView
from protocol.leader import Epoch, Leader

log = logging.getLogger("placer")

MARGIN_SECONDS = 0.25
RENEW_SECONDS = keys.LEASE_SECONDS / 4
"""Three renewals may get lost."""
LOOK_SECONDS = 1.0
"""How often a gateway looks whether the lease is free, should it have missed its end."""


class Lease:
    """One gateway's share in it. *on_change* is called when it has won or lost it."""

    def __init__(
        self,
        bus: Bus,
        gateway: str,
        instance: str,
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._own = Leader(instance, gateway)
        self._on_change = on_change
        self._clock = clock
        self._bucket = KvBucket(bus, keys.LEADER)
        self._view = KvView(bus, keys.LEADER, self._changed)
        self._epoch: Epoch | None = None
        self._until = float("-inf")
        self._sequence = 0
        self._woken = asyncio.Event()
        self.holder: Leader | None = None
        """Who has it, as far as is known."""

    @property
    def epoch(self) -> Epoch | None:
        """The present term, as long as it is surely this gateway's."""
        return self._epoch if self._clock() < self._until else None

    async def run(self) -> None:
        """Until cancelled: holds the lease, or waits for it to become free."""
        watching = asyncio.create_task(self._view.run(), name="view of the lease")
        try:
            while True:
                self._woken.clear()
                await (self._renew() if self._epoch else self._take())
                pause = RENEW_SECONDS if self._epoch else LOOK_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
        finally:
            watching.cancel()

    async def release(self) -> None:
        """Another one may have it at once."""
        if self._epoch:
            sequence = self._sequence
            self._lose("it was given back")
            await self._bucket.delete_if(keys.PLACER, after=sequence)

    async def _take(self) -> None:
        began = self._clock()
        stored = await self._bucket.read(keys.PLACER)
        if stored is None or not self._is_free(stored.value):
            return
        created = await self._bucket.created()
        if created is None:
            return
        sequence = await self._put(after=stored.sequence)
        if sequence:
            self._held(began, sequence)
            self._epoch = Epoch(created, sequence)
            log.info("this gateway places now, epoch %d", sequence)
            self._on_change()

    async def _renew(self) -> None:
        """One that has run out by this clock may still be this gateway's: then nobody had it in
        between, and the term goes on."""
        began = self._clock()
        sequence = await self._put(after=self._sequence)
        if sequence == 0:
            # Another one has it, or the answer to the last renewal got lost.
            stored = await self._bucket.read(keys.PLACER)
            if stored is not None and stored.value == codec.encode(self._own):
                self._sequence = stored.sequence
                sequence = await self._put(after=stored.sequence)
        if sequence:
            self._held(began, sequence)
        elif sequence == 0:
            self._lose("another gateway has it")

    async def _put(self, *, after: int) -> int | None:
        value = codec.encode(self._own)
        return await self._bucket.put_if(
            keys.PLACER, value, after=after, ttl_seconds=keys.LEASE_SECONDS
        )

    def _held(self, began: float, sequence: int) -> None:
        self._sequence = sequence
        self._until = began + keys.LEASE_SECONDS - MARGIN_SECONDS

    def _lose(self, why: str) -> None:
        log.info("this gateway places no more: %s", why)
        self._epoch = None
        self._until = float("-inf")
        self._woken.set()
        self._on_change()

    def _is_free(self, value: bytes | None) -> bool:
        """A record of this very gateway is left over from a renewal without an answer."""
        return value is None or value == codec.encode(self._own)

    def _changed(self, key: str, value: bytes | None) -> None:
        if key != keys.PLACER:
            return
        with contextlib.suppress(codec.UnreadableMessage):
            self.holder = codec.read_leader(value) if value else None
        if value is None:
            self._woken.set()
