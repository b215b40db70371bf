"""Event ids: a client that comes back misses nothing and sees nothing twice, wherever it was."""

import json
import random

import pytest

from cortex.api.cursor import START, Cursor, parse_event_id, unseen
from cortex.api.openai_render import ChunkWriter
from cortex.stream import Ended, Parts
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


@pytest.mark.parametrize("cursor", [Cursor(0), Cursor(17), Cursor(5, 2)])
def test_ids_read_back(cursor: Cursor) -> None:
    line = cursor.event_id("ab").decode()
    assert line.endswith("\n")
    assert parse_event_id(line.removeprefix("id: ")) == ("ab", cursor)


@pytest.mark.parametrize(
    "text", ["", "ab", "ab:", ":5", "ab:x", "ab:-1", "ab:1.y", "ab:9" + "9" * 20]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no event id"):
        parse_event_id(text)


def write(writer: ChunkWriter, chance: random.Random) -> list[bytes]:
    """All events of the answer, as many joined in each tick as chance has it."""
    out = writer.opening()
    rest = list(EVENTS)
    while rest:
        size = chance.randint(1, 3)
        out += writer.parts(rest[:size])
        rest = rest[size:]
    return [event for event in (out + writer.ending(END)).split(b"\n\n") if event]


@pytest.mark.parametrize("usage", [True, False])
def test_after_any_event_the_rest_comes(usage: bool) -> None:
    chance = random.Random(1)
    for _ in range(50):
        whole = write(ChunkWriter("job", "m", 1, usage), chance)
        expected = _texts(whole)
        for count in range(len(whole)):
            if not whole[count].startswith(b"id: "):
                continue  # [DONE]
            line = whole[count].split(b"\n")[0].decode().removeprefix("id: ")
            job, seen = parse_event_id(line)
            assert job == "job"
            rest = write(ChunkWriter("job", "m", 1, usage, seen), chance)
            assert _join(_texts(whole[: count + 1]) + _texts(rest)) == _join(expected)


def test_from_the_start_everything_comes() -> None:
    parts = [part for part, _ in unseen(EVENTS, START)]
    assert parts[0] == Reasoning("hm so")
    assert parts[1] == Text("Hi there.")


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
