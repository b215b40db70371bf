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


class Line:
    """First come, first served, for one model."""

    def __init__(self, model: str, max_waiting: int = MAX_WAITING) -> None:
        self._model = model
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._handed_over = 0
        self._bound = 0

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def open(self, free_slots: int, live_gateways: int) -> None:
        """Some node is ready for the model and has this much room."""
        self._bound = max(1, 2 * free_slots // max(1, live_gateways))
        self._advance()

    def shut(self) -> None:
        """No node is ready for the model: all wait."""
        self._bound = 0

    def check_room(self) -> None:
        """Raises ``FleetError(OVERLOADED)`` when the line is full."""
        if len(self._waiting) >= self._max_waiting:
            raise FleetError(
                ErrorCode.OVERLOADED,
                f"{self._model} has {len(self._waiting)} requests waiting, the most that this "
                "gateway keeps. Try again shortly.",
                retry_after_seconds=2,
            )

    async def turn(self) -> None:
        """Waits for the turn; the caller then owns one place and must call :meth:`leave`.

        Raises ``FleetError(OVERLOADED)`` at once when the line is full. Safe to cancel.
        """
        if not self._waiting and self._handed_over < self._bound:
            self._handed_over += 1
            return
        self.check_room()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # the turn came in the same moment
            else:
                self._waiting.remove(place)
            raise

    def leave(self) -> None:
        """A neuron accepted the job, or it is over: the place is free for the next."""
        self._handed_over -= 1
        self._advance()

    def _advance(self) -> None:
        while self._waiting and self._handed_over < self._bound:
            place = self._waiting.popleft()
            if not place.done():
                self._handed_over += 1
                place.set_result(None)
