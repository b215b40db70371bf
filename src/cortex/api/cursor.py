"""Where a client is in a stream: the SSE ``id:`` of an event, and what it lets us leave out.

An event's id is ``<job>:<token index>``: everything of the answer's first so many tokens has been
said with it. Where one token makes several events, all but the last are ``<job>:<index>.<n>``: the
n-th event after that index. So a client that comes back with the last id it saw misses nothing and
sees nothing twice.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cortex.stream import Parts
from protocol.frames import Part, Reasoning, Text


class Cursor(NamedTuple):
    """A place between two events of an answer."""

    tokens: int
    """Tokens whose events all came before."""
    events: int = 0
    """Further events of the next token, or of the end of the answer, that came before."""

    def event_id(self, job_id: str) -> bytes:
        """As an SSE line."""
        tail = f".{self.events}" if self.events else ""
        return f"id: {job_id}:{self.tokens}{tail}\n".encode()


START = Cursor(-1)
"""Before the very first event."""


def parse_event_id(text: str) -> tuple[str, Cursor]:
    """Job and place of a ``Last-Event-ID``; raises ValueError."""
    job_id, colon, place = text.strip().rpartition(":")
    index, _, events = place.partition(".")
    if not colon or not job_id or not _is_number(index) or not _is_number(events or "0"):
        raise ValueError(
            f"{text[:80]!r} is no event id of this gateway, which are <stream>:<number>"
        )
    return job_id, Cursor(int(index), int(events or "0"))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def unseen(events: Iterable[Parts], seen: Cursor) -> Iterator[tuple[Part, Cursor]]:
    """The parts that come after *seen*, neighbours of one kind joined; each with its own place."""
    joined: tuple[Part, Cursor] | None = None
    for event in events:
        before = event.next_index - event.tokens
        for number, part in enumerate(event.parts, 1):
            is_last = number == len(event.parts)
            place = Cursor(event.next_index) if is_last else Cursor(before, number)
            if event.next_index <= seen.tokens or (before, number) <= seen:
                continue
            match joined, part:
                case (Text(earlier), _), Text(text):
                    joined = Text(earlier + text), place
                case (Reasoning(earlier), _), Reasoning(text):
                    joined = Reasoning(earlier + text), place
                case _:
                    if joined is not None:
                        yield joined
                    joined = part, place
    if joined is not None:
        yield joined
