"""The events of one sequence, as an asynchronous iterator; no torch.

Owns the buffer between the engine's channel and one consumer. It is bounded by the sequence's own
tokens, so a slow consumer costs only that memory and never delays another.
"""

import asyncio

from neuron.ipc.messages import Output, Progress, Refused

Event = Output | Progress | Refused


class EngineDied(Exception):
    """Raised when the engine process ended before the answer did; the message says why."""


class SequenceStream:
    """Iterates over one sequence's events; ends after its last output, a refusal or an abort.

    Iterating raises :class:`EngineDied` when the engine process ends first.
    """

    def __init__(self, sequence_id: int) -> None:
        self.id = sequence_id
        self._events: asyncio.Queue[Event | EngineDied | None] = asyncio.Queue()
        self._over = False

    def __aiter__(self) -> "SequenceStream":
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, Output | Progress | Refused):
            self._over = is_last(event)
            return event
        self._over = True
        if event is None:
            raise StopAsyncIteration
        raise event

    def push(self, event: Event) -> None:
        """Delivers an event; called by the engine's client."""
        self._events.put_nowait(event)

    def end(self, reason: EngineDied | None = None) -> None:
        """Ends the iteration after the delivered events; called by the engine's client."""
        self._events.put_nowait(reason)


def is_last(event: Event) -> bool:
    """Whether *event* is its sequence's last."""
    return isinstance(event, Refused) or (isinstance(event, Output) and event.finish is not None)
