"""Carries a request to a neuron: admission, the waiting line, the hand-over on the bus.

The answer comes back through ``receiver``. Whether a model can be served is decided by ``router``,
when it is a request's turn by ``waiting``, how long it bears to wait by ``budget``.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from cortex.dispatch import router
from cortex.dispatch.attempts import Attempts, LeavingSources, too_large
from cortex.dispatch.claim import LONG_SEARCH_SECONDS, SEARCH_SECONDS, claim_stream
from cortex.dispatch.prefix_affinity import PrefixAffinity, prefixes_of
from cortex.dispatch.receiver import Receiver, Stream
from cortex.dispatch.request_queue import RequestQueue, Ticket
from cortex.dispatch.wait_budget import QUEUE_SECONDS, WaitBudget
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.placement.demand_writer import PLACE_SECONDS, Unplaced, WaitingRequests
from cortex.placement.fit import FitResult
from protocol import codec
from protocol.bus import Bus, JobLanes, QueueFull
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError
from protocol.fleet import ModelState
from protocol.generate import GenerateRequest
from protocol.job import Client, Job, Priority
from protocol.names import new_job_id

log = logging.getLogger("dispatch")

HAND_OVER_SECONDS = 5.0
"""How long a job's hand-over may fail before its request does."""
BUS_GRACE_SECONDS = 3.0
"""New requests are admitted for so long without NATS."""
USUAL_ANSWER = 512
"""Tokens that an answer without a limit is thought to have."""
LONG_ANSWER = 32_768
"""Room for so many tokens is kept beside a prompt, for a neuron that goes on with the answer."""
_BYTES_OF_TOKEN = 7
_LOOK_AGAIN_SECONDS = 0.25
_RETRY_SECONDS = 0.2
SHORT_SECONDS = 1.0
"""Waiting beside ready nodes for less is nothing that the placer should know of."""

Could = Callable[[str], FitResult | None]


