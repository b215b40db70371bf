"""The splitter's rules one by one; that chunks do not matter is in test_splitter_properties."""

import json
from collections.abc import Callable

import pytest

from neuron.text.answer_splitter import AnswerSplitter
from neuron.text.tool_calls.call_reader import HELD_CHARACTERS
from neuron.text.tool_calls.call_style import CallStyle
from neuron.text.tool_calls.xml_calls import Schema
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart

TOOLS = {"a": Schema(), "b": Schema()}
A = '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>'
B = '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'


def call(index: int, name: str, arguments: str = "{}") -> ToolCallPart:
    return ToolCallPart(index, f"call_{index}", name, arguments)


CALL_A = call(0, "a", '{"x": 1}')


def ids() -> Callable[[], str]:
    numbers = iter(range(1000))
    return lambda: f"call_{next(numbers)}"


def new_splitter(
    *, thinking: bool = False, tools: bool = True, style: CallStyle = CallStyle.HERMES
) -> AnswerSplitter:
    return AnswerSplitter(
        starts_in_thinking=thinking,
        tools=TOOLS if tools else None,
        new_call_id=ids(),
        style=style,
    )


def call_with_more(call: ToolCallPart, more: str) -> ToolCallPart:
    return ToolCallPart(call.index, call.id, call.name, call.arguments + more)


def split(text: str, *, thinking: bool = False, tools: bool = True) -> tuple[AnswerPart, ...]:
    splitter = new_splitter(thinking=thinking, tools=tools)
    merged: list[AnswerPart] = []
    for part in (*splitter.feed(text), *splitter.finish()):
        match part, merged[-1] if merged else None:
            case Text(new), Text(old):
                merged[-1] = Text(old + new)
            case Reasoning(new), Reasoning(old):
                merged[-1] = Reasoning(old + new)
            case ToolCallPart(name="", arguments=more), ToolCallPart() as call:
                merged[-1] = call_with_more(call, more)
            case _:
                merged.append(part)
    assert splitter.calls == sum(isinstance(part, ToolCallPart) for part in merged)
    return tuple(merged)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("Hi <b>there</b> \n", (Text("Hi <b>there</b> \n"),)),
        ("\n ", (Text("\n "),)),
        ("<think>\nhm\n</think>\n\nHi", (Reasoning("hm"), Text("Hi"))),
        (" \n<think>hm</think>Hi", (Reasoning("hm"), Text("Hi"))),
        ("<think>\n\n</think>\n\nHi", (Text("Hi"),)),
        ("<think>\n</think>\n", ()),
        ("<think>\n\n\nhm\n\n\n</think>x", (Reasoning("\n\nhm\n\n"), Text("x"))),
        ("<think>a</think>\n</think>\n\nb", (Reasoning("a"), Text("b"))),
        ("<think>a</think>b</think> c", (Reasoning("a"), Text("b c"))),
        ("<think>a</think> b <think> c", (Reasoning("a"), Text("b <think> c"))),
        ("\n</think>\n\nHi", (Text("Hi"),)),
        ("Say </think> and <think>.", (Text("Say </think> and <think>."),)),
        ("<think>cut off\n", (Reasoning("cut off\n"),)),
        ("<think>cut off</thi", (Reasoning("cut off</thi"),)),
        ("<think>", ()),
        ("<thi", (Text("<thi"),)),
        (" <thi nk>", (Text(" <thi nk>"),)),
    ],
)
def test_thinking(text: str, parts: tuple[AnswerPart, ...]) -> None:
    assert split(text) == parts
    assert split(text, tools=False) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hm\n</think>\n\nHi", (Reasoning("hm"), Text("Hi"))),
        ("\nhm</think>Hi", (Reasoning("hm"), Text("Hi"))),
        ("\n<think>\nhm\n</think>\nHi", (Reasoning("hm"), Text("Hi"))),
        ("<think> is a tag</think>Hi", (Reasoning(" is a tag"), Text("Hi"))),
        ("a <think> b", (Reasoning("a <think> b"),)),
        ("all of it", (Reasoning("all of it"),)),
        ("\n<thi", (Reasoning("<thi"),)),
        ("", ()),
        ("</think>", ()),
        ("\n\n</think>\n", ()),
    ],
)
def test_thinking_that_the_prompt_opened(text: str, parts: tuple[AnswerPart, ...]) -> None:
    assert split(text, thinking=True) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (A, (CALL_A,)),
        (f"I look.\n{A}\n", (Text("I look.\n"), CALL_A)),
        (f"\n{A} \n\n{B}\n\n", (CALL_A, call(1, "b"))),
        (A + B, (CALL_A, call(1, "b"))),
        (f"{A}\n\nDone. ", (CALL_A, Text("\n\nDone. "))),
        (f"<think>\nhm\n</think>\n\n{A}", (Reasoning("hm"), CALL_A)),
        (f"<think>hm\n{A}\n</think>\n\nHi", (Reasoning("hm"), CALL_A, Text("Hi"))),
        (A.removesuffix("</tool_call>"), (CALL_A,)),
        (A.removesuffix("_call>"), (CALL_A,)),
        (A.removesuffix("</tool_call>") + B, (CALL_A, call(1, "b"))),
    ],
)
def test_calls(text: str, parts: tuple[AnswerPart, ...]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ('{"arguments": {"x": 1}, "name": "a"}', [("a", '{"x": 1}')]),
        ('{"name": "a", "parameters": {"x": 1}}', [("a", '{"x": 1}')]),
        ('{"name": "a", "arguments": {"x": 1}, "parameters": {}}', [("a", '{"x": 1}')]),
        ('{"name": "a"}', [("a", "{}")]),
        ('{"name": "a", "arguments": null}', [("a", "{}")]),
        ('{"name": "a", "arguments": ""}', [("a", "{}")]),
        (r'{"name": "a", "arguments": "{\"x\": 1}"}', [("a", '{"x": 1}')]),
        (
            '{"name":"a","arguments":{ "z":1.50, "a" :[ 1e2,"\\u00fc\\n" ] ,"z":{"}]":"{"} }}',
            [("a", '{ "z":1.50, "a" :[ 1e2,"\\u00fc\\n" ] ,"z":{"}]":"{"} }')],
        ),
        (
            '{"name": "a", "arguments": {"text": "write </tool_call> and <tool_call>{\\"\\\\"}}',
            [("a", '{"text": "write </tool_call> and <tool_call>{\\"\\\\"}')],
        ),
        ('[{"name": "a"}, {"name": "b", "arguments": {"x": 1}}]', [("a", "{}"), ("b", '{"x": 1}')]),
        ('{"id": 3, "type": "function", "name": "\\u0061"}', [("a", "{}")]),
    ],
)
def test_forms_of_calls(body: str, calls: list[tuple[str, str]]) -> None:
    expected = tuple(call(n, name, arguments) for n, (name, arguments) in enumerate(calls))
    assert split(f"<tool_call>{body}</tool_call>") == expected
    assert split(f"<tool_call>\n {body} \n") == expected


