"""One client's answer: the streams of all its choices, read as one.

Each choice is a job of its own, so each one moves by itself when its neuron dies.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from cortex.dispatch import refusals
from cortex.dispatch.admission import characters
from cortex.dispatch.dispatcher import Dispatcher
from cortex.dispatch.receiver import Stream
from cortex.streams.events import Event
from protocol.errors import FleetError
from protocol.generate import GenerateRequest
from protocol.job import Client, Priority
from protocol.names import new_job_id, sibling_job_id
from protocol.runtime.waiting import wait_at_most

MAX_CHARACTERS = 32 << 20
"""What all choices of one request may read together: each is a job of its own on the bus."""
LARGE_CHARACTERS = 1 << 20
"""From which on others have their turn on the event loop before each choice."""


class Choice(NamedTuple):
    """One of the choices that a client asked for."""

    request: GenerateRequest
    number: int = 0
    """The choice's number, which sets its sampling noise apart from the others'."""


class AnswerStream:
    """One or more streams; leaving the block that yielded it cancels those that still run."""

    def __init__(self, streams: Sequence[Stream], arrived: asyncio.Event) -> None:
        """Takes the *arrived* event that all their inboxes share."""
        self.streams = tuple(streams)
        self._arrived = arrived
        self.is_closed = False
        """Whether the client has left."""

    @property
    def id(self) -> str:
        """The id of the first choice, by which the answer is known."""
        return self.streams[0].job.id

    @property
    def waits_for(self) -> str:
        """What it waits for, for people; empty while something arrives."""
        return next((s.waits_for for s in self.streams if s.waits_for), "")

    def close(self) -> None:
        """Marks that the client has left, so that the inboxes no longer matter."""
        self.is_closed = True
        self._arrived.set()

    async def take(self, timeout: float) -> list[tuple[int, list[Event]]]:
        """Returns what has arrived, by choice number; empty after *timeout* seconds without
        anything, or when closed."""
        await wait_at_most(self._arrived, timeout)
        if self.is_closed:
            return []
        self._arrived.clear()
        drained = ((number, s.inbox.drain()) for number, s in enumerate(self.streams))
        return [(number, events) for number, events in drained if events]


@contextlib.asynccontextmanager
async def answered(
    dispatcher: Dispatcher,
    choices: Sequence[Choice],
    *,
    seed: int | None,
    tenant: str,
    client: Client | None,
    priority: Priority,
) -> AsyncIterator[AnswerStream]:
    """Admits all choices or none: then ``FleetError`` says why. See ``Dispatcher.stream``."""
    size = _check_size(choices)
    job_id, arrived = new_job_id(), asyncio.Event()
    seed = secrets.randbits(62) if seed is None else seed
    streams: list[Stream] = []
    like: dict[int, Stream] = {}
    async with contextlib.AsyncExitStack() as stack:
        for position, choice in enumerate(choices):
            if size > LARGE_CHARACTERS:
                await asyncio.sleep(0)
            stream = await stack.enter_async_context(
                dispatcher.stream(
                    choice.request,
                    seed=seed,
                    tenant=tenant,
                    client=client,
                    priority=priority,
                    job_id=sibling_job_id(job_id, position),
                    choice=choice.number,
                    arrived=arrived,
                    like=like.get(id(choice.request)),
                )
            )
            streams.append(stream)
            like[id(choice.request)] = stream
        for stream in streams:
            stream.siblings = tuple(streams)
        yield AnswerStream(streams, arrived)


def _check_size(choices: Sequence[Choice]) -> int:
    """Returns how many characters all choices read. Raises ``FleetError`` for too many."""
    times = Counter(id(choice.request) for choice in choices)
    requests = {id(choice.request): choice.request for choice in choices}
    size = sum(times[key] * characters(request) for key, request in requests.items())
    if size > MAX_CHARACTERS and len(choices) > 1:
        raise FleetError.of(refusals.answer_is_too_large(len(choices), size, MAX_CHARACTERS))
    return size


@contextlib.asynccontextmanager
async def taken_up(dispatcher: Dispatcher, job_id: str, owner: str) -> AsyncIterator[AnswerStream]:
    """Continues an answer that another gateway, or another connection, began. Raises ``FleetError``
    when no neuron has it, or when a part is missing."""
    arrived = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(dispatcher.claim_stream(job_id, owner, arrived))
        client = first.job.client
        count = client.choices if client else 1
        others = [
            stack.enter_async_context(
                dispatcher.claim_stream(sibling_job_id(job_id, number), owner, arrived)
            )
            for number in range(1, count)
        ]
        found = await asyncio.gather(*others, return_exceptions=True)
        streams = [stream for stream in found if isinstance(stream, Stream)]
        for failed in found:
            if isinstance(failed, BaseException):
                raise failed
        yield AnswerStream([first, *streams], arrived)
