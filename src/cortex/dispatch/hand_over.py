"""The hand-over of jobs to the stream JOBS, from which neurons pull them.

A job that is in the stream may be lost with it: somebody deletes or purges the stream, or it is
replaced because it stores no more. So whoever waits for a neuron to take a job is told when the
stream does not have it any more.
"""

import asyncio
import itertools
import time
import weakref
from collections.abc import Callable, Iterator

from cortex.dispatch import refusals
from cortex.dispatch.admission import characters
from cortex.dispatch.wait_budget import QUEUE_SECONDS
from cortex.storage.keeper import JobsSeen, Storage
from cortex.storage.lane_keeper import Stuck
from protocol import codec
from protocol.bus import Bus, QueueFull, StorageError
from protocol.bus.connection import BusOverflow
from protocol.errors import FleetError
from protocol.job import Job

HAND_OVER_SECONDS = 5.0
"""How long a job's hand-over may fail before its request fails."""
STUCK_SECONDS = 1.5
"""How long a job may lie in the stream while some node has room for it."""
LONG_ANSWER = 32_768
"""Answer tokens for which a job keeps room, so that another neuron can continue it."""
_BYTES_OF_TOKEN = 7
_RETRY_SECONDS = 0.2


class StoredJob:
    """A job in the stream."""

    def __init__(self, job: Job, sequence: int, stream: str) -> None:
        self.model = job.request.model
        self.priority = job.priority
        self.sequence = sequence
        self._stream = stream
        self.at = time.monotonic()
        self.is_lost = False
        """Whether the stream no longer has it, although nobody has taken it."""

    def compare(self, seen: JobsSeen) -> None:
        """Compares it with the stream as it was."""
        info = seen.info
        is_there = info.first_sequence <= self.sequence <= info.last_sequence
        is_there = is_there and self.sequence not in info.deleted
        if self._stream not in ("", info.created):
            is_there = False
        self.is_lost = self.is_lost or (self.at < seen.asked_at and not is_there)


class HandOver:
    """This gateway's access to the lanes of all models."""

    def __init__(
        self, bus: Bus, storage: Storage, has_room: Callable[[str], bool] = lambda _: False
    ) -> None:
        """*has_room* says whether some node has a free slot for a model."""
        self._bus = bus
        self._storage = storage
        self._has_room = has_room
        self._stream = ""
        self._numbers = itertools.count(1)
        self._stored: weakref.WeakSet[StoredJob] = weakref.WeakSet()
        storage.wants_deleted = lambda: bool(self._stored)
        storage.on_look = self._compare

    async def acknowledge(self, ack: str) -> None:
        """Removes a delivered job from the stream."""
        await self._storage.lanes.acknowledge(ack)

    def check(self) -> None:
        """Raises ``FleetError`` while NATS cannot store any job."""
        if why := self._storage.why_not:
            raise FleetError.of(refusals.jobs_cannot_be_stored(why))

    def check_size(self, job: Job) -> None:
        """Raises ``FleetError`` when *job* with its answer so far would not fit through the bus: a
        later attempt carries the answer as well, and must not fail for that."""
        answer = job.request.sampling.max_tokens or LONG_ANSWER
        room = _BYTES_OF_TOKEN * min(answer, LONG_ANSWER)
        limit = self._bus.max_payload_bytes
        # a lower bound, which spares the encoding of what is far too large
        size = characters(job.request)
        if size <= limit:
            size = len(codec.encode(job))
        if size + room > limit:
            raise FleetError.of(refusals.job_is_too_large(size + room, limit))

    async def publish(self, job: Job) -> StoredJob:
        """Stores *job* in its lane. JetStream needs a moment after a restart, so a failure is
        retried; repeating a message id within the stream's window does not make a second job.
        Raises ``FleetError`` at once while NATS says why it cannot store jobs, and otherwise after
        ``HAND_OVER_SECONDS``."""
        data = codec.encode(job)
        # A stream that was purged still remembers the ids of what it had.
        message_id = f"{job.id}.{job.attempt}.{next(self._numbers)}"
        deadline = time.monotonic() + HAND_OVER_SECONDS
        why = "JetStream does not answer"
        while time.monotonic() < deadline:
            self.check()
            try:
                await self._provision(job.request.model)
                return await self._publish(job, data, message_id)
            except StorageError as error:
                why = str(error)
                self._storage.doubt()
            await asyncio.sleep(_RETRY_SECONDS)
        raise FleetError.of(refusals.job_was_not_stored(HAND_OVER_SECONDS, why))

    async def provision(self, model: str) -> bool:
        """Ensures that a model's lanes exist; False when JetStream does not answer."""
        try:
            await self._provision(model)
        except StorageError:
            return False
        return True

    async def _provision(self, model: str) -> None:
        if not self._bus.is_connected:
            raise StorageError("there is no connection to NATS")
        await self._storage.lanes.provision()
        await self._storage.lanes.provision_model(model)

    async def _publish(self, job: Job, data: bytes, message_id: str) -> StoredJob:
        try:
            sequence = await self._storage.lanes.publish(
                data,
                model=job.request.model,
                priority=job.priority,
                message_id=message_id,
                ttl_seconds=int(QUEUE_SECONDS) + 5,
            )
        except QueueFull:
            raise FleetError.of(refusals.lane_is_full(job.request.model)) from None
        except BusOverflow as error:
            raise FleetError.of(refusals.job_is_too_large(error.size, error.limit)) from None
        self._storage.stored()
        stored = StoredJob(job, sequence, self._stream)
        self._stored.add(stored)
        return stored

    def _compare(self, seen: JobsSeen) -> Iterator[Stuck]:
        """Compares what waits in the stream with it; yields jobs that are stuck there."""
        self._stream = seen.info.created
        now = time.monotonic()
        for stored in list(self._stored):
            stored.compare(seen)
            is_stuck = not stored.is_lost and now - stored.at > STUCK_SECONDS
            if is_stuck and self._has_room(stored.model):
                yield Stuck(stored.model, stored.priority, stored.sequence)
