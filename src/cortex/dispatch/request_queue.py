"""The queue of one model: requests wait in the gateway until a neuron can soon take them.

Publishing everything at once would move the waiting into the bus, where requests can be neither
cancelled nor reordered. So a gateway hands over at most ``max(1, 2 × free slots / live gateways)``
jobs that no neuron has accepted yet. Pure: no bus.

Tenants take turns (``fair_queue``) by the tokens that their requests cost, and a higher priority
goes first. While several tenants are present, none holds more than three quarters of the slots, so
that the next one finds a free slot even during a flood. A tenant that is alone may have them all.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from cortex.dispatch import refusals
from cortex.dispatch.fair_queue import FairQueue
from protocol.errors import FleetError
from protocol.job import Priority
from protocol.runtime.waiting import wait_at_most

MAX_WAITING = 1024
"""Requests of one model that may wait at one gateway; any more are told to come back later."""
MAX_WAITING_OF_TENANT = 256
TENANT_SHARE = 0.75
ABOUT_SECONDS = 600.0
"""How long after its last request a tenant still counts as present."""


class Ticket:
    """A request's ticket in the queue, from :meth:`RequestQueue.enqueue` until :meth:`cancel`."""

    def __init__(
        self, queue: "RequestQueue", tenant: str, priority: Priority, cost: int, queued_at: float
    ) -> None:
        self.tenant = tenant
        self.priority = priority
        self.cost = cost
        self.queued_at = queued_at
        self._queue = queue
        self._turn = asyncio.Event()
        self._accepted = False
        self._cancelled = False

    @property
    def has_turn(self) -> bool:
        """Whether the request may be handed over."""
        return self._turn.is_set()

    @property
    def is_handed_over(self) -> bool:
        """Whether it has had its turn and no neuron has accepted it yet."""
        return self.has_turn and not self._accepted

    async def wait(self, timeout: float) -> None:
        """Returns when the turn has come, or after *timeout* seconds."""
        await wait_at_most(self._turn, timeout)

    def admit(self) -> None:
        """Gives the request its turn; called by the queue."""
        self._turn.set()

    def accepted(self) -> None:
        """Records that a neuron has the job, so that the next one may be handed over."""
        if self.is_handed_over and not self._cancelled:
            self._accepted = True
            self._queue.accepted()

    def cancel(self) -> None:
        """Returns the ticket, in any state: the request is over, or no longer waits."""
        if not self._cancelled:
            self._cancelled = True
            self._queue.cancelled(self)


class RequestQueue:
    """The requests of one model at one gateway."""

    def __init__(
        self,
        model: str,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_of_tenant: int = MAX_WAITING_OF_TENANT,
        ended: Callable[[str], None] = lambda tenant: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Calls *ended* with the tenant of each request that is over."""
        self._model = model
        self._ended = ended
        self._max_waiting = max_waiting
        self._max_waiting_of_tenant = max_waiting_of_tenant
        self._clock = clock
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._handed_over = 0
        self._bound = 0
        self._slots = 0
        self._holds: Counter[str] = Counter()  # requests that have had their turn, by tenant
        self._seen: dict[str, float] = {}  # by tenant, when it last asked; the oldest first

    @property
    def waiting(self) -> int:
        """The number of requests that wait for their turn."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no request waits, or has had its turn and is not over."""
        return not (self._waiting or self._holds)

    @property
    def waited_seconds(self) -> float:
        """How long the oldest waiting request has waited; 0 when none waits."""
        joined = min((ticket.queued_at for ticket in self._waiting), default=self._clock())
        return self._clock() - joined

    @property
    def waiting_tenants(self) -> set[str]:
        """The tenants of these requests."""
        return {ticket.tenant for ticket in self._waiting}

    @property
    def handed_over(self) -> int:
        """The number of requests that have had their turn and that no neuron has accepted yet."""
        return self._handed_over

    def open(self, free_slots: int, live_gateways: int, slots: int) -> None:
        """Lets requests through: ready nodes have *slots* slots, *free_slots* of them free."""
        self._bound = max(1, 2 * free_slots // max(1, live_gateways))
        self._slots = slots
        self._advance()

    def shut(self) -> None:
        """Holds all requests back, as no node is ready for the model."""
        self._bound = 0

    def enqueue(
        self, tenant: str = "", priority: Priority = Priority.NORMAL, cost: int = 1
    ) -> Ticket:
        """Adds a request of *cost* tokens; raises ``FleetError(OVERLOADED)`` when the queue is
        full."""
        own = self._waiting.of_tenant(tenant)
        if own >= self._max_waiting_of_tenant or len(self._waiting) >= self._max_waiting:
            full = refusals.queue_is_full(
                self._model,
                waiting=len(self._waiting),
                own=own,
                max_waiting=self._max_waiting,
                max_of_tenant=self._max_waiting_of_tenant,
            )
            raise FleetError.of(full)
        self._seen.pop(tenant, None)
        self._seen[tenant] = self._clock()
        ticket = Ticket(self, tenant, priority, max(1, cost), self._clock())
        self._waiting.add(ticket)
        self._advance()
        return ticket

    def accepted(self) -> None:
        """Makes room for the next hand-over; called by :class:`Ticket`."""
        self._handed_over -= 1
        self._advance()

    def cancelled(self, ticket: Ticket) -> None:
        """Takes a ticket back; called by :class:`Ticket`."""
        self._ended(ticket.tenant)
        if not ticket.has_turn:
            self._waiting.remove(ticket)
            return
        self._handed_over -= ticket.is_handed_over
        self._holds[ticket.tenant] -= 1
        if not self._holds[ticket.tenant]:
            del self._holds[ticket.tenant]
        self._advance()

    def _advance(self) -> None:
        limit = self._limit()
        while self._handed_over < self._bound:
            ticket = self._waiting.take(lambda tenant: self._holds[tenant] < limit)
            if ticket is None:
                return
            self._handed_over += 1
            self._holds[ticket.tenant] += 1
            ticket.admit()

    def _limit(self) -> float:
        """The number of requests that one tenant may have under way."""
        forgotten = self._clock() - ABOUT_SECONDS
        while self._seen and next(iter(self._seen.values())) <= forgotten:
            del self._seen[next(iter(self._seen))]
        is_alone = len(self._seen) < 2 and len(self._seen.keys() | self._holds.keys()) < 2
        return float("inf") if is_alone else max(1, int(TENANT_SHARE * self._slots))
