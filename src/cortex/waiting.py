"""The waiting line of one model: requests wait in the gateway until a neuron can soon take them.

Publishing everything at once would move the waiting into the bus, where it can be neither
cancelled nor ordered. So a gateway hands over at most ``max(1, 2 × free slots / live gateways)``
jobs that no neuron has accepted yet. Pure: no bus, no clock.
"""

import asyncio
from collections import deque

from protocol.errors import ErrorCode, FleetError

MAX_WAITING = 256
"""Requests of one model that may wait in one gateway; more are told to come back."""


class Place:
    """One request's place in a line; made by :meth:`Line.join`, given back by :meth:`leave`."""

    def __init__(self, line: "Line") -> None:
        self._line = line
        self._turn = asyncio.Event()
        self._left = False

    @property
    def has_turn(self) -> bool:
        """Whether the request may be handed over."""
        return self._turn.is_set()

    async def wait(self, timeout: float) -> None:
        """Returns when the turn has come, or after *timeout* seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._turn.wait()
        except TimeoutError:
            pass

    def call(self) -> None:
        """It is this request's turn; for the line."""
        self._turn.set()

    def leave(self) -> None:
        """A neuron has the job, or the request is over, or it does not want to wait any longer:
        right in every state, any number of times."""
        if not self._left:
            self._left = True
            self._line.left(self)


class Line:
    """First come, first served, for one model."""

    def __init__(self, model: str, max_waiting: int = MAX_WAITING) -> None:
        self._model = model
        self._max_waiting = max_waiting
        self._waiting: deque[Place] = deque()
        self._handed_over = 0
        self._bound = 0

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @property
    def handed_over(self) -> int:
        """How many have had their turn and have not left."""
        return self._handed_over

    def open(self, free_slots: int, live_gateways: int) -> None:
        """Some node is ready for the model and has this much room."""
        self._bound = max(1, 2 * free_slots // max(1, live_gateways))
        self._advance()

    def shut(self) -> None:
        """No node is ready for the model: all wait."""
        self._bound = 0

    def join(self) -> Place:
        """The last place; raises ``FleetError(OVERLOADED)`` when the line is full."""
        if len(self._waiting) >= self._max_waiting:
            raise FleetError(
                ErrorCode.OVERLOADED,
                f"{self._model} has {len(self._waiting)} requests waiting, the most that this "
                "gateway keeps. Try again shortly.",
                retry_after_seconds=2,
            )
        place = Place(self)
        self._waiting.append(place)
        self._advance()
        return place

    def left(self, place: Place) -> None:
        """For :class:`Place`."""
        if place.has_turn:
            self._handed_over -= 1
        else:
            self._waiting.remove(place)
        self._advance()

    def _advance(self) -> None:
        while self._waiting and self._handed_over < self._bound:
            self._handed_over += 1
            self._waiting.popleft().call()
