"""Carries requests to neurons: admits them, waits for their turn, sees them through.

What it uses: ``admission`` (queues and turns), ``decisions`` (the router over the live fleet),
``hand_over`` (the job stream), ``attempts`` (one request across neurons). The answer comes back
through ``receiver``.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from cortex.dispatch import refusals, router
from cortex.dispatch.admission import Admission
from cortex.dispatch.attempts import Attempts, LeavingSources
from cortex.dispatch.claim import claim_stream
from cortex.dispatch.decisions import Decisions
from cortex.dispatch.hand_over import HandOver
from cortex.dispatch.prefix_affinity import PrefixAffinity, prefixes_of
from cortex.dispatch.receiver import Receiver, Stream
from cortex.dispatch.request_queue import Ticket
from cortex.dispatch.wait_budget import QUEUE_SECONDS, WaitBudget
from cortex.fleet.state import Fleet
from cortex.identity import GatewayIdentity
from cortex.placement.demand_writer import WaitingRequests
from cortex.placement.options import PLACE_SECONDS
from cortex.storage.keeper import Storage
from protocol.errors import FleetError
from protocol.generate import GenerateRequest
from protocol.job import Client, Job, Priority
from protocol.names import new_job_id

log = logging.getLogger("dispatch")

BUS_GRACE_SECONDS = 3.0
"""How long new requests are still admitted without NATS."""
_LOOK_AGAIN_SECONDS = 0.25


class Dispatcher:
    """Every request of this gateway, from its admission to its end."""

    def __init__(
        self,
        identity: GatewayIdentity,
        fleet: Fleet,
        decisions: Decisions,
        storage: Storage,
        *,
        place_seconds: float = PLACE_SECONDS,
    ) -> None:
        """Takes how long a request may wait until the load of its model begins
        (*place_seconds*)."""
        self._identity = identity
        self._fleet = fleet
        self._decisions = decisions
        self._place_seconds = place_seconds
        self._admission = Admission(fleet, decisions)
        self._hand_over = HandOver(
            identity.bus, storage, has_room=lambda model: fleet.free_slots(model) > 0
        )
        self._affinity = PrefixAffinity()
        self._sources = LeavingSources(fleet)
        self._receiver = Receiver(
            identity.bus,
            identity.gateway,
            acknowledge=self._hand_over.acknowledge,
            node_of_instance=fleet.node_of_instance,
            timing=identity.timing,
        )

    @property
    def in_flight(self) -> int:
        """The number of requests that were handed over and are not finished."""
        return len(self._receiver)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for their turn."""
        return self._admission.waiting

    @property
    def handed_over(self) -> int:
        """The number of requests that have had their turn and that no neuron has accepted yet."""
        return self._admission.handed_over

    def wanted(self) -> dict[str, WaitingRequests]:
        """What waits for models, for the placer."""
        return self._admission.wanted()

    def update_room(self, live_gateways: int) -> None:
        """Hands over as many requests as the fleet has room for now."""
        self._admission.update_room(live_gateways)

    async def provision(self, model: str) -> bool:
        """Makes sure that a model's lanes exist; False when JetStream does not answer."""
        return await self._hand_over.provision(model)

    def leave(self) -> None:
        """Leaves the streams as they are from now on, for their clients to resume at another
        gateway."""
        self._receiver.is_leaving = True

    def echo(self) -> None:
        """Records that this gateway's own heartbeat came back through the server."""
        self._receiver.echo()

    async def run(self) -> None:
        """Receives frames until it is cancelled."""
        await self._receiver.run()

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
        like: Stream | None = None,
    ) -> AsyncIterator[Stream]:
        """Admits a request and yields its stream at once; leaving the block cancels it. Each
        number of *choice* gives a different answer under one seed. *like* is a stream of the same
        request, whose size and prefixes need not be computed again. Raises ``FleetError`` for
        what is known at once: an unknown model, a full queue, no bus. Everything that goes wrong
        later arrives in the stream's inbox as ``Broken``."""
        self._check_bus()
        self._hand_over.check()
        job = Job(
            id=job_id or new_job_id(),
            gateway=self._identity.gateway,
            request=request,
            seed=secrets.randbits(62) if seed is None else seed,
            rendered_at=time.time(),
            choice=choice,
            priority=priority,
            deadline_ms=int(QUEUE_SECONDS * 1000),
            client=client,
        )
        if like is None:
            self._hand_over.check_size(job)
            await asyncio.sleep(0)  # the rest may take as long again
        ticket = self._admission.admit(request, tenant, priority)
        stream = Stream(job, arrived)
        stream.prefixes = prefixes_of(request) if like is None else like.prefixes
        async with self._carried(stream, self._begin(stream, ticket)):
            yield stream

    @contextlib.asynccontextmanager
    async def claim_stream(
        self, job_id: str, owner: str, arrived: asyncio.Event | None = None
    ) -> AsyncIterator[Stream]:
        """Continues a stream that another gateway, or another connection, began; its whole
        answer is sent again. Raises ``FleetError`` when no node has it."""
        self._check_bus()
        with self._receiver.expecting(job_id):
            is_missed = self._fleet.misses_somebody
            taken = await claim_stream(self._identity, job_id, owner, is_missed=is_missed)
            stream = Stream(taken.job, arrived)
            async with self._carried(stream, self._continue(stream, taken.node)):
                yield stream

    @contextlib.asynccontextmanager
    async def _carried(
        self, stream: Stream, work: Coroutine[Any, Any, None]
    ) -> AsyncIterator[None]:
        """Runs *work* for the stream during the block; whatever goes wrong ends as an event."""

        async def carry() -> None:
            try:
                await work
            except FleetError as error:
                self._receiver.give_up(stream, error.error)
            except Exception:
                log.exception("job %s", stream.job.id)
                self._receiver.give_up(stream, refusals.gateway_failed())

        attempts = asyncio.create_task(carry(), name=f"job {stream.job.id}")
        try:
            yield
        finally:
            while not attempts.done():  # a library on its way may swallow a cancellation
                attempts.cancel()
                await asyncio.wait([attempts], timeout=0.1)

    def _check_bus(self) -> None:
        """Refuses new requests when NATS stays away; a restarting server is back before a client
        could try again."""
        if self._receiver.hearing.deaf_seconds > BUS_GRACE_SECONDS:
            raise FleetError.of(refusals.bus_is_silent(self._receiver.hearing.deaf_seconds))

    async def _begin(self, stream: Stream, ticket: Ticket) -> None:
        """Takes a new request all the way: the queue, the first neuron, and every neuron after
        it."""
        known = stream.prefixes
        try:
            budget = WaitBudget(stream.job.request.model, time.monotonic, self._place_seconds)
            while not ticket.has_turn:
                await ticket.wait(_LOOK_AGAIN_SECONDS)
                self._check(budget, stream)
            if stream.waits_for:
                stream.waits_for = ""
                self._decisions.demand_changed()
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
        """Continues a stream that is already running, from its first token on."""
        async with self._receiver.receiving(stream):
            self._receiver.resume(stream, node)
            await self._attempts_of(stream).taken_up(node)

    def _attempts_of(self, stream: Stream) -> Attempts:
        return Attempts(
            stream,
            bus=self._identity.bus,
            fleet=self._fleet,
            receiver=self._receiver,
            sources=self._sources,
            hand_over=self._hand_over.publish,
            decide=self._decisions.decide_for_request,
        )

    def _check(self, budget: WaitBudget, stream: Stream) -> None:
        decision = self._decisions.decide_for_request(stream.job.request.model)
        what, left = said(decision), budget.left(decision)
        stream.waits_for = what
        if isinstance(decision, router.Load):
            stream.waits_for += f"; {left:.0f} s more at the latest"
        if stream.record.waits_for(what, left) and isinstance(decision, router.Load):
            log.info("request %s waits: %s", stream.job.id, stream.waits_for)
        budget.check(decision, is_patient=False, is_own_fault=stream.waits_for_siblings)


def said(decision: router.Decision) -> str:
    """Says what a request waits for; empty when it waits only for its turn."""
    match decision:
        case router.Wait(how_far):
            return how_far
        case router.Load(why_not_yet):
            return why_not_yet
    return ""
