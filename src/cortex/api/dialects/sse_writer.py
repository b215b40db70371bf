"""Writes the events of an answer as a dialect's server-sent events, from any position in the answer
on.

A dialect says which bodies a piece of the answer becomes; this module adds the ids, joins what
arrived together, and leaves out what a returning client has already seen.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from cortex.api.dialects.cursor import START, UNNUMBERED, Cursor, Place, spell, spelt_id
from cortex.api.dialects.pieces import Body
from cortex.streams.events import Ended, Parts, Started
from protocol.errors import WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import TokenLogprobs, Usage

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
    """Writes one streaming answer. Events go through it in the order of the answer.

    It returns pieces of the stream, of any size and none of them empty.
    """

    def __init__(self, head: Head, seen: Place = (), number: int = UNNUMBERED) -> None:
        """Starts after *seen*, the client's position, where *number* was the last event's; empty
        means at the beginning."""
        self.head = head
        self._number = number
        self._counts_seen = bool(seen) and number == UNNUMBERED  # an earlier version's id
        self._at = list(seen) or [START] * head.choices
        self._spelt = [spell(cursor) for cursor in self._at]
        self._tokens = [0] * head.choices
        self._prompt_tokens = [0] * head.choices
        self._id_line = f"id: {head.id}:".encode()

    # -- what a dialect provides ----------------------------------------------------------------

    @abstractmethod
    def _openings(self, choice: int, started: Started | None) -> Iterable[Body]:
        """Renders the events with which a choice begins, before it has a node (*started* is None)
        or afterwards."""

    @abstractmethod
    def _before(self, choice: int, part: AnswerPart) -> Iterable[Body]:
        """Renders the events that must precede a part of this kind; none after a part that it can
        be joined to."""

    def _noted(self, choice: int, part: AnswerPart) -> None:  # noqa: B027 - most dialects need none
        """Records a part, whether or not it will be sent, for the summary at the end."""

    @abstractmethod
    def _said(self, choice: int, part: AnswerPart) -> bytes:
        """Renders the event of a part; empty when :meth:`_before` has rendered all of it."""

    @abstractmethod
    def _endings(self, choice: int, ended: Ended) -> Iterable[Body]:
        """Renders the events with which a choice ends."""

    def _closings(self, ended: Sequence[Ended]) -> Iterable[Body]:
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
    def failure(self, error: WireError) -> list[bytes]:
        """Renders an error after the headers were sent, in pieces; nothing follows it."""

    def keep_alive(self, waits_for: str) -> bytes:
        """Renders a comment that says what the request waits for.

        It ends without an empty line: openai-python would take one for the end of another event, as
        the last event's id still applies.
        """
        return f": {waits_for or 'keep-alive'}\n".encode()

    # -- what the relay calls -------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        """Renders what can be sent before a node has the request."""
        return [piece for choice in range(self.head.choices) for piece in self._open(choice, None)]

    def started(self, choice: int, started: Started) -> list[bytes]:
        """Renders the start of a choice that a node has accepted."""
        self._prompt_tokens[choice] = started.prompt_tokens
        return self._open(choice, started)

    def _usage_so_far(self, choice: int) -> Usage:
        return Usage(self._prompt_tokens[choice], self._tokens[choice])

    def _open(self, choice: int, started: Started | None) -> list[bytes]:
        bodies = list(self._openings(choice, started))
        places = [Cursor(-1, n) for n in range(1, len(bodies))] + [Cursor(0)]
        return self._events(choice, places, bodies)

    def parts(self, choice: int, events: Iterable[Parts]) -> list[bytes]:
        """Renders pieces of the answer; neighbours of one kind are joined into one event."""
        out: list[bytes] = []
        run: list[AnswerPart] = []  # joined once, as a slow reader leaves many of them waiting
        place = START
        for event in events:
            before, said = event.next_index - event.tokens, 0
            self._tokens[choice] = event.next_index
            for number, part in enumerate(event.parts, 1):
                if run and not continues(run[0], part):
                    out += self._spoken(choice, run, place)
                    run = []
                if not run:
                    for body in self._before(choice, part):
                        said += 1
                        out += self._event(choice, Cursor(before, said), body)
                self._noted(choice, part)
                said += 1
                is_last = number == len(event.parts)
                here = Cursor(event.next_index) if is_last else Cursor(before, said)
                if here > self._at[choice]:
                    run.append(part)
                    place = here
                else:
                    self._number += self._counts_seen
        if run:
            out += self._spoken(choice, run, place)
        return out

    def _spoken(self, choice: int, run: list[AnswerPart], place: Cursor) -> list[bytes]:
        body = self._said(choice, run[0] if len(run) == 1 else joined(run))
        return self._event(choice, place, body) if body else []

    def ended(self, choice: int, ended: Ended) -> list[bytes]:
        """Renders the end of a choice."""
        places = (Cursor(self._tokens[choice], n) for n in range(1, 100))
        return self._events(choice, places, self._endings(choice, ended))

    def closing(self, ended: Sequence[Ended]) -> list[bytes]:
        """Renders the end of the answer; *ended* says how each choice ended, in order."""
        places = (Cursor(self._tokens[0], n) for n in range(100, 200))
        out = self._events(0, places, self._closings(ended))
        return [*out, self.trailer] if self.trailer else out

    def _events(self, choice: int, places: Iterable[Cursor], bodies: Iterable[Body]) -> list[bytes]:
        pairs = zip(places, bodies, strict=False)
        return [piece for place, body in pairs for piece in self._event(choice, place, body)]

    def _event(self, choice: int, place: Cursor, body: Body) -> list[bytes]:
        """Renders an event with its id; nothing when the client has already seen it."""
        if place <= self._at[choice]:
            self._number += self._counts_seen
            return []
        self._at[choice] = place
        self._spelt[choice] = spell(place)
        first, rest = (body, []) if isinstance(body, bytes) else (body[0], body[1:])
        if self.numbers:
            self._number += 1
            first = self.numbered(first, self._number)
            return [spelt_id(self.head.id, self._spelt, self._number) + first, *rest]
        if len(self._at) == 1 and not place.events:  # nearly all events
            return [b"%b%d\n%b" % (self._id_line, place.tokens, first), *rest]
        return [spelt_id(self.head.id, self._spelt) + first, *rest]


class Aggregator(ABC):
    """Folds the events of an answer into one JSON document."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._runs: list[list[list[AnswerPart]]] = [[] for _ in range(head.choices)]

    def add(self, choice: int, parts: Iterable[AnswerPart]) -> None:
        """Adds pieces of the answer, in order."""
        runs = self._runs[choice]
        for part in parts:
            kept = part
            if isinstance(part, Text) and part.logprobs:
                self._scored(choice, part.logprobs)
                kept = Text(part.text)
            if runs and continues(runs[-1][0], kept):
                runs[-1].append(kept)
            else:
                runs.append([kept])

    def _scored(  # noqa: B027 - not every dialect shows them
        self, choice: int, entries: Sequence[TokenLogprobs]
    ) -> None:
        """Renders log-probabilities as they arrive; they are not kept otherwise."""

    def whole(self, choice: int) -> list[AnswerPart]:
        """Returns a choice's parts, each of them joined, without log-probabilities."""
        return [joined(run) for run in self._runs[choice]]

    @abstractmethod
    def answer(self, ended: Sequence[Ended]) -> Iterable[bytes]:
        """Renders the document in pieces, of which none takes long; *ended* says how each choice
        ended, in order."""


def continues(first: AnswerPart, part: AnswerPart) -> bool:
    """Whether a part belongs to the run that *first* began."""
    match first, part:
        case (Text(), Text()) | (Reasoning(), Reasoning()):
            return True
        case ToolCallPart(), ToolCallPart():
            return first.index == part.index and not part.name
    return False


def joined(run: list[AnswerPart]) -> AnswerPart:
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
