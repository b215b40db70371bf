"""Event ids: a client that comes back misses nothing and sees nothing twice, wherever it was."""

import json
import random

import pytest

from cortex.api.dialects.chat.render import ChunkWriter
from cortex.api.dialects.cursor import START, UNNUMBERED, Cursor, Place, event_id, parse_event_id
from cortex.api.dialects.sse_writer import Head
from cortex.streams.events import Ended, Parts
from protocol.frames import Reasoning, Text, ToolCallPart
from protocol.generate import FinishReason, Timings, Usage

EVENTS = [
    Parts((Reasoning("hm"),), 1, 1),
    Parts((Reasoning(" so"), Text("Hi")), 1, 2),
    Parts((), 1, 3),
    Parts((Text(" there"),), 1, 4),
    Parts((Text("."), ToolCallPart(0, "c0", "f", "{}"), ToolCallPart(1, "c1", "g", "{}")), 1, 5),
    Parts((Text("end"),), 1, 6),
]
END = Ended(FinishReason.STOP, Usage(3, 6), Timings())


@pytest.mark.parametrize(
    "place",
    [
        (Cursor(0),),
        (Cursor(17),),
        (Cursor(5, 2),),
        (Cursor(-1, 1),),
        (Cursor(5, 2), START, Cursor(0)),
    ],
)
@pytest.mark.parametrize("number", [UNNUMBERED, 0, 12])
def test_ids_read_back(place: Place, number: int) -> None:
    line = event_id("ab", place, number).decode()
    assert line.endswith("\n")
    assert parse_event_id(line.removeprefix("id: ")) == ("ab", place, number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab",
        "ab:",
        ":5",
        "ab:x",
        "ab:-1",
        "ab:1.y",
        "ab:9" + "9" * 20,
        "ab:1,",
        "ab:-2.1",
        "ab:1~",
        "ab:1~x",
        "ab:~1",
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an event id"):
        parse_event_id(text)


def chunk_writer(usage: bool, seen: Place = ()) -> ChunkWriter:
    return ChunkWriter(Head("job", "m", 1, include_usage=usage), seen)


def write(writer: ChunkWriter, chance: random.Random) -> list[bytes]:
    """All events of the answer, as many joined in each tick as chance has it."""
    out = b"".join(writer.opening())
    rest = list(EVENTS)
    while rest:
        size = chance.randint(1, 3)
        out += b"".join(writer.parts(0, rest[:size]))
        rest = rest[size:]
    out += b"".join(writer.ended(0, END) + writer.closing([END]))
    return [event for event in out.split(b"\n\n") if event]


@pytest.mark.parametrize("usage", [True, False])
def test_after_any_event_the_rest_comes(usage: bool) -> None:
    chance = random.Random(1)
    for _ in range(50):
        whole = write(chunk_writer(usage), chance)
        expected = _texts(whole)
        for count in range(len(whole)):
            if not whole[count].startswith(b"id: "):
                continue  # [DONE]
            line = whole[count].split(b"\n")[0].decode().removeprefix("id: ")
            job, seen, _ = parse_event_id(line)
            assert job == "job"
            rest = write(chunk_writer(usage, seen), chance)
            assert _join(_texts(whole[: count + 1]) + _texts(rest)) == _join(expected)


def _texts(events: list[bytes]) -> list[tuple[str, str]]:
    """(kind, text) of every event."""
    out: list[tuple[str, str]] = []
    for event in events:
        data = event.split(b"data: ")[1]
        if data == b"[DONE]":
            out.append(("done", ""))
            continue
        body = json.loads(data)
        if not body["choices"]:
            out.append(("usage", json.dumps(body["usage"])))
            continue
        choice = body["choices"][0]
        for kind, value in choice["delta"].items():
            out.append((kind, value if isinstance(value, str) else json.dumps(value)))
        if choice["finish_reason"]:
            out.append(("finish", choice["finish_reason"]))
    return out


def _join(said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    joined: list[tuple[str, str]] = []
    for kind, text in said:
        if joined and joined[-1][0] == kind and kind in ("content", "reasoning_content"):
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined
