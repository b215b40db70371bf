"""The placer's lease: at most one gateway holds it, and that gateway knows when it no longer does.

The lease is a key with a TTL, taken and renewed by compare-and-set. Its holder computes the end on
its own monotonic clock, counted from before the request that renewed it and less a margin: so it
stops before the server lets any other gateway in, even if it was frozen or NATS is away. A term's
epoch is the key's revision when the term began; neurons refuse orders of earlier epochs.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from cortex.identity import GatewayIdentity
from protocol import codec, keys
from protocol.bus import KvBucket, KvView
from protocol.bus.kv import Stored
from protocol.leader import Epoch, LeaseRecord
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("placer")


def seconds_since_boot() -> float:
    """A monotonic clock that continues while the machine is suspended, as ``time.monotonic`` does
    not."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """One gateway's side of the lease. *on_change* is called when it has won or lost the lease."""

    def __init__(
        self,
        identity: GatewayIdentity,
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = seconds_since_boot,
    ) -> None:
        bus = self._bus = identity.bus
        self._timing = identity.timing
        self._record = codec.encode(LeaseRecord(identity.instance, identity.gateway))
        self._on_change = on_change
        self._clock = clock
        self._bucket = KvBucket(bus, keys.LEADER)
        self._view = KvView(bus, keys.LEADER, self._changed)
        self._epoch: Epoch | None = None
        self._until = float("-inf")
        self._sequence = 0
        self._seen = 0
        self._seen_at = float("-inf")
        self._told: Epoch | None = None
        self._end: asyncio.TimerHandle | None = None
        self._reconnects = bus.reconnects
        self._is_leaving = False
        self._turn = asyncio.Lock()
        self._woken = asyncio.Event()
        self.holder: LeaseRecord | None = None
        """The holder of the lease, as far as is known."""

    @property
    def epoch(self) -> Epoch | None:
        """The present epoch, while the lease is certainly this gateway's."""
        is_held = not self._is_leaving and self._clock() < self._until
        return self._epoch if is_held else None

    async def run(self) -> None:
        """Holds the lease, or waits for it to become free, until cancelled."""

        async def reconnected() -> None:
            self._woken.set()

        forget_renewal = self._bus.on_reconnect(reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._view.run(), name="view of the lease")
                tasks.create_task(self._contend(), name="contender for the lease")
        finally:
            forget_renewal()
            if self._end:
                self._end.cancel()

    async def release(self) -> None:
        """Gives the lease up for good, so that another gateway may take it at once."""
        self._is_leaving = True
        self._tell("the lease was released")
        async with self._turn:  # a renewal under way would outlive the removal
            stored = await self._bucket.read(keys.PLACER)
            if stored is not None and stored.value == self._record:
                await self._bucket.delete_if(keys.PLACER, after=stored.sequence)

    async def _contend(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            self._woken.clear()
            async with self._turn:
                # During an outage a request would be buffered, and sent when it no longer applies.
                if self._bus.is_connected and not self._is_leaving:
                    await (self._renew() if self._epoch else self._take())
            # The time spent waiting for an answer in vain counts as part of the pause.
            times = self._timing
            again = began + (times.lease_renew_seconds if self._epoch else times.lease_look_seconds)
            await wait_at_most(self._woken, max(0.0, again - now()))

    async def _take(self) -> None:
        reconnects = self._bus.reconnects
        stored = await self._bucket.read(keys.PLACER)
        if stored is None or not self._is_free(stored):
            return
        created = await self._bucket.created()
        if created is None:
            return
        sequence = await self._put(after=stored.sequence)
        if sequence:
            self._reconnects = reconnects
            self._epoch = Epoch(created, sequence)
            self._tell()

    def _is_free(self, stored: Stored) -> bool:
        """Whether nobody holds the lease: its record was released or has expired, or is this very
        gateway's, left over from a request whose answer got lost. What somebody else has deleted,
        purged or overwritten may still be held; its holder renews it within its TTL. A gateway that
        has never seen a record takes the lease; orders of the earlier epoch are then refused."""
        if stored.sequence not in (0, self._seen):
            self._seen, self._seen_at = stored.sequence, self._clock()
        if stored.value == self._record:
            return True
        if stored.value is None and stored.is_meant and stored.sequence:
            return True
        return self._clock() - self._seen_at > self._timing.lease_ttl_seconds

    async def _renew(self) -> None:
        """Renews the lease. One that has expired by this clock may still be this gateway's: then no
        other gateway held it in between, and the term continues."""
        if not await self._is_same_bucket():
            return
        sequence = await self._put(after=self._sequence)
        if sequence == 0:
            # Another gateway has it, or the answer to the last renewal got lost, or somebody has
            # deleted or overwritten the record.
            stored = await self._bucket.read(keys.PLACER)
            if stored is not None and await self._is_still_own(stored):
                sequence = await self._put(after=stored.sequence)
        if sequence == 0 and self._epoch:
            self._lose("another gateway holds the lease")
        self._tell()

    async def _is_still_own(self, stored: Stored) -> bool:
        """Whether a record that this gateway did not expect leaves it the lease."""
        if stored.value == self._record:
            return True
        if stored.value is not None:
            with contextlib.suppress(codec.UnreadableMessage):
                codec.read_leader(stored.value)
                return False
        return self.epoch is not None and await self._is_in_epochs_bucket()

    async def _is_same_bucket(self) -> bool:
        """Whether the bucket is still the one of this term; False when it was created anew, or the
        server does not answer.

        A new bucket counts revisions from 1 again, so that another gateway's record may have
        reached the revision known here. That takes an absence: this gateway's, or the server's.
        """
        reconnects = self._bus.reconnects
        if self.epoch and reconnects == self._reconnects:
            return True
        if await self._is_in_epochs_bucket():
            self._reconnects = reconnects
            return True
        return False

    async def _is_in_epochs_bucket(self) -> bool:
        """Loses the lease if the bucket is another one; False also when the server does not
        answer."""
        created = await self._bucket.created()
        if created is None or self._epoch is None:
            return False
        if created != self._epoch.bucket:
            self._lose("NATS lost its bucket")
            return False
        return True

    async def _put(self, *, after: int) -> int | None:
        began = self._clock()  # the server starts to count later than this
        sequence = await self._bucket.put_if(
            keys.PLACER, self._record, after=after, ttl_seconds=self._timing.lease_ttl_seconds
        )
        if sequence:
            self._sequence = sequence
            self._until = began + self._timing.lease_held_seconds
            self._tell_at_the_end()
        return sequence

    def _lose(self, why: str) -> None:
        self._epoch = None
        self._woken.set()
        self._tell(why)

    def _tell_at_the_end(self) -> None:
        """Schedules the report of the lease's end: displays must not wait for an answer that never
        comes."""
        if self._end:
            self._end.cancel()
        left = max(0.0, self._until - self._clock()) + 0.01
        self._end = asyncio.get_running_loop().call_later(left, self._tell, "the lease has expired")

    def _tell(self, why: str = "the lease has expired") -> None:
        epoch = self.epoch
        if epoch == self._told:
            return
        self._told = epoch
        if epoch:
            log.info("this gateway is the placer now, epoch %d", epoch.revision)
        else:
            log.info("this gateway is no longer the placer: %s", why)
        self._on_change()

    def _changed(self, key: str, value: bytes | None) -> None:
        if key != keys.PLACER:
            return
        with contextlib.suppress(codec.UnreadableMessage):
            self.holder = codec.read_leader(value) if value else None
        if value is None:
            self._woken.set()
