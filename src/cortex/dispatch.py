"""Carries a request to a neuron: admission, the waiting line, the hand-over on the bus.

The answer comes back through ``receiver``. Whether a model can be served is decided by ``router``,
when it is a request's turn by ``waiting``, how long it bears to wait by ``patience``.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator

from cortex import router
from cortex.fleet import Fleet
from cortex.patience import QUEUE_SECONDS, Patience
from cortex.receiver import Receiver, Stream
from cortex.waiting import Line, Place
from protocol import codec
from protocol.bus import Bus, JobLanes, QueueFull
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest
from protocol.job import Job, Priority
from protocol.names import new_job_id

log = logging.getLogger("dispatch")

HAND_OVER_SECONDS = 5.0
"""How long a job's hand-over may fail before its request does."""
_LOOK_AGAIN_SECONDS = 0.5
_RETRY_SECONDS = 0.2


class Dispatcher:
    """All requests of this gateway."""

    def __init__(self, bus: Bus, fleet: Fleet, gateway: str) -> None:
        self._bus = bus
        self._fleet = fleet
        self._gateway = gateway
        self._lanes = JobLanes(bus)
        self._lines: dict[str, Line] = {}
        self._live_gateways = 1
        self._receiver = Receiver(
            bus,
            gateway,
            acknowledge=self._lanes.acknowledge,
            node_of_instance=fleet.node_of_instance,
        )

    @property
    def in_flight(self) -> int:
        """Requests that were handed over and are not finished."""
        return len(self._receiver)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(line.waiting for line in self._lines.values())

    @property
    def handed_over(self) -> int:
        """Requests that no neuron has accepted yet although it is their turn."""
        return sum(line.handed_over for line in self._lines.values())

    async def run(self) -> None:
        """Until cancelled."""

        async def reconnected() -> None:
            self._lanes.forget()

        forget_reconnect = self._bus.on_reconnect(reconnected)
        try:
            await self._receiver.run()
        finally:
            forget_reconnect()

    @contextlib.asynccontextmanager
    async def stream(
        self, request: GenerateRequest, *, seed: int | None, priority: Priority = Priority.NORMAL
    ) -> AsyncIterator[Stream]:
        """Admits a request and yields its stream at once; leaving the block cancels it.

        What is known at once raises ``FleetError``: an unknown model, a full line, no bus.
        Everything that goes wrong later arrives in the stream's inbox as ``Broken``.
        """
        place = self._admit(request.model)
        stream = Stream(
            Job(
                id=new_job_id(),
                gateway=self._gateway,
                request=request,
                seed=secrets.randbits(62) if seed is None else seed,
                rendered_at=time.time(),
                priority=priority,
                deadline_ms=int(QUEUE_SECONDS * 1000),
            )
        )
        carrier = asyncio.create_task(self._carry(stream, place), name=f"job {stream.job.id}")
        try:
            yield stream
        finally:
            while not carrier.done():  # a library on its way may swallow a cancellation
                carrier.cancel()
                await asyncio.wait([carrier], timeout=0.1)

    def _admit(self, model: str) -> Place:
        if not self._bus.is_connected:
            raise FleetError(
                ErrorCode.BUS_UNAVAILABLE,
                "The gateway has lost its connection to NATS and is reconnecting.",
                retry_after_seconds=1,
            )
        decision = self._decide(model)
        if isinstance(decision, router.Refuse):
            raise FleetError.of(decision.error)
        if model not in self._lines:
            self._lines[model] = Line(model)
            self._set_room(model)
        return self._lines[model].join()

    async def _carry(self, stream: Stream, place: Place) -> None:
        """The request's whole way, until it is cancelled at the end of its block. Whatever goes
        wrong ends in an event."""
        try:
            patience = Patience(stream.job.request.model)
            while not place.has_turn:
                await place.wait(_LOOK_AGAIN_SECONDS)
                self._check(patience, stream)
            async with self._receiver.receiving(stream):
                await self._hand_over(stream.job)
                await self._wait_until_taken(stream)
                place.leave()
                await asyncio.Event().wait()  # frames arrive until the block ends
        except FleetError as error:
            self._receiver.give_up(stream, error)
        except Exception:
            log.exception("job %s", stream.job.id)
            internal = FleetError(ErrorCode.INTERNAL, "The gateway failed; see its log.")
            self._receiver.give_up(stream, internal)
        finally:
            place.leave()

    async def _wait_until_taken(self, stream: Stream) -> None:
        patience = Patience(stream.job.request.model)
        while not stream.taken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await stream.taken.wait()
            self._check(patience, stream)

    def _check(self, patience: Patience, stream: Stream) -> None:
        model = stream.job.request.model
        patience.check(self._decide(model), is_placed=bool(self._fleet.placed(model)))

    def _decide(self, model: str) -> router.Decision:
        return router.decide(model, self._fleet.placed(model), self._fleet.models())

    # -- hand-over -----------------------------------------------------------------------------

    async def _hand_over(self, job: Job) -> None:
        """JetStream needs a moment after a restart, so a failure is tried again. A repetition of
        the same message id within the stream's window is no second job."""
        data = codec.encode(job)
        deadline = time.monotonic() + HAND_OVER_SECONDS
        while time.monotonic() < deadline:
            if await self.provision(job.request.model) and await self._publish(job, data):
                return
            await asyncio.sleep(_RETRY_SECONDS)
        raise FleetError(
            ErrorCode.BUS_UNAVAILABLE,
            f"NATS has not stored the job within {HAND_OVER_SECONDS:.0f} s.",
            retry_after_seconds=2,
        )

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
            raise FleetError(
                ErrorCode.OVERLOADED,
                f"The hand-over queue of {job.request.model} is full. Try again shortly.",
                retry_after_seconds=2,
            ) from None
        except BusOverflow as error:
            raise FleetError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"The request takes {error.size} bytes on the bus, more than its limit of "
                f"{error.limit}. Send less text.",
            ) from None

    async def provision(self, model: str) -> bool:
        """Makes sure that a model's lanes exist; False when JetStream does not answer."""
        if not self._bus.is_connected:
            return False
        return await self._lanes.provision() and await self._lanes.provision_model(model)

    # -- room ----------------------------------------------------------------------------------

    def update_room(self, live_gateways: int) -> None:
        """The fleet changed: what can be handed over now?"""
        self._live_gateways = live_gateways
        for model in self._lines:
            self._set_room(model)

    def _set_room(self, model: str) -> None:
        if self._fleet.ready(model):
            self._lines[model].open(self._fleet.free_slots(model), self._live_gateways)
        else:
            self._lines[model].shut()
