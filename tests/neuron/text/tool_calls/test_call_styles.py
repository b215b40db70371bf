"""Calls in the other forms that models write: XML, Llama's and Mistral's."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from neuron import demo_model
from neuron.text.answer_splitter import AnswerSplitter
from neuron.text.prompter import Prompter
from neuron.text.tool_calls.call_reader import HELD_CHARACTERS
from neuron.text.tool_calls.call_style import CallStyle, style_of
from neuron.text.tool_calls.xml_calls import Schema
from protocol.catalogue import CALL_STYLES
from protocol.frames import AnswerPart, Text, ToolCallPart

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "count": {"type": "integer"},
        "deep": {"$ref": "#/$defs/deep"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "flag": {"type": ["boolean", "null"]},
        "mode": {"enum": ["fast", "slow"]},
        "list": {"type": "array"},
    },
    "$defs": {"deep": {"type": "object"}},
}
TOOLS = {"edit": Schema(json.dumps(SCHEMA).encode()), "stop": Schema()}


def split(text: str, style: CallStyle, chunks: list[str] | None = None) -> list[AnswerPart]:
    numbers = iter(range(1000))
    splitter = AnswerSplitter(
        starts_in_thinking=False,
        tools=TOOLS,
        new_call_id=lambda: f"call_{next(numbers)}",
        style=style,
    )
    parts = [part for chunk in chunks or [text] for part in splitter.feed(chunk)]
    merged: list[AnswerPart] = []
    for part in (*parts, *splitter.finish()):
        match part, merged[-1] if merged else None:
            case Text(new), Text(old):
                merged[-1] = Text(old + new)
            case ToolCallPart(name="", arguments=more), ToolCallPart(n, call_id, name, arguments):
                merged[-1] = ToolCallPart(n, call_id, name, arguments + more)
            case _:
                merged.append(part)
    return merged


def calls(parts: list[AnswerPart]) -> list[tuple[str, object]]:
    return [(p.name, json.loads(p.arguments)) for p in parts if isinstance(p, ToolCallPart)]


def xml(name: str, *values: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


CODE = "if a < b and \"x\" != 'y':\n\treturn </p>\n\n"
ANSWERS = [
    (xml("stop"), CallStyle.XML, [("stop", {})]),
    (
        xml("edit", ("path", CODE), ("count", "5"), ("maybe", "null"), ("flag", "True")),
        CallStyle.XML,
        [("edit", {"path": CODE, "count": 5, "maybe": None, "flag": True})],
    ),
    (
        xml("edit", ("deep", '{"a": [1, None,]}'), ("list", "[]"), ("mode", "fast"), ("new", "7")),
        CallStyle.XML,
        [("edit", {"deep": {"a": [1, None]}, "list": [], "mode": "fast", "new": "7"})],
    ),
    (
        xml("edit", ("count", "many"), ("maybe", "5")),
        CallStyle.XML,
        [("edit", {"count": "many", "maybe": "5"})],
    ),
    (xml("edit", ("path", "")), CallStyle.XML, [("edit", {"path": ""})]),
    (xml("stop") + "\n" + xml("stop"), CallStyle.XML, [("stop", {}), ("stop", {})]),
    ("<function=stop>\n</function>", CallStyle.XML, [("stop", {})]),
    (
        "<tool_call>\n<function=stop>\n</function>\n<function=stop></function></tool_call>",
        CallStyle.XML,
        [("stop", {}), ("stop", {})],
    ),
    ("<function=edit><parameter=path>a</parameter>", CallStyle.XML, [("edit", {"path": "a"})]),
    (
        "<function=edit><parameter=path>a<parameter=count>1</function>",
        CallStyle.XML,
        [("edit", {"path": "a", "count": 1})],
    ),
    (xml("stop"), CallStyle.HERMES, [("stop", {})]),
    ('<tool_call>{"name": "stop"}</tool_call>', CallStyle.XML, [("stop", {})]),
    ('{"name": "stop", "parameters": {}}', CallStyle.LLAMA, [("stop", {})]),
    ('<|python_tag|>{"name": "stop", "parameters": {}}', CallStyle.LLAMA, [("stop", {})]),
    (
        '{"type": "function", "name": "stop", "parameters": {}}; {"name": "stop"}',
        CallStyle.LLAMA,
        [("stop", {}), ("stop", {})],
    ),
    ('[TOOL_CALLS][{"name": "stop", "arguments": {}}]', CallStyle.MISTRAL, [("stop", {})]),
    (
        '[TOOL_CALLS]edit[ARGS]{"count": 1}[TOOL_CALLS]stop[CALL_ID]x1[ARGS]{}',
        CallStyle.MISTRAL,
        [("edit", {"count": 1}), ("stop", {})],
    ),
    ('[TOOL_CALLS] edit {"count": 1}', CallStyle.MISTRAL, [("edit", {"count": 1})]),
]


@pytest.mark.parametrize(("text", "style", "expected"), ANSWERS, ids=lambda value: str(value)[:30])
def test_calls_in_any_chunks(
    text: str, style: CallStyle, expected: list[tuple[str, object]]
) -> None:
    chance = random.Random(1)
    for before in ("", "So:\n" if style is not CallStyle.LLAMA else ""):
        whole = split(before + text, style)
        assert calls(whole) == expected
        assert "".join(part.text for part in whole if isinstance(part, Text)) == before
        for _ in range(60):
            edges = sorted(
                chance.sample(range(len(text) + 1), min(len(text), chance.randint(1, 9)))
            )
            chunks = [before, *(text[a:b] for a, b in pairwise([0, *edges, len(text)]))]
            assert split("", style, chunks) == whole
        assert split("", style, [before, *text]) == whole


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("<function=", CallStyle.XML),
        ("<function=stop", CallStyle.XML),
        ("<function=stop>", CallStyle.XML),
        ("<function=stop>\nHello", CallStyle.XML),
        ("<function=>\n</function>", CallStyle.XML),
        ("<tool_call>\n<function=stop>\n</function>\nand so on", CallStyle.XML),
        ("<tool_call>\n<func>", CallStyle.XML),
        ('{"answer": 5}', CallStyle.LLAMA),
        ('{"name": "Bob", "age": 5} is my answer', CallStyle.LLAMA),
        ("{oops", CallStyle.LLAMA),
        ('Say {"name": "stop"}', CallStyle.LLAMA),
        ("[TOOL_CALLS]", CallStyle.MISTRAL),
        ("[TOOL_CALLS]stop", CallStyle.MISTRAL),
        ("[TOOL_CALLS][]", CallStyle.MISTRAL),
        ("[TOOL_CALLS]\nan array\n", CallStyle.MISTRAL),
        ("see [1] and [TOOL", CallStyle.MISTRAL),
        ("<tool_call>{}</tool_call>", CallStyle.MISTRAL),
    ],
)
def test_what_is_no_call_comes_back_as_text(text: str, style: CallStyle) -> None:
    assert split(text, style) == [Text(text)]
    assert split("", style, list(text)) == [Text(text)]


def test_a_long_value_streams() -> None:
    splitter = AnswerSplitter(
        starts_in_thinking=False, tools=TOOLS, new_call_id=lambda: "c", style=CallStyle.XML
    )
    assert splitter.feed("<tool_call>\n<function=edit>\n<parameter=path>\n") == ()
    (first,) = splitter.feed("x" * (HELD_CHARACTERS + 1))
    assert isinstance(first, ToolCallPart)
    assert (first.name, first.arguments[:12]) == ("edit", '{"path": "xx')
    assert splitter.feed('say "hi"\n') == (ToolCallPart(0, arguments='say \\"hi\\"'),)
    assert splitter.feed("</para") == ()
    assert splitter.feed("meter>") == (ToolCallPart(0, arguments='"'),)
    assert splitter.feed("</function>\n</tool_call>") == (ToolCallPart(0, arguments="}"),)


@pytest.mark.parametrize(
    ("source", "style"),
    [
        ("… <tool_call> {{ tool | tojson }} …", CallStyle.HERMES),
        ("… <tool_call>\n<function=example> …", CallStyle.XML),
        ("… [TOOL_CALLS] …", CallStyle.MISTRAL),
        ("… <|python_tag|> …", CallStyle.LLAMA),
        ("no tools at all", CallStyle.HERMES),
    ],
)
def test_the_template_tells_the_style(source: str, style: CallStyle) -> None:
    assert style_of(source) is style


def test_every_style_can_be_begun() -> None:
    for style in CallStyle:
        begun = style.beginning("stop")
        rest = "</function>\n</tool_call>" if style is CallStyle.XML else "{}}"
        rest += "]" if style is CallStyle.MISTRAL else ""
        assert calls(split(begun + rest, style)) == [("stop", {})]
        assert begun.startswith(style.beginning(""))


def test_profiles_name_the_styles() -> None:
    folder = Path(next(iter(demo_model.__path__)))
    assert {style.value for style in CallStyle} == set(CALL_STYLES)
    assert Prompter.load(folder).call_style is CallStyle.HERMES
    assert Prompter.load(folder, "mistral").call_style is CallStyle.MISTRAL
    assert Prompter.load(folder, "of a newer version").call_style is CallStyle.HERMES
