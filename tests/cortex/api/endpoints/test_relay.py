"""A relay lets others have their turn, however much has arrived; and loses nothing by that."""

import asyncio
import itertools
import json
import random
from collections.abc import Sequence

import pytest
from starlette.types import Message

from cortex.api.dialects.cursor import Place, parse_event_id
from cortex.api.endpoints.relay import EVENTS_AT_ONCE, Relay, slices
from cortex.dispatch.answer import AnswerStream
from cortex.dispatch.receiver import Stream
from cortex.streams.events import Broken, Event, Parts, Started
from cortex.telemetry.metrics import Outcome
from protocol.errors import ErrorCode, WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import GenerateRequest
from protocol.job import Job
from tests.support.answers import ID, asked, end, events, longest_hold, token
from tests.support.waiting import until

HOLD_SECONDS = 0.1
"""Far above what is measured, 10 ms, and far below what it was."""
STARTED = Started("n1", 5, 99)


class Client:
    """Reads what is sent to it; leaves after some messages."""

    def __init__(self, answer: AnswerStream, leaves_after: int = 1 << 30) -> None:
        self._answer = answer
        self._leaves_after = leaves_after
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) == self._leaves_after:
            self._answer.close()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def arrivals(parts: Sequence[AnswerPart]) -> list[Event]:
    """A whole answer, with one event per token."""
    return [STARTED, *events(parts), end(len(parts))]


def answer_of(*choices: Sequence[Event]) -> AnswerStream:
    """An answer of which all this has arrived."""
    arrived = asyncio.Event()
    streams = []
    for number, some in enumerate(choices):
        job = Job(ID, "g", GenerateRequest(model="m"), 1, 0.0, choice=number)
        streams.append(Stream(job, arrived))
        for event in some:
            streams[-1].inbox.put(event)
    return AnswerStream(streams, arrived)


async def streamed(
    name: str, *choices: Sequence[Event], seen: Place = (), number: int = -1
) -> Client:
    dialect, head = asked(name, len(choices))
    answer = answer_of(*choices)
    client = Client(answer)
    relay = Relay(answer, dialect.style, client.send)
    outcome = await relay.stream(dialect.writer(head, seen, number))
    assert client.messages[-1].get("more_body") is False
    assert outcome is Outcome.FINISHED
    return client


async def folded(name: str, *choices: Sequence[Event]) -> Client:
    dialect, head = asked(name, len(choices))
    answer = answer_of(*choices)
    client = Client(answer)
    outcome = await Relay(answer, dialect.style, client.send).fold(dialect.folder(head))
    assert outcome is Outcome.FINISHED
    return client


async def test_what_waits_for_a_slow_reader_holds_nobody_up() -> None:
    parts = [token(number, 0) for number in range(30_000)]
    client, hold = await longest_hold(streamed("openai_chat", arrivals(parts)))
    assert hold < HOLD_SECONDS, hold
    assert said(client.body) == [("content", "".join(part.text for part in parts))]


@pytest.mark.parametrize("name", ["openai_chat", "openai_completions", "openai_responses"])
async def test_log_probabilities_hold_nobody_up(name: str) -> None:
    count = 8000
    waiting = arrivals([token(number) for number in range(count)])
    client, hold = await longest_hold(folded(name, waiting))
    assert hold < HOLD_SECONDS, hold
    (length,) = (v for k, v in client.messages[0]["headers"] if k == b"content-length")
    assert int(length) == len(client.body)
    assert json.loads(client.body)
    client, hold = await longest_hold(streamed(name, waiting))
    assert hold < HOLD_SECONDS, hold
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_in_the_middle_is_not_served_to_the_end() -> None:
    waiting = arrivals([token(number) for number in range(2000)])
    dialect, head = asked("openai_chat")
    for leaves_after in (2, 5):
        answer = answer_of(waiting)
        client = Client(answer, leaves_after)
        outcome = await Relay(answer, dialect.style, client.send).fold(dialect.folder(head))
        assert outcome is Outcome.CANCELLED
        assert len(client.messages) == leaves_after


