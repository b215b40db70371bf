"""Writes the events of an answer as a dialect's server-sent events, from any position in the answer
on.

A dialect says which bodies a piece of the answer becomes; this module adds the ids, joins what
arrived together, and leaves out what a returning client has already seen.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from cortex.api.dialects.cursor import START, UNNUMBERED, Cursor, Place, event_id
from cortex.streams.events import Ended, Parts, Started
from protocol.errors import WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import Usage

E = TypeVar("E", bound=msgspec.Struct)


class Head(NamedTuple):
    """What every event, or the whole answer, says about itself."""

    id: str
    """The id of the answer's first job."""
    model: str
    """The name that the client asked for."""
    created: int
    """The creation time in Unix seconds."""
    choices: int = 1
    include_usage: bool = False
    echo: bytes = b"null"
    """What the dialect's decoder left for its renderer, as JSON."""

    def told(self, kind: type[E]) -> E:
        """Decodes ``echo`` as *kind*."""
        return msgspec.json.decode(self.echo, type=kind | None) or kind()


class Writer(ABC):
    """Writes one streaming answer. Events go through it in the order of the answer."""

    def __init__(self, head: Head, seen: Place = (), number: int = UNNUMBERED) -> None:
        """Starts after *seen*, the client's position, where *number* was the last event's; empty
        means at the beginning."""
        self.head = head
        self._number = number
        self._counts_seen = bool(seen) and number == UNNUMBERED  # an earlier version's id
        self._at = list(seen) or [START] * head.choices
        self._tokens = [0] * head.choices
        self._prompt_tokens = [0] * head.choices
        self._id_line = f"id: {head.id}:".encode()

    # -- what a dialect provides ----------------------------------------------------------------

    @abstractmethod
    def _openings(self, choice: int, started: Started | None) -> Iterable[bytes]:
        """Renders the events with which a choice begins, before it has a node (*started* is None)
        or afterwards."""

    @abstractmethod
    def _before(self, choice: int, part: AnswerPart) -> Iterable[bytes]:
        """Renders the events that must precede a part of this kind; none after a part that it can
        be joined to."""

    def _noted(self, choice: int, part: AnswerPart) -> None:  # noqa: B027 - most dialects need none
        """Records a part, whether or not it will be sent, for the summary at the end."""

    @abstractmethod
    def _said(self, choice: int, part: AnswerPart) -> bytes:
        """Renders the event of a part; empty when :meth:`_before` has rendered all of it."""

    @abstractmethod
    def _endings(self, choice: int, ended: Ended) -> Iterable[bytes]:
        """Renders the events with which a choice ends."""

    def _closings(self, ended: Sequence[Ended]) -> Iterable[bytes]:
        """Renders the events after the end of all choices."""
        return ()

    def numbered(self, body: bytes, number: int) -> bytes:
        """Writes its number into an event."""
        return body

    numbers = False
    """Whether the dialect numbers its events."""
    trailer = b""
    """Ends the stream; it is not an event and has no id."""

    @abstractmethod
    def failure(self, error: WireError) -> bytes:
        """Renders an error after the headers were sent; nothing follows it."""

    def keep_alive(self, waits_for: str) -> bytes:
        """Renders a comment that says what the request waits for.

        It ends without an empty line: openai-python would take one for the end of another event, as
        the last event's id still applies.
        """
        return f": {waits_for or 'keep-alive'}\n".encode()

    # -- what the relay calls -------------------------------------------------------------------

    def opening(self) -> bytes:
        """Renders what can be sent before a node has the request."""
        return b"".join(self._open(choice, None) for choice in range(self.head.choices))

    def started(self, choice: int, started: Started) -> bytes:
        """Renders the start of a choice that a node has accepted."""
        self._prompt_tokens[choice] = started.prompt_tokens
        return self._open(choice, started)

    def _usage_so_far(self, choice: int) -> Usage:
        return Usage(self._prompt_tokens[choice], self._tokens[choice])

    def _open(self, choice: int, started: Started | None) -> bytes:
        bodies = list(self._openings(choice, started))
        places = [Cursor(-1, n) for n in range(1, len(bodies))] + [Cursor(0)]
        pairs = zip(places, bodies, strict=False)
        return b"".join(self._event(choice, place, body) for place, body in pairs)

    def parts(self, choice: int, events: Iterable[Parts]) -> bytes:
        """Renders pieces of the answer; neighbours of one kind are joined into one event."""
        out: list[bytes] = []
        waiting: tuple[AnswerPart, Cursor] | None = None
        for event in events:
            before, said = event.next_index - event.tokens, 0
            self._tokens[choice] = event.next_index
            for number, part in enumerate(event.parts, 1):
                joined = _joined(waiting[0], part) if waiting else None
                if joined is None:
                    out += self._spoken(choice, waiting)
                    waiting = None
                    for body in self._before(choice, part):
                        said += 1
                        out.append(self._event(choice, Cursor(before, said), body))
                self._noted(choice, part)
                said += 1
                is_last = number == len(event.parts)
                place = Cursor(event.next_index) if is_last else Cursor(before, said)
                if place > self._at[choice]:
                    waiting = joined or part, place
                else:
                    self._number += self._counts_seen
        out += self._spoken(choice, waiting)
        return b"".join(out)

    def _spoken(self, choice: int, waiting: tuple[AnswerPart, Cursor] | None) -> list[bytes]:
        if waiting is None:
            return []
        part, place = waiting
        body = self._said(choice, part)
        return [self._event(choice, place, body)] if body else []

    def ended(self, choice: int, ended: Ended) -> bytes:
        """Renders the end of a choice."""
        places = (Cursor(self._tokens[choice], n) for n in range(1, 100))
        pairs = zip(places, self._endings(choice, ended), strict=False)
        return b"".join(self._event(choice, place, body) for place, body in pairs)

    def closing(self, ended: Sequence[Ended]) -> bytes:
        """Renders the end of the answer; *ended* says how each choice ended, in order."""
        places = (Cursor(self._tokens[0], n) for n in range(100, 200))
        pairs = zip(places, self._closings(ended), strict=False)
        return b"".join(self._event(0, place, body) for place, body in pairs) + self.trailer

    def _event(self, choice: int, place: Cursor, body: bytes) -> bytes:
        """Renders an event with its id; nothing when the client has already seen it."""
        if place <= self._at[choice]:
            self._number += self._counts_seen
            return b""
        self._at[choice] = place
        if self.numbers:
            self._number += 1
            body = self.numbered(body, self._number)
            return event_id(self.head.id, tuple(self._at), self._number) + body
        if len(self._at) == 1 and not place.events:  # nearly all events
            return b"%b%d\n%b" % (self._id_line, place.tokens, body)
        return event_id(self.head.id, tuple(self._at)) + body


