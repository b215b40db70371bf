"""A live copy of a KV bucket in memory.

It avoids ``kv.watch()``: nats-py's watchers stay deaf for seconds after a server restart, and a
watcher needs the right to create consumers, which is the right to make the server deliver anything
anywhere. Instead, the server republishes every write on a plain subject; a snapshot read by direct
get fills the view at the start, after each reconnect, and every 30 s.

The snapshot walks the stream with ``next_by_subj`` batches, which for a history of one is exactly
the set of current values; ``multi_last`` refuses buckets of more than 1,024 keys.

A bucket that is deleted, made anew or purged says nothing. So the view compares itself with the
stream's own figures every second, and takes a snapshot when they do not agree. Values that went
without their writer's doing are still shown for :data:`LINGER_SECONDS`: their writers write them
again, and a fleet must not forget itself meanwhile.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from protocol import subjects
from protocol.bus.client import BusMessage
from protocol.bus.connection import Bus, Subscription
from protocol.bus.kv import REMOVED, KvBucket
from protocol.bus.streams import PROBE, StorageError, StreamInfo
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("bus")

T = TypeVar("T")
SNAPSHOT_EVERY_SECONDS = 30.0
LOOK_SECONDS = 1.0
"""Time between two comparisons with the stream's own figures."""
LINGER_SECONDS = 3.0
_AGAIN_SECONDS = 0.25
_BATCH = 1000
_MANY_KEYS = 500
"""Up to this many keys are compared by name, more only by their number."""
_END_OF_BATCH = "204"
_EMPTY = "404"


class ViewEntry(NamedTuple):
    """A stored value and its position in the bucket's stream; None = deleted or expired."""

    value: bytes | None
    sequence: int
    is_meant: bool = False
    """Whether a value that is gone was removed by a program of the fleet, or has expired."""
    expires: bool = False
    """Whether its writer lets it expire."""
    is_of_another_bucket: bool = False
    """Whether a value is gone because the bucket was made anew."""


Listener = Callable[[str, bytes | None], None]
"""Called with a key and its new value, or None when the key is gone."""
Watcher = Callable[[str, ViewEntry], None]
"""Called with a key and what has become of it, at once."""


