"""Nothing about an answer takes longer than the answer is long, and its end takes no time at all.

The bounds are far from what is measured, and far below what it took before: 0.5 s for the end of
10,000 tokens with twenty log-probabilities each.
"""

import gc
import tracemalloc

import pytest

from cortex.api.dialects.pieces import HOLE, PIECE_BYTES, RenderedItems, blocks, filled, listed
from cortex.api.dialects.sse_writer import joined
from cortex.streams.events import Parts
from protocol.frames import Text, ToolCallPart
from tests.support.answers import asked, cpu_seconds, end, events, token

WITH_LOGPROBS = ("openai_chat", "openai_completions", "openai_responses")
TOKENS = 10_000
END_SECONDS = 0.08


@pytest.mark.parametrize("name", WITH_LOGPROBS)
def test_the_end_of_a_long_answer(name: str) -> None:
    dialect, head = asked(name)
    folder = dialect.folder(head)
    for number in range(3 * TOKENS):
        folder.add(0, [token(number)])
    assert cpu_seconds(lambda: list(folder.answer([end(3 * TOKENS)]))) < END_SECONDS


def test_the_end_of_a_long_streamed_response() -> None:
    dialect, head = asked("openai_responses")
    writer = dialect.writer(head, (), -1)
    writer.opening()
    for event in events([token(number) for number in range(TOKENS)]):
        writer.parts(0, [event])
    assert cpu_seconds(lambda: writer.ended(0, end(TOKENS))) < END_SECONDS


def test_a_long_text_before_a_call() -> None:
    dialect, head = asked("openai_responses")
    writer = dialect.writer(head, (), -1)
    for event in events([token(number) for number in range(TOKENS)]):
        writer.parts(0, [event])
    call = Parts((ToolCallPart(0, "c", "f", "{}"),), 1, TOKENS + 1)
    assert cpu_seconds(lambda: writer.parts(0, [call])) < END_SECONDS


def test_many_choices_come_one_by_one() -> None:
    dialect, head = asked("openai_chat", choices=128)
    folder = dialect.folder(head)
    for number in range(200):
        for choice in range(128):
            folder.add(choice, [token(number, 2)])
    pieces = iter(folder.answer([end(200)] * 128))
    assert cpu_seconds(lambda: next(pieces)) < 0.02
    assert sum(1 for _ in pieces) >= 2 * 128


@pytest.mark.parametrize("name", WITH_LOGPROBS)
def test_what_is_kept_of_a_token(name: str) -> None:
    dialect, head = asked(name)
    folder = dialect.folder(head)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(2000):
            folder.add(0, [token(number)])
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / 2000 < 2000, "bytes; what arrives takes 2,400"


def test_what_waits_for_a_slow_reader_is_joined_once() -> None:
    dialect, head = asked("openai_chat")
    waiting = events([token(number, 0) for number in range(60_000)])
    seconds = cpu_seconds(lambda: dialect.writer(head, (), -1).parts(0, waiting))
    assert seconds < 1.0, "it was 4 s"


def test_an_event_of_many_choices_is_no_dearer() -> None:
    def seconds(choices: int) -> float:
        dialect, head = asked("openai_chat", choices)
        writer = dialect.writer(head, (), -1)

        def write() -> None:
            for number in range(2560):
                event = Parts((Text("x"),), 1, number // choices + 1)
                writer.parts(number % choices, [event])

        return cpu_seconds(write)

    few, many = (min(seconds(choices) for _ in range(3)) for choices in (2, 128))
    assert many < 3 * few


def test_text_is_never_taken_for_a_hole() -> None:
    dialect, head = asked("openai_responses")
    folder = dialect.folder(head._replace(model="\0"))
    folder.add(0, [Text("\0", token(1).logprobs), Text("\\0\0")])
    answer = b"".join(folder.answer([end(2)]))
    assert answer.count(b'"text":"\\u0000\\\\0\\u0000"') == 1
    assert b"\0" not in answer


def test_pieces() -> None:
    items = RenderedItems()
    assert filled(b"[%b]" % HOLE, [items.pieces()]) == [b"[", b"]"]
    for item in (b"1", b"", b"2,3", b"4"):
        items.add(item)
    assert b"".join(filled(b"[%b]" % HOLE, [items.pieces()])) == b"[1,2,3,4]"
    items.add(b"5")
    assert b"".join(items.pieces()) == b"1,2,3,4,5"
    for _ in range(10):
        items.add(b"7" * PIECE_BYTES)
    assert max(map(len, items.pieces())) <= 2 * PIECE_BYTES
    assert b"".join(listed(b"<%b>" % HOLE, [[b"a", b"b"], [], [b"c"]])) == b"<ab,,c>"


def test_blocks_are_worth_a_write() -> None:
    pieces = [b"x" * 1000] * 200 + [b"y" * (3 * PIECE_BYTES)] + [b"z"]
    joined_up = list(blocks(pieces))
    assert b"".join(joined_up) == b"".join(pieces)
    assert all(len(block) >= PIECE_BYTES for block in joined_up[:-1])
    assert list(blocks([])) == []


def test_a_run_of_one_kind_is_its_sum() -> None:
    assert joined([token(1), token(2)]) == Text(
        token(1).text + token(2).text, token(1).logprobs + token(2).logprobs
    )