class Aggregator(ABC):
    """Folds the events of an answer into one JSON document."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._parts: list[list[AnswerPart]] = [[] for _ in range(head.choices)]

    def add(self, choice: int, parts: Iterable[AnswerPart]) -> None:
        """Adds pieces of the answer, in order."""
        self._parts[choice].extend(parts)

    def whole(self, choice: int) -> list[AnswerPart]:
        """Returns a choice's parts, each of them joined."""
        return [_whole(list(run)) for _, run in itertools.groupby(self._parts[choice], _kind)]

    @abstractmethod
    def answer(self, ended: Sequence[Ended]) -> bytes:
        """Renders the document; *ended* says how each choice ended, in order."""


def _kind(part: AnswerPart) -> tuple[type, int]:
    return type(part), part.index if isinstance(part, ToolCallPart) else 0


def _whole(run: list[AnswerPart]) -> AnswerPart:
    """Joins neighbours of one kind in a single pass, as an answer can be long."""
    match run[0]:
        case Text():
            texts = [part for part in run if isinstance(part, Text)]
            logprobs = tuple(entry for part in texts for entry in part.logprobs)
            return Text("".join(part.text for part in texts), logprobs)
        case Reasoning():
            return Reasoning("".join(part.text for part in run if isinstance(part, Reasoning)))
        case ToolCallPart(index, call_id, name):
            pieces = (part.arguments for part in run if isinstance(part, ToolCallPart))
            return ToolCallPart(index, call_id, name, "".join(pieces))


def _joined(earlier: AnswerPart, part: AnswerPart) -> AnswerPart | None:
    """Joins two pieces of one kind; None when their kinds differ."""
    match earlier, part:
        case Text(), Text():
            return Text(earlier.text + part.text, earlier.logprobs + part.logprobs)
        case Reasoning(), Reasoning():
            return Reasoning(earlier.text + part.text)
        case ToolCallPart(), ToolCallPart() if earlier.index == part.index and not part.name:
            return ToolCallPart(
                earlier.index, earlier.id, earlier.name, earlier.arguments + part.arguments
            )
    return None
