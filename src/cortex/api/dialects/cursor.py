"""A client's position in a stream: the SSE ``id:`` of an event, and what it allows us to leave out.

An event's id is ``<job>:<token index>``: with it, everything from that many tokens has been sent.
Where one token produces several events, all but the last are ``<job>:<index>.<n>``: the n-th event
after that index. Several events before the first token are ``<job>:-1.<n>``. An answer of several
choices has a position in each of them: ``<job>:<index>,<index>,…``. Where a dialect numbers its
events, ``~<number>`` follows. So a client that comes back with the last id it saw misses nothing
and sees nothing twice.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_PLACE = re.compile(r"(\d{1,11})(?:\.(\d{1,11}))?|(-1)\.(\d{1,11})", re.ASCII)
_NUMBER = re.compile(r"\d{1,11}", re.ASCII)


class Cursor(NamedTuple):
    """A position between two events of a choice."""

    tokens: int
    """The number of tokens whose events all came before."""
    events: int = 0
    """The number of events before it that belong to the next token, or to the end of the answer."""

    def __str__(self) -> str:
        return f"{self.tokens}.{self.events}" if self.events else str(self.tokens)


START = Cursor(-1)
"""The position before the very first event."""

Place = tuple[Cursor, ...]
"""A position in each choice of an answer."""


UNNUMBERED = -1
"""The number of events in dialects that number none."""


class Seen(NamedTuple):
    """What a client has seen of a stream."""

    job_id: str
    place: Place
    number: int = UNNUMBERED
    """The number of the last event it saw."""


def event_id(job_id: str, place: Place, number: int = UNNUMBERED) -> bytes:
    """Renders a position as an SSE line."""
    return spelt_id(job_id, [spell(cursor) for cursor in place], number)


def spell(cursor: Cursor) -> str:
    """Renders the position in one choice."""
    return "-1" if cursor == START else str(cursor)


def spelt_id(job_id: str, spelt: Sequence[str], number: int = UNNUMBERED) -> bytes:
    """Renders a position whose parts are spelt already: of many choices, only one has moved."""
    numbered = f"~{number}" if number >= 0 else ""
    return f"id: {job_id}:{','.join(spelt)}{numbered}\n".encode()


def parse_event_id(text: str) -> Seen:
    """Reads what a client has seen from its ``Last-Event-ID``; raises ValueError."""
    job_id, colon, spelt = text.strip().rpartition(":")
    spelt, tilde, number = spelt.partition("~")
    if tilde and not _NUMBER.fullmatch(number):
        colon = ""
    cursors = [_parse(piece) for piece in spelt.split(",")]
    place = tuple(cursor for cursor in cursors if cursor is not None)
    if not colon or not job_id or len(place) < len(cursors) or set(place) == {START}:
        raise ValueError(
            f"{text[:80]!r} is not an event id of this gateway; those have the form "
            "<stream>:<number>"
        )
    return Seen(job_id, place, int(number) if number else UNNUMBERED)


def _parse(text: str) -> Cursor | None:
    if text == "-1":
        return START
    found = _PLACE.fullmatch(text)
    if found is None:
        return None
    return Cursor(int(found[1] or found[3]), int(found[2] or found[4] or 0))
