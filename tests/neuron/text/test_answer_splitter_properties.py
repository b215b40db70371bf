"""Whatever a model writes and however it is cut: nothing changes, nothing is lost."""

import json
import random
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from neuron.text.answer_splitter import AnswerSplitter
from neuron.text.tool_calls.call_style import CallStyle
from neuron.text.tool_calls.xml_calls import Schema
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from tests.support.properties import examples

ANSWERS = Path(__file__).with_name("answers.json")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
CALL = '{"name":"f","arguments":{"k": "</tool_call>"}}'

fragments = st.sampled_from(
    [
        *TAGS,
        *(f"<tool_call>{CALL}</tool_call>", f"<tool_call>\n{CALL}\n</tool_call>", CALL),
        *("<", "</", "<t", "<think", "</think", "<tool_", "</tool_call", "ink>", ">", "_call>"),
        *("\n", " ", "\n\n", "word", "ä🕙", "{", "}", "[", "]", '"', "\\", ",", "[]", "{}"),
        *('{"name":"f"', '"arguments":', '{"name":"f"}', '[{"name":"f"},{"name":"g"}]'),
    ]
)
outputs = st.lists(fragments | st.text(max_size=3), max_size=14).map("".join)

SCHEMA = (
    b'{"properties": {"a": {"type": "object"}, "b": {"type": ["integer", "null"]},'
    b' "c": {"type": "string"}, "d": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}'
)
XML = "<tool_call>\n<function=f>\n"
others = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", CALL, XML, "</function>"),
        *("<parameter=a>\n", "<parameter=b>", "<parameter=c>", "<parameter=d>", "</parameter>\n"),
        *("[TOOL_CALLS]", "f[ARGS]", "[CALL_ID]", "<|python_tag|>", ";", "<function=f>"),
        *('{"name":"f"}', '{"arguments":{"x":[1,2', '{"arguments":"{}",', ']},"name":"f"}'),
        *("[1, 2,", "1]", "{'a': 1}", '{"a": [1, {"b": None,}]}', '"a,b"', '"x"', "1.5e3", "-"),
        *("null", "None", "True", "\\u00", ", \n ", "word", "{", "}", "[", "]", '"', ",", ":"),
        *("\n", " ", " " * 70, "\t", "\u00a0", "\u2003", "9" * 50, "ä🕙", "<", "</"),
    ]
)
styled = st.tuples(
    st.sampled_from(["", XML, f"{XML}<parameter=a>\n", f"{XML}<parameter=b>", "[TOOL_CALLS]"]),
    st.lists(others, max_size=20).map("".join),
).map("".join)


def split(
    chunks: Iterable[str], thinking: bool, tools: bool, style: CallStyle = CallStyle.HERMES
) -> list[AnswerPart]:
    numbers = iter(range(10_000))
    splitter = AnswerSplitter(
        starts_in_thinking=thinking,
        tools={"f": Schema(SCHEMA)} if tools else None,
        new_call_id=lambda: f"call_{next(numbers)}",
        style=style,
    )
    parts = [part for chunk in chunks for part in splitter.feed(chunk)]
    return merge([*parts, *splitter.finish()])


def merge(parts: Sequence[AnswerPart]) -> list[AnswerPart]:
    merged: list[AnswerPart] = []
    for part in parts:
        if not isinstance(part, ToolCallPart):
            assert part.text
        match part, merged[-1] if merged else None:
            case Text(new), Text(old):
                merged[-1] = Text(old + new)
            case Reasoning(new), Reasoning(old):
                merged[-1] = Reasoning(old + new)
            case ToolCallPart(name="", arguments=more), ToolCallPart(n, call_id, name, arguments):
                merged[-1] = ToolCallPart(n, call_id, name, arguments + more)
            case _:
                merged.append(part)
    return merged


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(edges)] or [text]


@examples(150)
@given(outputs, st.lists(st.integers(0, 10_000), max_size=12), st.booleans(), st.booleans())
def test_chunks_do_not_matter(text: str, places: list[int], thinking: bool, tools: bool) -> None:
    whole = split([text], thinking, tools)
    assert split(cut(text, places), thinking, tools) == whole
    assert split(text, thinking, tools) == whole


