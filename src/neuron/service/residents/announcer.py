"""Keeps this node's KV records equal to what they should be.

The service says what is true; the announcer writes it, writes it again after every reconnect, and
goes on trying until somebody has made the bucket (a neuron may start before the first gateway).
Must not know what the records mean.
"""

import asyncio
import logging
from typing import NamedTuple

from protocol import keys
from protocol.bus import Bus, KvBucket

log = logging.getLogger("neuron")

_RETRY_SECONDS = 0.25


class _Value(NamedTuple):
    data: bytes | None
    ttl_seconds: int


class Announcer:
    """The only writer of this node's keys."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket = KvBucket(bus, keys.NODES)
        self._wanted: dict[str, _Value] = {}
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()

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
            while True:
                await self._wake.wait()
                self._wake.clear()
                if not await self.flush():
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._wake.set()
        finally:
            forget_reconnect()

    async def flush(self) -> bool:
        """Writes what has changed; False when something could not be written."""
        while self._dirty:
            key = next(iter(self._dirty))
            del self._dirty[key]
            value = self._wanted[key]
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
