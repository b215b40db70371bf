"""The waiting line of one model: requests wait in the gateway until a neuron can soon take them.

Publishing everything at once would move the waiting into the bus, where it can be neither
cancelled nor ordered. So a gateway hands over at most ``max(1, 2 × free slots / live gateways)``
jobs that no neuron has accepted yet. Pure: no bus.

Tenants take turns (``turns``), by the tokens that their requests cost, and a higher priority goes
first. While several tenants are about, none holds more than three quarters of the slots: the next
one finds a free slot even beside a flood. A tenant alone may have them all.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from cortex.dispatch.fair_queue import FairQueue
from protocol.errors import ErrorCode, FleetError
from protocol.job import Priority
from protocol.runtime.waiting import wait_at_most

MAX_WAITING = 1024
"""Requests of one model that may wait in one gateway; more are told to come back."""
MAX_WAITING_OF_TENANT = 256
TENANT_SHARE = 0.75
ABOUT_SECONDS = 600.0
"""A tenant is about for so long after its last request."""


class Ticket:
    """One request's place in a line; made by :meth:`RequestQueue.join`, given back by :meth:`leave`."""

    def __init__(
        self, line: "RequestQueue", tenant: str, priority: Priority, cost: int, joined_at: float
    ) -> None:
        self.tenant = tenant
        self.priority = priority
        self.cost = cost
        self.joined_at = joined_at
        self._line = line
        self._turn = asyncio.Event()
        self._taken = False
        self._left = False

    @property
    def has_turn(self) -> bool:
        """Whether the request may be handed over."""
        return self._turn.is_set()

    @property
    def is_handed_over(self) -> bool:
        """Whether it has its turn and no neuron yet."""
        return self.has_turn and not self._taken

    async def wait(self, timeout: float) -> None:
        """Returns when the turn has come, or after *timeout* seconds."""
        await wait_at_most(self._turn, timeout)

    def call(self) -> None:
        """It is this request's turn; for the line."""
        self._turn.set()

    def taken(self) -> None:
        """A neuron has the job, so that the next one may be handed over."""
        if self.is_handed_over and not self._left:
            self._taken = True
            self._line.taken()

    def leave(self) -> None:
        """The request is over, or does not want to wait any longer: right in every state, any
        number of times."""
        if not self._left:
            self._left = True
            self._line.left(self)


class RequestQueue:
    """The requests of one model at one gateway."""

    def __init__(
        self,
        model: str,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_of_tenant: int = MAX_WAITING_OF_TENANT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._max_waiting = max_waiting
        self._max_waiting_of_tenant = max_waiting_of_tenant
        self._clock = clock
        self._turns: FairQueue[Ticket] = FairQueue()
        self._handed_over = 0
        self._bound = 0
        self._slots = 0
        self._holds: Counter[str] = Counter()  # requests that have had their turn, by tenant
        self._seen: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._turns)

    @property
    def waited_seconds(self) -> float:
        """How long the oldest of them has; 0 when nobody waits."""
        joined = min((place.joined_at for place in self._turns), default=self._clock())
        return self._clock() - joined

    @property
    def handed_over(self) -> int:
        """How many have had their turn and have no neuron yet."""
        return self._handed_over

    def open(self, free_slots: int, live_gateways: int, slots: int) -> None:
        """Some nodes are ready for the model, with so many slots, and so many of them free."""
        self._bound = max(1, 2 * free_slots // max(1, live_gateways))
        self._slots = slots
        self._advance()

    def shut(self) -> None:
        """No node is ready for the model: all wait."""
        self._bound = 0

    def join(self, tenant: str = "", priority: Priority = Priority.NORMAL, cost: int = 1) -> Ticket:
        """A place for a request of *cost* tokens; raises ``FleetError(OVERLOADED)`` when the line
        is full."""
        own = self._turns.of_tenant(tenant)
        if own >= self._max_waiting_of_tenant or len(self._turns) >= self._max_waiting:
            raise FleetError(
                ErrorCode.OVERLOADED,
                f"{self._model} has {len(self._turns)} requests waiting at this gateway, {own} of "
                f"them yours; it keeps {self._max_waiting}, and {self._max_waiting_of_tenant} of "
                "one caller. Try again shortly.",
                retry_after_seconds=2,
            )
        self._seen[tenant] = self._clock()
        place = Ticket(self, tenant, priority, max(1, cost), self._clock())
        self._turns.add(place)
        self._advance()
        return place

    def taken(self) -> None:
        """For :class:`Ticket`."""
        self._handed_over -= 1
        self._advance()

    def left(self, place: Ticket) -> None:
        """For :class:`Ticket`."""
        if not place.has_turn:
            self._turns.remove(place)
            return
        self._handed_over -= place.is_handed_over
        self._holds[place.tenant] -= 1
        if not self._holds[place.tenant]:
            del self._holds[place.tenant]
        self._advance()

    def _advance(self) -> None:
        limit = self._limit()
        while self._handed_over < self._bound:
            place = self._turns.take(lambda tenant: self._holds[tenant] < limit)
            if place is None:
                return
            self._handed_over += 1
            self._holds[place.tenant] += 1
            place.call()

    def _limit(self) -> float:
        """How many requests of one tenant may be under way."""
        now = self._clock()
        self._seen = {t: at for t, at in self._seen.items() if now - at < ABOUT_SECONDS}
        about = self._seen.keys() | self._holds.keys()
        return max(1, int(TENANT_SHARE * self._slots)) if len(about) > 1 else float("inf")