@examples(150)
@given(
    styled,
    st.lists(st.integers(0, 10_000), max_size=12),
    st.booleans(),
    st.sampled_from(CallStyle),
)
def test_chunks_do_not_matter_in_any_style(
    text: str, places: list[int], thinking: bool, style: CallStyle
) -> None:
    whole = split([text], thinking, True, style)
    assert split(cut(text, places), thinking, True, style) == whole
    assert split(text, thinking, True, style) == whole


def test_answers_come_out_as_they_always_have() -> None:
    """What 300 answers of all styles became before long ones were read in parts."""
    chance = random.Random(7)
    for answer in json.loads(ANSWERS.read_text()):
        text, thinking, style = answer["text"], answer["thinking"], CallStyle(answer["style"])
        places = [chance.randrange(10_000) for _ in range(8)]
        for chunks in ([text], list(text), cut(text, places)):
            found = split(chunks, thinking, True, style)
            assert [msgspec.to_builtins(part) for part in found] == answer["parts"], text


def squash(text: str) -> str:
    """*text* without white space and tags, also those that appear when others are taken out."""
    text = re.sub(r"\s", "", text)
    while any(tag in text for tag in TAGS):
        text = re.sub("|".join(TAGS), "", text)
    return text


@examples(150)
@given(outputs, st.booleans(), st.booleans())
def test_only_tags_and_white_space_disappear(text: str, thinking: bool, tools: bool) -> None:
    text = text.replace('[{"name":"f"},{"name":"g"}]', "").replace('{"name":"f"}', "")
    written = "".join(
        f'{{"name":"{part.name}","arguments":{part.arguments}}}'
        if isinstance(part, ToolCallPart)
        else part.text
        for part in split([text], thinking, tools)
    )
    assert squash(written) == squash(text)


@examples(75)
@given(outputs, st.booleans())
def test_without_tools_no_call_ever_appears(text: str, thinking: bool) -> None:
    parts = split([text], thinking, tools=False)
    assert not any(isinstance(part, ToolCallPart) for part in parts)
    joined = "".join(part.text for part in parts if not isinstance(part, ToolCallPart))
    assert len(re.findall("</?tool_call>", joined)) >= len(re.findall("</?tool_call>", text))


plain = st.text(max_size=20).filter(lambda text: "<" not in text)
arguments = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
calls = st.tuples(
    st.text(min_size=1, max_size=8), arguments, st.booleans(), st.sampled_from([0, 2])
)


@examples(75)
@given(
    thought=plain,
    thinking=st.sampled_from(["prompt", "answer", "none"]),
    content=plain.map(str.lstrip),
    wanted=st.lists(calls, max_size=4),
    gap=st.sampled_from(["", "\n", "\n\n "]),
    places=st.lists(st.integers(0, 10_000), max_size=8),
)
def test_well_formed_answers_are_taken_apart_exactly(
    thought: str,
    thinking: str,
    content: str,
    wanted: list[tuple[str, dict[str, object], bool, int]],
    gap: str,
    places: list[int],
) -> None:
    written, expected = [], list[AnswerPart]()
    if thinking != "none":
        opening = "<think>\n" if thinking == "answer" else "\n"
        written.append(f"{opening}{thought}\n</think>\n\n")
        expected.append(Reasoning(thought))
    written.append(content)
    expected.append(Text(content))
    for index, (name, values, name_first, indent) in enumerate(wanted):
        raw = json.dumps(values, ensure_ascii=bool(indent), indent=indent or None)
        keys = [f'"name": {json.dumps(name)}', f'"arguments": {raw}']
        body = ", ".join(keys if name_first else reversed(keys))
        written.append(f"<tool_call>\n{{{body}}}\n</tool_call>{gap}")
        expected.append(ToolCallPart(index, f"call_{index}", name, raw))
    text = "".join(written)
    expected = [part for part in expected if isinstance(part, ToolCallPart) or part.text]
    assert split(cut(text, places), thinking == "prompt", True) == expected