class KvView:
    """Follows one bucket. All methods must run on the event loop's thread."""

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        listener: Listener,
        *,
        keys: str = ">",
        watcher: Watcher | None = None,
    ) -> None:
        """*keys* are the only ones to follow, as the end of a subject. The *listener* hears of
        values, and late of those that went by accident; the *watcher* of everything."""
        self._bus = bus
        self._bucket = bucket
        self._listener = listener
        self._keys = keys
        self._watcher = watcher
        self._stream = KvBucket(bus, bucket).stream
        self._entries: dict[str, ViewEntry] = {}
        self._lingering: dict[str, float] = {}
        self._prefix = subjects.kv_update(bucket, "")
        self._created = ""
        self._last_sequence = 0
        self._is_behind = False
        self._snapshot_wanted = asyncio.Event()
        self.filled = asyncio.Event()
        """Set by the first complete snapshot."""
        self.confirmed_at = float("-inf")
        """Monotonic time at which the view was last found to agree with the bucket."""

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
        followed = subjects.kv_update(self._bucket, self._keys)
        updates = await self._bus.subscribe(followed, self._updated)
        self._snapshot_wanted.set()
        taken_at = 0.0
        try:
            while True:
                is_old = time.monotonic() - taken_at > SNAPSHOT_EVERY_SECONDS
                if self._snapshot_wanted.is_set() or is_old:
                    self._snapshot_wanted.clear()
                    if await self._take_snapshot():
                        taken_at = time.monotonic()
                        self.filled.set()
                    else:
                        self._snapshot_wanted.set()
                        await asyncio.sleep(_AGAIN_SECONDS)
                elif self._bus.is_connected and await self._has_drifted():
                    self._snapshot_wanted.set()
                    continue
                self._let_go()
                if not self._snapshot_wanted.is_set():
                    await wait_at_most(self._snapshot_wanted, LOOK_SECONDS)
        finally:
            forget_renewal()
            await updates.stop()

    # -- single keys ---------------------------------------------------------------------------

    def _updated(self, message: BusMessage) -> None:
        key = message.subject.removeprefix(self._prefix)
        entry = _entry(message)
        known = self._entries.get(key)
        if known is not None and entry.sequence < known.sequence:
            self._snapshot_wanted.set()  # only a new bucket counts from 1 again
        self._last_sequence = max(self._last_sequence, entry.sequence)
        self._apply(key, entry)

    def _apply(self, key: str, entry: ViewEntry) -> None:
        known = self._entries.get(key)
        if key == PROBE or (known is not None and known.sequence >= entry.sequence):
            return
        self._entries[key] = entry
        self._show(key, known, entry)

    def _show(self, key: str, known: ViewEntry | None, entry: ViewEntry) -> None:
        """Tells who wants to know that a key has another entry than the *known* one."""
        if entry.value is None and entry.expires and known is not None and not known.expires:
            entry = entry._replace(is_meant=False)  # somebody has given the bucket a maximal age
        if self._watcher is not None:
            self._call(self._watcher, key, entry)
        before = known.value if known is not None else None
        if entry.value is None and not entry.is_meant:
            if before is not None:
                self._lingering[key] = time.monotonic() + LINGER_SECONDS
            return
        was_lingering = self._lingering.pop(key, None) is not None
        if was_lingering or known is None or before != entry.value:
            self._call(self._listener, key, entry.value)

    def _let_go(self) -> None:
        """Shows that values are gone which nobody has written again."""
        now = time.monotonic()
        for key, ends in list(self._lingering.items()):
            if ends <= now:
                del self._lingering[key]
                self._call(self._listener, key, None)

    def _call(self, hears: Callable[[str, T], None], key: str, what: T) -> None:
        """Calls a listener: what somebody has written must not end the view."""
        try:
            hears(key, what)
        except Exception:
            log.exception("while reading %s in %s", key, self._bucket)

    # -- the whole bucket ----------------------------------------------------------------------

    async def _has_drifted(self) -> bool:
        """Whether the bucket is not what this view has seen of it. One that is missing is left to
        whoever makes it again; until then the view stays as it is."""
        live = [key for key, entry in self._entries.items() if entry.value is not None]
        has_names = self._keys != ">" or len(live) <= _MANY_KEYS
        followed = subjects.kv_write(self._bucket, self._keys)
        last = self._last_sequence
        try:
            info = await self._stream.info(subjects=followed if has_names else "")
        except StorageError:
            return False
        if info is None:
            return False
        was_behind, self._is_behind = self._is_behind, False
        if info.created != self._created or info.last_sequence < last:
            return True
        if self._keys == ">" and info.last_sequence > self._last_sequence:
            self._is_behind = True  # what is under way arrives before the next look
            return was_behind
        if info.subjects is None:
            has_lost_some = info.messages < len(live)
        else:
            written = (subjects.kv_write(self._bucket, key) for key in live)
            has_lost_some = not info.subjects.issuperset(written)
        if not has_lost_some:
            self.confirmed_at = time.monotonic()
        return has_lost_some

    async def _take_snapshot(self) -> bool:
        """Reads the whole bucket; False when the server did not answer in full."""
        before = dict(self._entries)
        try:
            info = await self._stream.info()
        except StorageError:
            return False
        if info is None:
            return False
        fresh: dict[str, ViewEntry] = {}
        sequence = 1
        while sequence:
            batch = await _read_batch(self._bus, self._bucket, self._keys, sequence)
            if batch is None:
                return False
            fresh.update(batch.entries)
            sequence = batch.next_sequence
        is_another = info.created != self._created
        self._note(info)
        for key, entry in fresh.items():
            # A recreated bucket counts from 1 again: a value that did not change while the snapshot
            # was taken gives way to the snapshot, whatever its number.
            if key in before and self._entries.get(key) == before[key] != entry:
                known = self._entries.pop(key)
                self._entries[key] = entry
                self._show(key, known, entry)
            else:
                self._apply(key, entry)
        for key, old in before.items():
            if key not in fresh and self._entries.get(key) == old:
                del self._entries[key]
                if old.value is not None:
                    gone = ViewEntry(None, 0, is_of_another_bucket=is_another)
                    self._show(key, old, gone)
        self.confirmed_at = time.monotonic()
        return True

    def _note(self, info: StreamInfo) -> None:
        """Notes which bucket a snapshot is of."""
        if info.created != self._created or info.last_sequence < self._last_sequence:
            self._last_sequence = info.last_sequence
        self._created = info.created
        self._last_sequence = max(self._last_sequence, info.last_sequence)
        self._is_behind = False


class _Batch(NamedTuple):
    entries: dict[str, ViewEntry]
    next_sequence: int
    """The sequence at which to continue; 0 = this was the last batch."""


async def _read_batch(bus: Bus, bucket: str, keys: str, sequence: int) -> _Batch | None:
    """Reads up to 1,000 values of *keys* from *sequence* on; None when the answer broke off."""
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
        request = {"seq": sequence, "next_by_subj": prefix + keys, "batch": _BATCH}
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
    try:
        more = int(last.headers.get("Nats-Num-Pending", "0")) > 0
        return _Batch(entries, int(last.headers["Nats-Last-Sequence"]) + 1 if more else 0)
    except (KeyError, ValueError):  # it was not the server that answered
        return None


def _entry(message: BusMessage) -> ViewEntry:
    headers = message.headers
    marker = headers.get("Nats-Marker-Reason")
    gone = marker is not None or headers.get("KV-Operation") in ("DEL", "PURGE")
    has_expired = marker == "MaxAge"
    return ViewEntry(
        None if gone else message.data,
        int(headers["Nats-Sequence"]),
        is_meant=has_expired or REMOVED in headers or (gone and "Nats-TTL" in headers),
        expires=has_expired or (not gone and "Nats-TTL" in headers),
    )
