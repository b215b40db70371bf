"""Where a client is in a stream: the SSE ``id:`` of an event, and what it lets us leave out.

An event's id is ``<job>:<token index>``: everything of the answer's first so many tokens has been
said with it. Where one token makes several events, all but the last are ``<job>:<index>.<n>``: the
n-th event after that index. Several events before the first token are ``<job>:-1.<n>``. An answer
of several choices has a place in each of them: ``<job>:<index>,<index>,…``. So a client that comes
back with the last id it saw misses nothing and sees nothing twice.
"""

import re
from typing import NamedTuple

_PLACE = re.compile(r"(\d{1,11})(?:\.(\d{1,11}))?|(-1)\.(\d{1,11})", re.ASCII)


class Cursor(NamedTuple):
    """A place between two events of an answer."""

    tokens: int
    """Tokens whose events all came before."""
    events: int = 0
    """Further events of the next token, or of the end of the answer, that came before."""

    def __str__(self) -> str:
        return f"{self.tokens}.{self.events}" if self.events else str(self.tokens)


START = Cursor(-1)
"""Before the very first event."""

Place = tuple[Cursor, ...]
"""In each choice of an answer."""


def event_id(job_id: str, place: Place) -> bytes:
    """As an SSE line."""
    spelt = ",".join("-1" if cursor == START else str(cursor) for cursor in place)
    return f"id: {job_id}:{spelt}\n".encode()


def parse_event_id(text: str) -> tuple[str, Place]:
    """Job and place of a ``Last-Event-ID``; raises ValueError."""
    job_id, colon, spelt = text.strip().rpartition(":")
    cursors = [_parse(piece) for piece in spelt.split(",")]
    place = tuple(cursor for cursor in cursors if cursor is not None)
    if not colon or not job_id or len(place) < len(cursors) or set(place) == {START}:
        raise ValueError(
            f"{text[:80]!r} is no event id of this gateway, which are <stream>:<number>"
        )
    return job_id, place


def _parse(text: str) -> Cursor | None:
    if text == "-1":
        return START
    found = _PLACE.fullmatch(text)
    if found is None:
        return None
    return Cursor(int(found[1] or found[3]), int(found[2] or found[4] or 0))
