"""The same answer in every dialect, byte for byte: what a client sees of thinking, text, calls, a
stop text, a failure, and of a stream that it takes up again.

``transcripts/`` can be read beside the documentation of OpenAI and Anthropic. A change of these
files is a change of what clients get.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from cortex.api.dialects.base import Dialect
from cortex.api.dialects.cursor import UNNUMBERED, Cursor, Place, parse_event_id
from cortex.api.dialects.registry import DIALECTS
from cortex.api.dialects.sse_writer import Head, Writer
from cortex.streams.events import Ended, Parts, Started
from protocol.errors import ErrorCode, WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import FinishReason, Timings, TokenLogprob, TokenLogprobs, Usage
from tests.support import grammar

FOLDER = Path(__file__).parent / "transcripts"
ID = "0123456789abcdefghijkl"
TOKENS = TokenLogprobs(b"Hi", -0.25, (TokenLogprob(b"Hi", -0.25), TokenLogprob(b"Ho", -1.5)))
BODIES = {
    "openai_chat": b'{"model": "m", "messages": [{"role": "user", "content": "Go"}], "tools": '
    b'[{"type": "function", "function": {"name": "look"}}], "logprobs": true, "top_logprobs": 2, '
    b'"stream_options": {"include_usage": true}}',
    "openai_completions": b'{"model": "m", "prompt": "Go", "logprobs": 2, '
    b'"stream_options": {"include_usage": true}}',
    "openai_responses": b'{"model": "m", "input": "Go", "tools": [{"type": "function", "name": '
    b'"look"}], "include": ["reasoning.encrypted_content"]}',
    "anthropic_messages": b'{"model": "m", "messages": [{"role": "user", "content": "Go"}], '
    b'"max_tokens": 99, "tools": [{"name": "look", "input_schema": {"type": "object"}}]}',
}
STARTED = Started("n1", 7, 99)
LONG: list[tuple[AnswerPart, ...]] = [
    (Reasoning("Where"),),
    (Reasoning(" is it?"), Text("Hi", (TOKENS,))),
    (Text(" „there“\n"),),
    (),
    (ToolCallPart(0, "call_1", "look", '{"at'),),
    (ToolCallPart(0, arguments='": "<a>"}'), ToolCallPart(1, "call_2", "look", "{}")),
]
"""What each token of an answer has made certain."""
SHORT: list[tuple[AnswerPart, ...]] = [(Text("Hi", (TOKENS,)),), (Text(" there"),)]
CALLED = Ended(FinishReason.TOOL_CALLS, Usage(7, len(LONG), 5, 2), Timings())
STOPPED = Ended(FinishReason.STOP, Usage(7, len(SHORT)), Timings(), stop_text="END")
CUT = Ended(FinishReason.LENGTH, Usage(7, len(SHORT)), Timings())
FAILURE = WireError(ErrorCode.STREAM_LOST, "It could not be moved.")


def head(dialect: Dialect) -> Head:
    call = dialect.decode(BODIES[dialect.name])
    return Head(ID, "m", 1_700_000_000, 1, call.include_usage, call.echo)


def streamed(
    dialect: Dialect,
    tokens: list[tuple[AnswerPart, ...]],
    end: Ended | WireError,
    seen: Place = (),
    at_once: int = 1,
    number: int = UNNUMBERED,
) -> str:
    """All that is written, when so many tokens come at once."""
    writer: Writer = dialect.writer(head(dialect), seen, number)
    out = writer.opening() + writer.started(0, STARTED)
    for start in range(0, len(tokens), at_once):
        some = tokens[start : start + at_once]
        out += writer.parts(0, [Parts(p, 1, start + n) for n, p in enumerate(some, 1)])
    if isinstance(end, WireError):
        out += writer.failure(end)
    else:
        out += writer.ended(0, end) + writer.closing([end])
    return b"".join(out).decode()


def whole(dialect: Dialect, tokens: list[tuple[AnswerPart, ...]], end: Ended) -> str:
    folder = dialect.folder(head(dialect))
    for parts in tokens:
        folder.add(0, parts)
    return b"".join(folder.answer([end])).decode()


def transcript(dialect: Dialect) -> str:
    """Of everything."""
    tokens, end = (SHORT, CUT) if dialect.name == "openai_completions" else (LONG, CALLED)
    return "\n".join(
        (
            "== streamed ==\n" + streamed(dialect, tokens, end),
            "== whole ==\n" + whole(dialect, tokens, end) + "\n",
            "== ended by a stop text ==\n" + streamed(dialect, SHORT, STOPPED),
            "== cut by max_tokens ==\n" + streamed(dialect, SHORT, CUT),
            "== without a token ==\n" + streamed(dialect, [], STOPPED),
            "== failed in the middle ==\n" + streamed(dialect, SHORT, FAILURE),
            "== taken up after the first token ==\n"
            + streamed(dialect, tokens, end, seen=(Cursor(1),)),
        )
    )


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_001.5)


@pytest.mark.parametrize("name", DIALECTS)
def test_every_byte_is_as_written_down(name: str) -> None:
    golden = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert transcript(DIALECTS[name]) == golden


@pytest.mark.parametrize("name", DIALECTS)
def test_a_stream_taken_up_after_any_event_is_the_rest_of_it(name: str) -> None:
    dialect = DIALECTS[name]
    body = _without_pings(streamed(dialect, LONG, CALLED))
    ids = [event.id for event in grammar.events(body) if event.id]
    assert len(ids) >= len(SHORT)
    for seen in ids:
        _, place, number = parse_event_id(seen)
        _, _, after = body.partition(f"id: {seen}\n")
        rest = after.partition("\n\n")[2]
        for at_once in (1, 2, len(LONG)):
            again = _without_pings(streamed(dialect, LONG, CALLED, place, at_once, number))
            if at_once == 1:
                assert again == rest, seen
            said = [parse_event_id(event.id) for event in grammar.events(again) if event.id]
            places = [parse_event_id(one).place for one in ids]
            left = places[ids.index(seen) + 1 :]
            assert {one.place for one in said} <= set(left), "nothing twice"
            assert [one.place for one in said][-1:] == left[-1:], "nothing left out"
            if number != UNNUMBERED:
                after_it = itertools.count(number + 1)
                assert [one.number for one in said] == [next(after_it) for _ in said], "no holes"


def _without_pings(body: str) -> str:
    return body.replace('event: ping\ndata: {"type":"ping"}\n\n', "")


@pytest.mark.parametrize(
    ("name", "read", "calls"),
    [
        ("openai_chat", grammar.chat_stream, True),
        ("openai_completions", grammar.completion_stream, False),
        ("openai_responses", grammar.response_stream, True),
        ("anthropic_messages", grammar.message_stream, True),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
def test_what_comes_at_once_is_joined_and_says_the_same(
    name: str, read: Callable[[str], grammar.Said], calls: bool, at_once: int
) -> None:
    said = read(streamed(DIALECTS[name], LONG, CALLED, at_once=at_once))
    assert said.text == "Hi „there“\n"
    if calls:
        assert said.reasoning == "Where is it?"
        assert said.calls == (("look", '{"at": "<a>"}'), ("look", "{}"))
        assert said.finish == "calls"