@pytest.mark.parametrize(
    ("arguments", "mended"),
    [
        ('{"x": 1,}', '{"x": 1}'),
        ('{"x": [1, 2 , ], }', '{"x": [1, 2 ]}'),
        ('{"x": "line\nbreak\t"}', '{"x": "line\\nbreak\\t"}'),
        ('{"x": "\\q \\u00zz it\\\'s"}', '{"x": "\\\\q \\\\u00zz it\'s"}'),
        ('{"x": True, "y": None, "z": False}', '{"x": true, "y": null, "z": false}'),
    ],
)
def test_what_models_often_get_wrong_is_mended(arguments: str, mended: str) -> None:
    text = f'<tool_call>{{"name": "a", "arguments": {arguments}}}</tool_call>'
    assert split(text) == (call(0, "a", mended),)
    assert json.loads(mended)


MALFORMED = [
    "",
    "not JSON",
    "{}",
    "[]",
    '{"name": ""}',
    '{"name": 3}',
    '{"arguments": {}}',
    '{"name": "a", "arguments": [1]}',
    '{"name": "a", "arguments": "text"}',
    '{"name": "a", "arguments": 7}',
    "{'name': 'a'}",
    '{"name": "a", "arguments": {"x": 1}',
    '{"name": "a", "arguments": {"x": 1}}}',
    '{"name": "a", "arguments": {"x": "1}}\n',
    '{"name": "a"} {"name": "b"}',
    '[{"name": "a"}, 3]',
    '{"name": "a"]',
    '{"name": "a", "arguments": ' + "[" * 9999 + "]" * 9999 + "}",
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:40])
def test_malformed_calls_come_back_as_text(body: str) -> None:
    text = f"So: <tool_call>\n{body}\n</tool_call> Hm."
    assert split(text) == (Text(text),)
    assert split(f" {text}\n{A}\n") == (Text(f" {text}\n"), CALL_A)
    assert split(f"{A}\n<tool_call>{body}</tool_call>") == (
        CALL_A,
        Text(f"\n<tool_call>{body}</tool_call>"),
    )


@pytest.mark.parametrize("cut", range(1, len(A) - len("\n</tool_call>")))
def test_a_call_that_is_cut_off_comes_back_as_text(cut: int) -> None:
    assert split("\n" + A[:cut]) == (Text("\n" + A[:cut]),)


def test_a_malformed_call_ends_thinking_but_the_mere_tag_does_not() -> None:
    assert split("hm\n<tool_call>{oops}</tool_call>\n", thinking=True) == (
        Reasoning("hm"),
        Text("<tool_call>{oops}</tool_call>\n"),
    )
    assert split("I could use\n<tool_call>\n</think>\n\nHi", thinking=True) == (
        Reasoning("I could use\n<tool_call>"),
        Text("Hi"),
    )
    assert split("the tag <tool_call>", thinking=True) == (Reasoning("the tag <tool_call>"),)


def test_tags_are_text_when_no_tools_were_offered() -> None:
    assert split(f"Like {A}\n", tools=False) == (Text(f"Like {A}\n"),)
    assert split(f"hm {A}</think>{B}", thinking=True, tools=False) == (
        Reasoning(f"hm {A}"),
        Text(B),
    )


def test_nothing_is_held_back_without_need() -> None:
    splitter = new_splitter()
    fed = ["<", "think", ">\n", "a", "\n", "b <", "/th", "is", "</think>", "\n", "c", "<tool", "s>"]
    given = [splitter.feed(piece) for piece in fed]
    assert given == [
        (),
        (),
        (),
        (Reasoning("a"),),
        (),
        (Reasoning("\nb "),),
        (),
        (Reasoning("</this"),),
        (),
        (),
        (Text("c"),),
        (),
        (Text("<tools>"),),
    ]


def test_a_call_comes_out_when_its_tag_closes() -> None:
    splitter = new_splitter()
    assert splitter.feed(A[:-1]) == ()
    assert splitter.calls == 0
    assert splitter.feed(">") == (CALL_A,)
    assert splitter.calls == 1


def test_the_state_tells_thinking_from_content() -> None:
    splitter = new_splitter()
    states = []
    for piece in ["<think>", "hm", "</think>", "Hi", A]:
        splitter.feed(piece)
        states.append(splitter.in_reasoning)
    assert states == [True, True, False, False, False]


def test_a_long_call_streams_in_linear_time() -> None:
    splitter = new_splitter()
    start = '{"name": "a", "arguments": {"x": "'
    assert splitter.feed(f"<tool_call>{start}{'x' * HELD_CHARACTERS}") == (
        call(0, "a", f'{{"x": "{"x" * HELD_CHARACTERS}'),
    )
    for _ in range(100_000):
        assert splitter.feed("some text, ") == (ToolCallPart(0, arguments="some text, "),)
    assert splitter.ended_calls == 0
    assert splitter.feed('"}}</tool_call>') == (ToolCallPart(0, arguments='"}'),)
    assert splitter.ended_calls == 1


def test_what_breaks_after_it_has_begun_comes_out_as_it_was_written() -> None:
    long = "x" * HELD_CHARACTERS
    text = f'<tool_call>{{"name": "a", "arguments": {{"x": "{long}" oops}}}}</tool_call>\nHm. {A}'
    assert split(text) == (
        call(0, "a", f'{{"x": "{long}" oops}}}}'),
        Text("\nHm. "),
        call(1, "a", '{"x": 1}'),
    )
    assert split(text[: text.index("oops")]) == (call(0, "a", f'{{"x": "{long}" '),)


def test_a_missing_quote_ends_with_the_call() -> None:
    text = f'<tool_call>{{"name": "a", "arguments": {{"x": "one\ntwo}}}}</tool_call>{A}'
    assert split(text) == (Text(text.removesuffix(A)), CALL_A)
