"""Keeps what operators have said, whoever deletes or overwrites it: profiles, pins, drained nodes.

No single process owns these records: the gateway that wrote one may be gone. So every gateway
remembers them, and writes one again that was lost without being removed. What a gateway removes is
marked as meant; a gateway that has not seen the bucket for a while does not know what was meant,
and takes it as it is.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from protocol.bus import Bus, KvBucket, KvView
from protocol.bus.view import Listener, ViewEntry
from protocol.codec import UnreadableMessage

log = logging.getLogger("storage")

SURE_SECONDS = 45.0
"""How old the last agreement with the bucket may be. Marks of removals are kept for longer, so that
none can have been missed."""
MEND_SECONDS = 0.25
"""How long a record may be missing before it is written again."""
NEW_AUTHOR_SECONDS = 1.6
"""How long another record may be there before it is overwritten: its author may be a gateway that
has not been heard yet."""


class IntentKeeper:
    """Keeps some of the records of one bucket."""

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        listener: Listener,
        *,
        is_kept: Callable[[str], bool],
        author: Callable[[bytes], str],
        is_gateway: Callable[[str], bool],
    ) -> None:
        """Takes what else *listens* to the bucket. *is_kept* tells the keys; *author* reads a
        record's process instance and raises ``UnreadableMessage``; *is_gateway* says whether that
        was a gateway's."""
        self._bucket = KvBucket(bus, bucket)
        self._is_kept = is_kept
        self._author = author
        self._is_gateway = is_gateway
        self._known: dict[str, bytes] = {}
        self._wrong: dict[str, float] = {}  # since when
        self._woken = asyncio.Event()
        self.view = KvView(bus, bucket, listener, watcher=self._seen)

    async def run(self) -> None:
        """Follows the bucket and writes lost records again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.view.run(), name=f"view of {self._bucket.name}")
            tasks.create_task(self._mend(), name=f"mender of {self._bucket.name}")

    def _seen(self, key: str, entry: ViewEntry) -> None:
        if not self._is_kept(key):
            return
        is_sure = time.monotonic() - self.view.confirmed_at < SURE_SECONDS
        is_lost = is_sure or entry.is_of_another_bucket
        is_right = entry.is_meant or not is_lost or key not in self._known
        if entry.value is None:
            if is_right:
                self._known.pop(key, None)
        elif self._is_authentic(entry.value) or (is_right and self._is_readable(entry.value)):
            is_right = True
            self._known[key] = entry.value
        if is_right:
            self._wrong.pop(key, None)
        else:
            self._wrong.setdefault(key, time.monotonic())
            self._woken.set()

    async def _mend(self) -> None:
        while True:
            await self._woken.wait()
            await asyncio.sleep(MEND_SECONDS)
            self._woken.clear()
            for key, since in list(self._wrong.items()):
                now, known = self.view.get(key), self._known.get(key)
                if now is not None and self._is_authentic(now):
                    self._known[key] = now
                elif self._may_be_new(now, since):
                    self._woken.set()
                    continue
                elif known is not None and now != known:
                    log.warning("%s in %s was lost or overwritten; mended", key, self._bucket.name)
                    if not await self._bucket.put(key, known):
                        self._woken.set()
                        continue
                self._wrong.pop(key, None)

    def _may_be_new(self, value: bytes | None, since: float) -> bool:
        is_young = time.monotonic() - since < NEW_AUTHOR_SECONDS
        return value is not None and is_young and self._is_readable(value)

    def _is_authentic(self, value: bytes) -> bool:
        try:
            return self._is_gateway(self._author(value))
        except UnreadableMessage:
            return False

    def _is_readable(self, value: bytes) -> bool:
        try:
            self._author(value)
        except UnreadableMessage:
            return False
        return True
