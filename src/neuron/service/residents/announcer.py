"""Keeps this node's KV records equal to what they should be.

The service says what is true; the announcer writes it, writes it again after every reconnect, and
goes on trying until somebody has made the bucket (a neuron may start before the first gateway). It
also watches its records: what somebody else deletes, purges, overwrites or adds there is put right,
or the fleet would know nothing of a model that is here. Must not know what the records mean.
"""

import asyncio
import logging
from typing import NamedTuple

from protocol import keys
from protocol.bus import Bus, KvBucket, KvView
from protocol.bus.view import ViewEntry

log = logging.getLogger("neuron")

_RETRY_SECONDS = 0.25
MEND_SECONDS = 0.25
"""How long a record may differ before it is written again: our own writes come back late."""


class _Value(NamedTuple):
    data: bytes | None
    ttl_seconds: int


class Announcer:
    """The only writer of this node's keys."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._bucket = KvBucket(bus, keys.NODES)
        self._wanted: dict[str, _Value] = {}
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._doubtful: set[str] = set()
        self._doubts = asyncio.Event()
        self._view = KvView(
            bus, keys.NODES, _unread, keys=keys.all_of_node(node), watcher=self._seen
        )

    def set(self, key: str, value: bytes, *, ttl_seconds: int = 0) -> None:
        """Makes *value* the value of *key*; it expires after *ttl_seconds*, 0 = never."""
        self._put(key, _Value(value, ttl_seconds))

    def remove(self, key: str) -> None:
        """Makes sure that *key* does not exist."""
        self._put(key, _Value(None, 0))

    def _put(self, key: str, value: _Value) -> None:
        self._wanted[key] = value
        self._dirty[key] = None
        self._wake.set()

    async def run(self) -> None:
        """Writes what has changed, until cancelled."""

        async def reconnected() -> None:
            # The server may have lost everything, or be another one.
            self._dirty.update(dict.fromkeys(self._wanted))
            self._wake.set()

        forget_reconnect = self._bus.on_reconnect(reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._view.run(), name="view of its own records")
                tasks.create_task(self._mend(), name="mender of its own records")
                tasks.create_task(self._write(), name="writer of its own records")
        finally:
            forget_reconnect()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    async def flush(self) -> bool:
        """Writes what has changed; False when something could not be written."""
        while self._dirty:
            key = next(iter(self._dirty))
            del self._dirty[key]
            value = self._wanted.get(key)
            if value is None:
                continue  # removed meanwhile
            if value.data is None:
                written = await self._bucket.delete(key)
            else:
                written = await self._bucket.put(key, value.data, ttl_seconds=value.ttl_seconds)
            if not written:
                self._dirty.setdefault(key)
                return False
            if value.data is None and self._wanted.get(key) == value:
                del self._wanted[key]
        return True

    # -- what others do to the records ---------------------------------------------------------

    def _seen(self, key: str, entry: ViewEntry) -> None:
        if self._differs(key, entry.value):
            self._doubtful.add(key)
            self._doubts.set()

    def _differs(self, key: str, value: bytes | None) -> bool:
        wanted = self._wanted.get(key)
        return value != (wanted.data if wanted else None)

    async def _mend(self) -> None:
        """Writes again what still differs after a moment."""
        while True:
            await self._doubts.wait()
            await asyncio.sleep(MEND_SECONDS)
            self._doubts.clear()
            doubtful, self._doubtful = self._doubtful, set()
            for key in doubtful:
                if key not in self._dirty and self._differs(key, self._view.get(key)):
                    log.warning("%s in %s was changed by somebody else; mended", key, keys.NODES)
                    self._put(key, self._wanted.get(key) or _Value(None, 0))


def _unread(key: str, value: bytes | None) -> None:
    """The watcher hears of everything, and earlier."""
