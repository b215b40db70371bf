"""Keeps all streams of the fleet, and knows whether a request can be stored.

Every second each stream is looked at, so that whatever happens to it is mended without a restart
of anything: deleted, purged, edited, sealed, on a disk that was full. What is lost with a stream is
written again by whoever wrote it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cortex.storage.kept_stream import KeptStream
from cortex.storage.lane_keeper import UNNEEDED_SECONDS, LaneKeeper, Stuck
from protocol import keys
from protocol.bus import Bus, JobLanes, KvBucket, StorageError, StreamInfo
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("storage")

LOOK_SECONDS = 1.0
TROUBLE_SECONDS = 0.25
"""Time between two looks while something cannot be stored."""
PROBE_JOBS_SECONDS = 1.0
"""Time without a stored job after which a write is tried: requests must be refused at once when
they cannot be stored."""
PROBE_BUCKETS_SECONDS = 5.0


class JobsSeen(NamedTuple):
    """The hand-over stream as it was at a look."""

    info: StreamInfo
    asked_at: float
    """Monotonic time before which everything that was stored shows in it."""


class Storage:
    """The streams of the fleet, from one gateway's side."""

    def __init__(
        self,
        bus: Bus,
        *,
        models: Callable[[], Iterable[str]],
        rank: Callable[[], int] = lambda: 0,
        keep_seconds: float = UNNEEDED_SECONDS,
    ) -> None:
        """*models* are those that some node has; *rank* is this gateway's among all, from 0. Lanes
        are kept for *keep_seconds* after their models are gone."""
        self._bus = bus
        self.lanes = JobLanes(bus)
        self._jobs = KeptStream(self.lanes.stream, PROBE_JOBS_SECONDS, rank)
        buckets = [
            KeptStream(KvBucket(bus, name).stream, PROBE_BUCKETS_SECONDS, rank)
            for name in keys.BUCKETS
        ]
        self._streams = (self._jobs, *buckets)
        self._lane_keeper = LaneKeeper(self.lanes, models, keep_seconds)
        self._created = ""
        self._woken = asyncio.Event()
        self.wants_deleted: Callable[[], bool] = lambda: False
        """Whether somebody compares jobs with the stream."""
        self.on_look: Callable[[JobsSeen], Iterable[Stuck]] = lambda _: ()
        """Compares jobs with the stream; returns those that are stuck in it."""

    @property
    def why_not(self) -> str:
        """Why jobs cannot be stored now, in NATS's own words; empty when they can."""
        return self._jobs.why_not

    @property
    def troubles(self) -> dict[str, str]:
        """Why nothing can be stored, by stream."""
        return {kept.name: kept.why_not for kept in self._streams if kept.why_not}

    def stored(self) -> None:
        """Notes that a job was stored."""
        self._jobs.confirmed()

    def doubt(self) -> None:
        """Looks at once, because a job could not be stored."""
        self._jobs.doubt()
        self._woken.set()

    async def run(self) -> None:
        """Looks after the streams until cancelled."""

        async def reconnected() -> None:
            self.lanes.forget()
            self.doubt()

        forget_reconnect = self._bus.on_reconnect(reconnected)
        try:
            while True:
                self._woken.clear()
                if self._bus.is_connected:
                    try:
                        await self._look()
                    except Exception:  # whatever the server says must not end the gateway
                        log.exception("while looking after the streams")
                pause = TROUBLE_SECONDS if self.troubles else LOOK_SECONDS
                await wait_at_most(self._woken, pause)
        finally:
            forget_reconnect()

    async def _look(self) -> None:
        was_in_trouble = bool(self.troubles)
        asked_at = time.monotonic()
        jobs, *_ = await asyncio.gather(
            self._jobs.look(deleted=self.wants_deleted()),
            *(kept.look() for kept in self._streams[1:]),
        )
        if was_in_trouble and not self._jobs.why_not:
            for kept in self._streams:  # they are on one disk
                kept.doubt()
        if jobs is None:
            return
        if jobs.created != self._created:
            self._created = jobs.created
            self.lanes.forget()  # a new stream has no consumers
        stuck = list(self.on_look(JobsSeen(jobs, asked_at)))
        try:
            await self.lanes.provision()
            await self._lane_keeper.look(stuck)
        except StorageError as error:
            log.warning("cannot look after the lanes of models: %s", error)
