"""The hand-over of jobs to the stream JOBS, from which neurons pull them."""

import asyncio
import time

from cortex.dispatch import refusals
from cortex.dispatch.admission import characters
from cortex.dispatch.wait_budget import QUEUE_SECONDS
from protocol import codec
from protocol.bus import Bus, JobLanes, QueueFull
from protocol.bus.connection import BusOverflow
from protocol.errors import FleetError
from protocol.job import Job

HAND_OVER_SECONDS = 5.0
"""How long a job's hand-over may fail before its request fails."""
LONG_ANSWER = 32_768
"""Answer tokens for which a job keeps room, so that another neuron can continue it."""
_BYTES_OF_TOKEN = 7
_RETRY_SECONDS = 0.2


class HandOver:
    """This gateway's access to the lanes of all models."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lanes = JobLanes(bus)

    async def acknowledge(self, ack: str) -> None:
        """Removes a delivered job from the stream."""
        await self._lanes.acknowledge(ack)

    def forget(self) -> None:
        """Forgets which lanes exist, so that each is provisioned again when it is needed: the
        server may be another one."""
        self._lanes.forget()

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

    async def publish(self, job: Job) -> None:
        """Stores *job* in its lane. JetStream needs a moment after a restart, so a failure is
        retried; repeating a message id within the stream's window does not make a second job.
        Raises ``FleetError`` when NATS has not stored the job after ``HAND_OVER_SECONDS``."""
        data = codec.encode(job)
        deadline = time.monotonic() + HAND_OVER_SECONDS
        while time.monotonic() < deadline:
            if await self.provision(job.request.model) and await self._publish(job, data):
                return
            await asyncio.sleep(_RETRY_SECONDS)
        raise FleetError.of(refusals.job_was_not_stored(HAND_OVER_SECONDS))

    async def provision(self, model: str) -> bool:
        """Ensures that a model's lanes exist; False when JetStream does not answer."""
        if not self._bus.is_connected:
            return False
        return await self._lanes.provision() and await self._lanes.provision_model(model)

    async def _publish(self, job: Job, data: bytes) -> bool:
        try:
            return await self._lanes.publish(
                data,
                model=job.request.model,
                priority=job.priority,
                message_id=f"{job.id}.{job.attempt}",
                ttl_seconds=int(QUEUE_SECONDS) + 5,
            )
        except QueueFull:
            raise FleetError.of(refusals.lane_is_full(job.request.model)) from None
        except BusOverflow as error:
            raise FleetError.of(refusals.job_is_too_large(error.size, error.limit)) from None
