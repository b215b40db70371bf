"""Splitting answers: exact results, and nothing that depends on how the text is cut."""

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuron.text.splitter import OutputSplitter
from protocol.frames import Part, Reasoning, Text, ToolCallPart


def split(
    pieces: list[str], *, tools: bool = True, in_thinking: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    """Reasoning, content and calls of an answer that arrives in pieces."""
    numbers = itertools.count()
    splitter = OutputSplitter(
        starts_in_thinking=in_thinking,
        tools_offered=tools,
        new_call_id=lambda: f"call_{next(numbers)}",
    )
    parts: list[Part] = []
    for piece in pieces:
        parts += splitter.feed(piece)
    parts += splitter.finish()
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    assert [(c.index, c.id) for c in calls] == [(n, f"call_{n}") for n in range(len(calls))]
    assert splitter.calls == len(calls)
    assert all(p.text for p in parts if not isinstance(p, ToolCallPart)), "no empty parts"
    return (
        "".join(p.text for p in parts if isinstance(p, Reasoning)),
        "".join(p.text for p in parts if isinstance(p, Text)),
        [(c.name, c.arguments) for c in calls],
    )


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

CASES = {
    "text": ("Hi there", ("", "Hi there", [])),
    "empty": ("", ("", "", [])),
    "spaces stay": ("  a \n", ("", "  a \n", [])),
    "thinking": ("<think>\nhm\n</think>\n\nHi", ("hm", "Hi", [])),
    "no thoughts": ("<think>\n\n</think>\n\nHi", ("", "Hi", [])),
    "space before thinking": ("\n <think>hm</think>Hi", ("hm", "Hi", [])),
    "cut thinking": ("<think>\nhm, so", ("hm, so", "", [])),
    "inner space of thoughts": ("<think>a\n\nb </think> c", ("a\n\nb", "c", [])),
    "think later is text": ("So <think>x</think> y", ("", "So <think>x y", [])),
    "double end": ("<think>a</think>b</think>c", ("a", "bc", [])),
    "almost a tag": ("<thin <tool <think", ("", "<thin <tool <think", [])),
    "a call": (CALL, ("", "", [("f", '{"a": 1}')])),
    "text and a call": ("Look.\n" + CALL + "\n", ("", "Look.", [("f", '{"a": 1}')])),
    "two calls": (CALL + "\n" + CALL, ("", "", [("f", '{"a": 1}')] * 2)),
    "a call in thoughts": ("<think>hm " + CALL, ("hm", "", [("f", '{"a": 1}')])),
    "text after a call": (CALL + "\nDone.", ("", "Done.", [("f", '{"a": 1}')])),
    "unclosed but whole": (CALL[:-12], ("", "", [("f", '{"a": 1}')])),
    "unclosed and cut": (CALL[:30], ("", CALL[:30], [])),
    "malformed": (
        "a <tool_call>{nope}</tool_call> b",
        ("", "a <tool_call>{nope}</tool_call> b", []),
    ),
    "parameters": (
        '<tool_call>{"parameters": {}, "name": "g"}</tool_call>',
        ("", "", [("g", "{}")]),
    ),
    "no arguments": ('<tool_call>{"name": "g"}</tool_call>', ("", "", [("g", "{}")])),
    "null": ('<tool_call>{"name": "g", "arguments": null}</tool_call>', ("", "", [("g", "{}")])),
    "as text": (
        '<tool_call>{"name": "g", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", "", [("g", '{"a": 1}')]),
    ),
    "a list": (
        '<tool_call>[{"name": "f"}, {"name": "g"}]</tool_call>',
        ("", "", [("f", "{}"), ("g", "{}")]),
    ),
    "nameless": ('<tool_call>{"x": 1}</tool_call>', ("", '<tool_call>{"x": 1}</tool_call>', [])),
    "end tag inside a string": (
        '<tool_call>{"name": "f", "arguments": {"a": "<tool_call>"}}</tool_call>',
        ("", "", [("f", '{"a": "<tool_call>"}')]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case_whole_and_character_by_character(name: str) -> None:
    text, expected = CASES[name]
    assert split([text]) == expected
    assert split(list(text)) == expected


def test_the_prompt_may_have_opened_the_thinking() -> None:
    assert split(["\nhm\n</think>\n\nHi"], in_thinking=True) == ("hm", "Hi", [])
    assert split(["hm"], in_thinking=True) == ("hm", "", [])


def test_without_tools_their_tags_are_text() -> None:
    assert split([CALL], tools=False) == ("", CALL, [])
    assert split(["<think>" + CALL + "</think>x"], tools=False) == (CALL, "x", [])


def test_text_is_not_held_back_longer_than_needed() -> None:
    splitter = OutputSplitter(starts_in_thinking=False, tools_offered=True, new_call_id=lambda: "c")
    assert splitter.feed("Hello") == (Text("Hello"),)
    assert splitter.feed(" wor<to") == (Text(" wor"),)
    assert splitter.feed("ld") == (Text("<told"),)


def test_in_reasoning_tells_where_the_model_is() -> None:
    splitter = OutputSplitter(
        starts_in_thinking=False, tools_offered=False, new_call_id=lambda: "c"
    )
    splitter.feed("<think>a")
    assert splitter.in_reasoning
    splitter.feed("</think>b")
    assert not splitter.in_reasoning


fragments = st.lists(
    st.sampled_from(
        (
            *("<think>", "</think>", "<tool_call>", "</tool_call>", "<", "/", ">", "think", " "),
            *("\n", "a", "é🎉", "{}", "tool_call>", "\u2003"),
            '{"name": "f", "arguments": {"x": "y"}}',
        )
    ),
    max_size=12,
).map("".join)


@given(fragments, st.lists(st.integers(0, 200), max_size=8), st.booleans(), st.booleans())
@example("<think>\n\n</think>\n\n", [3], True, False)
def test_chunking_never_matters(text: str, cuts: list[int], tools: bool, in_thinking: bool) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert split(pieces, tools=tools, in_thinking=in_thinking) == split(
        [text], tools=tools, in_thinking=in_thinking
    )


@given(fragments, st.booleans())
def test_nothing_but_tags_and_whitespace_is_lost(text: str, tools: bool) -> None:
    reasoning, content, calls = split([text], tools=tools)
    kept = reasoning + content + "".join(name + arguments for name, arguments in calls)
    survivors = [c for c in kept if c.isalnum()]
    for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        text = text.replace(tag, "")
    if not calls:
        wanted = [c for c in text if c.isalnum()]
        assert _is_subsequence(wanted, survivors)


def _is_subsequence(wanted: list[str], present: list[str]) -> bool:
    rest = iter(present)
    return all(any(c == other for other in rest) for c in wanted)


words = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), min_size=1)


@given(
    st.none() | words,
    words,
    st.lists(
        st.tuples(words, st.dictionaries(words, st.integers() | words, max_size=3)), max_size=3
    ),
)
def test_well_formed_answers_come_apart_exactly(
    reasoning: str | None, content: str, calls: list[tuple[str, dict[str, int | str]]]
) -> None:
    space = " \t\r\n"
    text = "" if reasoning is None else f"<think>\n{reasoning}\n</think>\n\n"
    text += content
    for name, arguments in calls:
        body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        text += f"\n<tool_call>\n{body}\n</tool_call>"
    expected = content if reasoning is None else content.lstrip(space)
    if calls:
        expected = expected.rstrip(space)
    got_reasoning, got_content, got_calls = split([text])
    assert got_reasoning == (reasoning or "").strip(space)
    assert got_content == expected
    assert [(n, json.loads(a)) for n, a in got_calls] == calls