class Dispatcher:
    """All requests of this gateway."""

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        catalogue: Catalogue,
        gateway: str,
        *,
        could: Could = lambda _: None,
        on_wanted: Callable[[], None] = lambda: None,
        place_seconds: float = PLACE_SECONDS,
    ) -> None:
        """*could*: where a model could be loaded. *on_wanted* is called when a request waits for
        one that is not ready, for *place_seconds* at most until its load begins."""
        self._bus = bus
        self._could = could
        self._on_wanted = on_wanted
        self._place_seconds = place_seconds
        self._unplaced = Unplaced()
        self._fleet = fleet
        self._catalogue = catalogue
        self._gateway = gateway
        self._lanes = JobLanes(bus)
        self._queues: dict[str, RequestQueue] = {}
        self._live_gateways = 1
        self._affinity = PrefixAffinity()
        self._sources = LeavingSources(fleet)
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
        return sum(queue.waiting for queue in self._queues.values())

    def wanted(self) -> dict[str, WaitingRequests]:
        """What waits for models: requests in their lines, and streams that have lost their node."""
        found = self._unplaced.waiting(without=self._fleet.ready)
        for model, queue in self._queues.items():
            if not queue.waiting:
                continue
            waited = queue.waited_seconds
            if waited > SHORT_SECONDS or not self._fleet.ready(model):
                found[model] = WaitingRequests(queue.waiting, waited)
        return found

    @property
    def handed_over(self) -> int:
        """Requests that no neuron has accepted yet although it is their turn."""
        return sum(queue.handed_over for queue in self._queues.values())

    def leave(self) -> None:
        """From now on streams are left as they are, for their clients to take up elsewhere."""
        self._receiver.is_leaving = True

    def echo(self) -> None:
        """This gateway's own heartbeat came back through the server."""
        self._receiver.echo()

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
        self,
        request: GenerateRequest,
        *,
        seed: int | None,
        tenant: str = "",
        client: Client | None = None,
        priority: Priority = Priority.NORMAL,
        job_id: str = "",
        choice: int = 0,
        arrived: asyncio.Event | None = None,
    ) -> AsyncIterator[Stream]:
        """Admits a request and yields its stream at once; leaving the block cancels it. Other
        *choice* numbers give other answers under one seed.

        What is known at once raises ``FleetError``: an unknown model, a full line, no bus.
        Everything that goes wrong later arrives in the stream's inbox as ``Broken``.
        """
        self._check_bus()
        job = Job(
            id=job_id or new_job_id(),
            gateway=self._gateway,
            request=request,
            seed=secrets.randbits(62) if seed is None else seed,
            rendered_at=time.time(),
            choice=choice,
            priority=priority,
            deadline_ms=int(QUEUE_SECONDS * 1000),
            client=client,
        )
        self._check_size(job)
        ticket = self._admit(request, tenant, priority)
        stream = Stream(job, arrived)
        async with self._carried(stream, self._begin(stream, ticket)):
            yield stream

    @contextlib.asynccontextmanager
    async def claim_stream(
        self, job_id: str, owner: str, arrived: asyncio.Event | None = None
    ) -> AsyncIterator[Stream]:
        """Goes on with a stream that another gateway, or another connection, has begun: its whole
        answer comes again. Raises ``FleetError`` when nobody has it."""
        self._check_bus()
        with self._receiver.expecting(job_id):
            seconds = LONG_SEARCH_SECONDS if self._fleet.misses_somebody else SEARCH_SECONDS
            taken = await claim_stream(self._bus, self._gateway, job_id, owner, seconds)
            stream = Stream(taken.job, arrived)
            async with self._carried(stream, self._continue(stream, taken.node)):
                yield stream

    @contextlib.asynccontextmanager
    async def _carried(
        self, stream: Stream, work: Coroutine[Any, Any, None]
    ) -> AsyncIterator[None]:
        """*work* serves the stream during the block. Whatever goes wrong ends in an event."""

        async def carry() -> None:
            try:
                await work
            except FleetError as error:
                self._receiver.give_up(stream, error)
            except Exception:
                log.exception("job %s", stream.job.id)
                internal = FleetError(ErrorCode.INTERNAL, "The gateway failed; see its log.")
                self._receiver.give_up(stream, internal)

        attempts = asyncio.create_task(carry(), name=f"job {stream.job.id}")
        try:
            yield
        finally:
            while not attempts.done():  # a library on its way may swallow a cancellation
                attempts.cancel()
                await asyncio.wait([attempts], timeout=0.1)

    def _check_bus(self) -> None:
        """A restarting server is back before a client could try again; one that stays away is
        no reason to wait."""
        if self._receiver.deaf_seconds > BUS_GRACE_SECONDS:
            raise FleetError(
                ErrorCode.BUS_UNAVAILABLE,
                f"The gateway has heard nothing from NATS for {self._receiver.deaf_seconds:.0f} s. "
                "Try again shortly.",
                retry_after_seconds=2,
            )

    def _check_size(self, job: Job) -> None:
        """A later attempt carries the answer so far as well, and must not fail for that."""
        answer = job.request.sampling.max_tokens or LONG_ANSWER
        room = _BYTES_OF_TOKEN * min(answer, LONG_ANSWER)
        limit = self._bus.max_payload_bytes
        size = characters(job.request)  # at least; spares the encoding of what is far too large
        if size <= limit:
            size = len(codec.encode(job))
        if size + room > limit:
            raise too_large(BusOverflow(size + room, limit))

    def _admit(self, request: GenerateRequest, tenant: str, priority: Priority) -> Ticket:
        model = request.model
        decision = self._decide_and_want(model)
        if isinstance(decision, router.Refuse) and not decision.may_change:
            raise FleetError.of(decision.error)
        if model not in self._queues:
            self._queues[model] = RequestQueue(model)
        self._set_room(model)
        return self._queues[model].enqueue(tenant, priority, estimated_tokens(request))

    async def _begin(self, stream: Stream, ticket: Ticket) -> None:
        """A new request's whole way: the line, the first neuron, and all that follow."""
        known = prefixes_of(stream.job.request)
        try:
            budget = WaitBudget(stream.job.request.model, place_seconds=self._place_seconds)
            while not ticket.has_turn:
                await ticket.wait(_LOOK_AGAIN_SECONDS)
                self._check(budget, stream)
            if stream.waits_for:
                stream.waits_for = ""
                self._on_wanted()  # one less
            stream.record.had_turn()
            async with self._receiver.receiving(stream):
                attempts = self._attempts_of(stream)
                await attempts.begin(near=self._affinity.node_of(known))
                ticket.accepted()
                self._affinity.remember(known, stream.state.node)
                await attempts.go_on()
        finally:
            ticket.cancel()
            self._affinity.remember(known, stream.record.node)

    async def _continue(self, stream: Stream, node: str) -> None:
        """A stream that runs already, from its first token on."""
        async with self._receiver.receiving(stream):
            self._receiver.resume(stream, node)
            await self._attempts_of(stream).taken_up(node)

    def _attempts_of(self, stream: Stream) -> Attempts:
        return Attempts(
            stream,
            bus=self._bus,
            fleet=self._fleet,
            receiver=self._receiver,
            sources=self._sources,
            hand_over=self._hand_over,
            decide=self._decide_and_want,
        )

    def _check(self, budget: WaitBudget, stream: Stream) -> None:
        decision = self._decide_and_want(stream.job.request.model)
        stream.waits_for = said(decision)
        stream.record.waits_for(stream.waits_for)
        budget.check(decision, is_patient=False)

    def _decide_and_want(self, model: str) -> router.Decision:
        """On behalf of a request, which the placer shall know of."""
        decision = self.decide(model)
        if isinstance(decision, router.Load) and self._unplaced.asked_for(model):
            self._on_wanted()
        return decision

    def decide(self, model: str) -> router.Decision:
        """The router's answer to the present picture."""
        placed = self._fleet.placed(model)
        if any(p.record.state is ModelState.READY for p in placed):
            return router.Run()
        return router.decide(
            model,
            placed,
            [*self._fleet.models(), *self._catalogue.models],
            could=self._could(model),
            lost_node=self._fleet.remembers(model),
            is_listed=model in self._catalogue.models,
            is_unsettled=self._fleet.is_unsettled or self._fleet.misses(model),
        )

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
            f"NATS did not store the job within {HAND_OVER_SECONDS:.0f} s. Try again shortly.",
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
            raise too_large(error) from None

    async def provision(self, model: str) -> bool:
        """Makes sure that a model's lanes exist; False when JetStream does not answer."""
        if not self._bus.is_connected:
            return False
        return await self._lanes.provision() and await self._lanes.provision_model(model)

    # -- room ----------------------------------------------------------------------------------

    def update_room(self, live_gateways: int) -> None:
        """The fleet changed: what can be handed over now?"""
        self._live_gateways = live_gateways
        for model, queue in self._queues.items():
            if queue.waiting:
                self._set_room(model)

    def _set_room(self, model: str) -> None:
        if self._fleet.ready(model):
            self._queues[model].open(
                self._fleet.free_slots(model), self._live_gateways, self._fleet.slots(model)
            )
        else:
            self._queues[model].shut()


def said(decision: router.Decision) -> str:
    """What a request waits for, for people; empty for a turn."""
    match decision:
        case router.Wait(how_far):
            return how_far
        case router.Load(why_not_yet):
            return why_not_yet
    return ""


def estimated_tokens(request: GenerateRequest) -> int:
    """What a request costs, for taking turns: four characters are about a token."""
    return characters(request) // 4 + (request.sampling.max_tokens or USUAL_ANSWER)


def characters(request: GenerateRequest) -> int:
    """Of all messages, or of the prompt."""
    prompt = len(request.prompt) if request.prompt is not None else 0
    return prompt + sum(len(m.content) + len(m.reasoning) for m in request.messages)