def a_mixture(chance: random.Random) -> list[AnswerPart]:
    """Thinking, text and calls, in runs that end anywhere."""
    parts: list[AnswerPart] = []
    call = -1
    while len(parts) < 2.5 * EVENTS_AT_ONCE:
        run = chance.choice([1, 3, 200, EVENTS_AT_ONCE])
        match chance.randrange(3):
            case 0:
                parts += [Reasoning(f"r{len(parts) + n} ") for n in range(run)]
            case 1:
                parts += [Text(f"t{len(parts) + n} ") for n in range(run)]
            case _:
                call += 1
                parts.append(ToolCallPart(call, f"c{call}", "look", "{"))
                parts += [ToolCallPart(call, arguments=f"a{len(parts) + n} ") for n in range(run)]
    return parts


def said(body: bytes) -> list[tuple[str, str]]:
    """What a chat stream says: the text of each run of one kind."""
    pairs = []
    for line in body.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:]).get("choices", ()):
            for kind, value in choice["delta"].items():
                if kind == "tool_calls":
                    (call,) = value
                    pairs.append((f"call {call['index']}", call["function"]["arguments"]))
                elif kind != "role" and value:
                    pairs.append((kind, value))
    runs = itertools.groupby(pairs, key=lambda pair: pair[0])
    return [(kind, "".join(text for _, text in run)) for kind, run in runs]


async def test_after_any_event_of_what_was_cut_exactly_the_rest_comes() -> None:
    chance = random.Random(3)
    for _ in range(5):
        parts = a_mixture(chance)
        waiting = arrivals(parts)
        body = (await streamed("openai_chat", waiting)).body
        whole = "".join(text for _, text in said(body))
        assert whole == "".join(
            part.arguments if isinstance(part, ToolCallPart) else part.text for part in parts
        )
        ids = [line[4:].decode() for line in body.split(b"\n") if line.startswith(b"id: ")]
        assert len(set(ids)) == len(ids)
        for seen in chance.sample(ids, min(12, len(ids))):
            before, _, after = body.partition(f"id: {seen}\n".encode())
            last, _, _ = after.partition(b"\n\n")
            _, place, number = parse_event_id(seen)
            rest = (await streamed("openai_chat", waiting, seen=place, number=number)).body
            again = "".join(text for _, text in said(before + last) + said(rest))
            assert again == whole, seen


async def test_the_choices_of_an_answer_stay_apart() -> None:
    counts = (1200, 3, 700)
    choices = [
        arrivals([Text(f"{c}.{n} ") for n in range(count)]) for c, count in enumerate(counts)
    ]
    client = await streamed("openai_chat", *choices)
    texts = ["", "", ""]
    for line in client.body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
    expected = ["".join(f"{c}.{n} " for n in range(count)) for c, count in enumerate(counts)]
    assert texts == expected
    client = await folded("openai_chat", *choices)
    shown = [choice["message"]["content"] for choice in json.loads(client.body)["choices"]]
    assert shown == expected


async def test_a_failure_comes_after_all_that_arrived_before_it() -> None:
    broken = Broken(WireError(ErrorCode.STREAM_LOST, "It could not be moved."))
    answer = answer_of([STARTED, *events([Text("x")])])
    dialect, head = asked("openai_chat")
    client = Client(answer)
    relay = Relay(answer, dialect.style, client.send)
    streaming = asyncio.create_task(relay.stream(dialect.writer(head, (), -1)))
    await until(lambda: client.messages)
    for index in range(2, 1802):
        answer.streams[0].inbox.put(Parts((Text("x"),), 1, index))
    answer.streams[0].inbox.put(broken)
    assert await streaming is Outcome.of(broken.error)
    assert said(client.body) == [("content", "x" * 1801)]
    assert b"It could not be moved." in client.body.rpartition(b"data: ")[2]


def test_slices_keep_the_order() -> None:
    numbers: list[Event] = [Parts((), 1, index) for index in range(10)]
    arrived = [(0, numbers), (1, numbers[:1]), (2, numbers[:5])]
    for at_most in range(1, 20):
        cut = list(slices(arrived, at_most))
        assert all(sum(len(some) for _, some in one) == at_most for one in cut[:-1])
        for choice, some in arrived:
            together = [e for one in cut for number, part in one if number == choice for e in part]
            assert together == some
    assert list(slices([], 5)) == []
