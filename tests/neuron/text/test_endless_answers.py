"""However long an answer goes on, each of its tokens costs the same, and its end costs little."""

import gc
import time
from collections.abc import Iterator

import pytest

from neuron.text.aligner import Aligner
from neuron.text.answer_splitter import AnswerSplitter
from neuron.text.tool_calls.xml_calls import Schema
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import TokenLogprobs

TOKENS = 50_000
MOST_SECONDS = 2.0
"""For all tokens; they take a quarter of it, and took more when each looked at all before it."""
MOST_STEP_SECONDS = 0.05

SCHEMA = Schema(b'{"properties": {"a": {"type": "array"}}}')
BLANKS = " " * 64
JSON = '<tool_call>{"name": "f", "arguments": {"k": [1,'
EARLY = '<tool_call>{"arguments": {"k": ['
XML = "<tool_call>\n<function=f>\n"


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """Keeps the objects of other tests out of what is measured."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Stopwatch:
    """Measures the steps of one answer."""

    def __init__(self) -> None:
        self.total = 0.0
        self.longest = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        seconds = time.process_time() - self._began
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def check(self) -> None:
        """Fails if a step, or all of them, took too long."""
        assert self.longest < MOST_STEP_SECONDS
        assert self.total < MOST_SECONDS


def new_splitter(*, thinking: bool = False) -> AnswerSplitter:
    return AnswerSplitter(
        starts_in_thinking=thinking, tools={"f": SCHEMA}, new_call_id=lambda: "id"
    )


def as_text(parts: list[AnswerPart]) -> str:
    """The parts as they may be written, so that they can be compared."""
    return "".join(
        f"{part.name}({part.arguments}" if isinstance(part, ToolCallPart) else part.text
        for part in parts
    )


BLANKS_MANY = BLANKS * TOKENS
ANSWERS = {
    "white space before the answer": ("", BLANKS, "Hi", BLANKS_MANY + "Hi"),
    "after thinking": ("<think>hm</think>", BLANKS, "Hi", "hmHi"),
    "before a call": ("<tool_call>", BLANKS, "Hi", f"<tool_call>{BLANKS_MANY}Hi"),
    "after a call": (f'{EARLY}1]}}, "name": "f"}}', BLANKS, "", 'f({"k": [1]}'),
    "inside an invalid call": ("<tool_call>{", BLANKS, "}", f"<tool_call>{{{BLANKS_MANY}}}"),
    "after a comma": (JSON, BLANKS, "2]}}", f'f({{"k": [1,{BLANKS_MANY}2]}}'),
    "after a comma that is wrong": (JSON, BLANKS, "]}}", 'f({"k": [1]}'),
    "between tags": (XML, BLANKS, "</function>", "f({}"),
    "in a value": (f"{XML}<parameter=a>", BLANKS, "[1]</parameter></function>", 'f({"a": [1]}'),
    "after a value": (f"{XML}<parameter=a>[1]", BLANKS, "</function>", 'f({"a": [1]}'),
    "arguments that are an array": (
        f"{XML}<parameter=a>[",
        "1, ",
        "2]</parameter></function>",
        f'f({{"a": [{"1, " * TOKENS}2]}}',
    ),
    "arguments that are none": (
        f"{XML}<parameter=a>[",
        "1, ",
        "x]</parameter></function>",
        f'f({{"a": "[{"1, " * TOKENS}x]"}}',
    ),
    "arguments before the name": (
        EARLY,
        "1, ",
        '2]}, "name": "f"}</tool_call>',
        f'f({{"k": [{"1, " * TOKENS}2]}}',
    ),
    "a name": ('<tool_call>{"name": "', "f" * 64, '"}</tool_call>', f"{'f' * 64 * TOKENS}({{}}"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_without_end_costs_the_same_at_every_token(name: str) -> None:
    start, token, end, expected = ANSWERS[name]
    splitter, watch = new_splitter(), Stopwatch()
    parts = list(splitter.feed(start))
    for text in (*(token for _ in range(TOKENS)), end):
        with watch:
            given = splitter.feed(text)
        parts += given
    with watch:
        given = splitter.finish()
    assert as_text([*parts, *given]) == expected
    watch.check()


def test_white_space_before_thinking_costs_the_same_at_every_token() -> None:
    splitter, watch = new_splitter(thinking=True), Stopwatch()
    for _ in range(TOKENS):
        with watch:
            assert splitter.feed(BLANKS) == ()
    with watch:
        given = splitter.feed("<think>\nhm")
    assert given == (Reasoning("hm"),)
    watch.check()


@pytest.mark.parametrize(
    "text",
    ["</think>", "<think></think>", "<tool_call>", "<tool_call>{}", "<function=f></function>", "["],
)
def test_one_long_piece_costs_what_its_parts_cost(text: str) -> None:
    """A stop text that is released after all comes in one piece."""
    piece = text * (65_536 // len(text))
    watch = Stopwatch()
    splitter, other = new_splitter(), new_splitter()
    with watch:
        given = splitter.feed(piece)
    apart = [part for letter in piece for part in other.feed(letter)]
    assert as_text([*given, *splitter.finish()]) == as_text([*apart, *other.finish()])
    assert watch.longest < 4 * MOST_STEP_SECONDS


def test_a_long_text_finds_its_tokens_in_linear_time() -> None:
    aligner, watch = Aligner(), Stopwatch()
    tokens = [TokenLogprobs(b" word", -1.0)] * (2 * TOKENS)
    aligner.add(tokens)
    with watch:
        (part,) = aligner.give([Text(" word" * len(tokens))])
    assert isinstance(part, Text)
    assert list(part.logprobs) == tokens
    assert watch.total < 3 * MOST_STEP_SECONDS
