"""Looks after one stream: whether it is there, is as it should be, and stores what it is given.

A stream that confirms no writes although the server can store as much as is needed in another one
has been given up by nats-server since a write failed; it is replaced. Not earlier: replacing it
frees a little room on a full disk, and the next request would fill that. Of several gateways the
first one does so; the others come a moment later and find a new stream.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from protocol.bus import StorageError, Stream, StreamInfo

log = logging.getLogger("storage")

UNANSWERED_SECONDS = 3.0
"""How long JetStream may leave questions unanswered: a server that has just been started needs a
moment."""
ROOM_BYTES = 512 << 10
"""What there must be room for before a stream is replaced."""
RANK_SECONDS = 0.7
"""What each gateway leaves to the one before it to replace a stream."""
LOOK_AGAIN_SECONDS = 0.1
"""Between two looks at whether it has."""


class KeptStream:
    """One stream and what is known about it."""

    def __init__(self, stream: Stream, probe_every: float, rank: Callable[[], int]) -> None:
        """*probe_every*: seconds without a confirmed write after which one is tried; *rank*: this
        gateway's among all, from 0."""
        self._stream = stream
        self._probe_every = probe_every
        self._rank = rank
        self._confirmed_at = float("-inf")
        self._answered_at = time.monotonic()
        self._is_doubtful = False
        self.why_not = ""
        """Why nothing can be stored in it now; empty when it can, as far as is known."""

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._stream.name

    def confirmed(self) -> None:
        """Notes that the stream has stored something."""
        self._confirmed_at, self._is_doubtful = time.monotonic(), False

    def doubt(self) -> None:
        """Has the next look try a write."""
        self._confirmed_at = float("-inf")

    async def look(self, *, deleted: bool = False) -> StreamInfo | None:
        """Looks once, and mends what it can; None when the stream could not be described."""
        try:
            info = await self._stream.ensure()
            if deleted:
                info = await self._stream.info(deleted=True) or info
            self._answered_at = time.monotonic()
            if self.why_not or time.monotonic() - self._confirmed_at >= self._probe_every:
                await self._probe(info)
            return info
        except StorageError as error:
            is_silent = time.monotonic() - self._answered_at > UNANSWERED_SECONDS
            if error.code or (is_silent and not self.why_not):
                self._cannot(str(error))
            return None

    async def _probe(self, info: StreamInfo) -> None:
        if self._is_doubtful:
            await self._stream.touch(info)  # on a full disk, it says so
            await self._stream.check_room(ROOM_BYTES)
        try:
            await self._stream.probe()
        except StorageError as error:
            if error.code:
                raise
            if not self._is_doubtful:
                self._is_doubtful = True
                await self._stream.touch(info)
                self._cannot("a write to its disk failed, and it has confirmed none since")
                return
            await self._wait_for_others(info)
            await self._stream.replace(info, only_if_dead=True)
            await self._stream.probe()
        if self.why_not:
            log.info("the stream %s stores again", self.name)
        self._confirmed_at, self.why_not, self._is_doubtful = time.monotonic(), "", False

    async def _wait_for_others(self, info: StreamInfo) -> None:
        """Leaves it to the gateways before this one to replace the stream; returns early when one
        of them has."""
        ends = time.monotonic() + self._rank() * RANK_SECONDS
        while time.monotonic() < ends:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            now = await self._stream.info()
            if now is None or now.created != info.created:
                return

    def _cannot(self, why: str) -> None:
        if self.why_not != why:
            log.error("NATS cannot store in the stream %s: %s", self.name, why)
        self.why_not = why
