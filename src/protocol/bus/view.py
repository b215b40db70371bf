"""A live copy of a KV bucket in memory.

It avoids ``kv.watch()``: nats-py's watchers stay deaf for seconds after a server restart, and a
watcher needs the right to create consumers, which is the right to make the server deliver anything
anywhere. Instead, the server republishes every write on a plain subject; a snapshot read by direct
get fills the view at the start, after each reconnect, and every 30 s.

The snapshot walks the stream with ``next_by_subj`` batches, which for a history of one is exactly
the set of current values; ``multi_last`` refuses buckets of more than 1,024 keys.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from protocol import subjects
from protocol.bus.client import BusMessage
from protocol.bus.connection import Bus, Subscription
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("bus")

SNAPSHOT_EVERY_SECONDS = 30.0
_BATCH = 1000
_END_OF_BATCH = "204"
_EMPTY = "404"


class ViewEntry(NamedTuple):
    """A stored value and its position in the bucket's stream; None = deleted or expired."""

    value: bytes | None
    sequence: int


Listener = Callable[[str, bytes | None], None]
"""Called with a key and its new value, or None when the key is gone."""


class KvView:
    """Follows one bucket. All methods must run on the event loop's thread."""

    def __init__(self, bus: Bus, bucket: str, listener: Listener) -> None:
        self._bus = bus
        self._bucket = bucket
        self._listener = listener
        self._entries: dict[str, ViewEntry] = {}
        self._prefix = subjects.kv_update(bucket, "")
        self._snapshot_wanted = asyncio.Event()
        self.filled = asyncio.Event()
        """Set by the first complete snapshot."""

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return iter([(k, e.value) for k, e in self._entries.items() if e.value is not None])

    def get(self, key: str) -> bytes | None:
        """Returns the current value of a key."""
        entry = self._entries.get(key)
        return entry.value if entry else None

    async def run(self) -> None:
        """Keeps the view current until cancelled."""

        async def renew() -> None:
            self._snapshot_wanted.set()

        forget_renewal = self._bus.on_reconnect(renew)
        updates = await self._bus.subscribe(subjects.kv_update(self._bucket, ">"), self._updated)
        try:
            while True:
                self._snapshot_wanted.clear()
                complete = await self._take_snapshot()
                if complete:
                    self.filled.set()
                pause = SNAPSHOT_EVERY_SECONDS if complete else 0.25
                await wait_at_most(self._snapshot_wanted, pause)
        finally:
            forget_renewal()
            await updates.stop()

    def _updated(self, message: BusMessage) -> None:
        key = message.subject.removeprefix(self._prefix)
        self._apply(key, _entry(message))

    def _apply(self, key: str, entry: ViewEntry) -> None:
        known = self._entries.get(key)
        if known is not None and known.sequence >= entry.sequence:
            return
        self._entries[key] = entry
        if known is None or known.value != entry.value:
            self._listener(key, entry.value)

    async def _take_snapshot(self) -> bool:
        """Reads the whole bucket; False when the server did not answer in full."""
        before = dict(self._entries)
        fresh: dict[str, ViewEntry] = {}
        sequence = 1
        while sequence:
            batch = await _read_batch(self._bus, self._bucket, sequence)
            if batch is None:
                return False
            fresh.update(batch.entries)
            sequence = batch.next_sequence
        for key, entry in fresh.items():
            # A recreated bucket counts from 1 again: a value that did not change while the snapshot
            # was taken gives way to the snapshot, whatever its number.
            if key in before and self._entries.get(key) == before[key] != entry:
                del self._entries[key]
            self._apply(key, entry)
        for key, old in before.items():
            if key not in fresh and self._entries.get(key) == old:
                del self._entries[key]
                if old.value is not None:
                    self._listener(key, None)
        return True


class _Batch(NamedTuple):
    entries: dict[str, ViewEntry]
    next_sequence: int
    """The sequence at which to continue; 0 = this was the last batch."""


async def _read_batch(bus: Bus, bucket: str, sequence: int) -> _Batch | None:
    """Reads up to 1,000 values from *sequence* on; None when the answer broke off."""
    inbox = bus.new_inbox()
    entries: dict[str, ViewEntry] = {}
    end: asyncio.Future[BusMessage] = asyncio.get_running_loop().create_future()
    prefix = subjects.kv_write(bucket, "")

    def received(message: BusMessage) -> None:
        if "Status" in message.headers:
            if not end.done():
                end.set_result(message)
        else:
            entries[message.headers["Nats-Subject"].removeprefix(prefix)] = _entry(message)

    inbox_subscription: Subscription = await bus.subscribe(inbox, received)
    try:
        request = {"seq": sequence, "next_by_subj": prefix + ">", "batch": _BATCH}
        await bus.publish(
            f"$JS.API.DIRECT.GET.KV_{bucket}", json.dumps(request).encode(), reply=inbox
        )
        async with asyncio.timeout(2):
            last = await end
    except TimeoutError:
        return None
    finally:
        await inbox_subscription.stop()
    status = last.headers["Status"]
    if status == _EMPTY:
        return _Batch(entries, 0)
    if status != _END_OF_BATCH:
        return None
    more = int(last.headers.get("Nats-Num-Pending", "0")) > 0
    return _Batch(entries, int(last.headers["Nats-Last-Sequence"]) + 1 if more else 0)


def _entry(message: BusMessage) -> ViewEntry:
    headers = message.headers
    gone = "Nats-Marker-Reason" in headers or headers.get("KV-Operation") in ("DEL", "PURGE")
    return ViewEntry(None if gone else message.data, int(headers["Nats-Sequence"]))
