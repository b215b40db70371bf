"""Whatever text stands in whatever place of a body, it is read or refused at once, in few words."""

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cortex.api.dialects.registry import DIALECTS
from cortex.api.error_responses import envelope
from protocol.errors import FleetError

CHARACTERS = 300_000
CPU_SECONDS = 0.1
MAX_ANSWER = 10_000
TEXTS = {
    "plain": "x",
    "paths": " - at `$",
    "paths and lines": " - at `$\n",
    "fields": "missing required field `",
    "quotes": "'\"`",
    "digits": "9",
    "base64": "data:image/png;base64,",
    "links": "http://a:b@c/",
    "blanks": " \t\r\n",
    "wide": "\U0001f600\u0000",
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["b"]}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "b"}}
RESULT = {"type": "tool_result", "tool_use_id": "c", "content": "r"}
PARTS = [{"type": "text", "text": "hi"}]
SAMPLING = {"model": "m", "temperature": 1, "top_p": 0.5, "stream": True, "user": "u"}
BODIES: dict[str, dict[str, Any]] = {
    "openai_chat": {
        **SAMPLING,
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": PARTS, "name": "n"},
            {"role": "assistant", "content": "a", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stop": ["s"],
        "seed": 1,
        "n": 1,
        "logit_bias": {"1": 2},
        "reasoning_effort": "low",
        "service_tier": "auto",
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"k": "v"},
    },
    "openai_completions": {**SAMPLING, "prompt": ["p"], "suffix": None, "stop": "s", "n": 1},
    "openai_responses": {
        **SAMPLING,
        "instructions": "i",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "t"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "o"},
        ],
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": "auto",
        "truncation": "auto",
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}},
        "metadata": {"k": "v"},
    },
    "anthropic_messages": {
        **SAMPLING,
        "max_tokens": 5,
        "system": PARTS,
        "messages": [
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": [USE]},
            {"role": "user", "content": [RESULT]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f"},
        "stop_sequences": ["s"],
        "thinking": {"type": "disabled"},
        "metadata": {"user_id": "u"},
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside *value*, and of every key (a list of one)."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
        yield from ((*path, [key]) for key in value)
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(body: dict[str, Any], path: tuple[Any, ...], text: str) -> bytes:
    """*body* with *text* in one place."""
    changed = copy.deepcopy(body)
    *outer, last = path
    at: Any = changed
    for key in outer:
        at = at[key]
    if isinstance(last, list):
        at[text] = at.pop(last[0])
    else:
        at[last] = text
    return json.dumps(changed, ensure_ascii=False).encode()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_long_texts_anywhere(dialect: str, text: str) -> None:
    decode, body = DIALECTS[dialect].decode, BODIES[dialect]
    decode(json.dumps(body).encode())
    long = TEXTS[text] * (CHARACTERS // len(TEXTS[text])) + "\n"
    for path in places(body):
        data = changed(body, path, long)
        began, said = time.process_time(), b""
        try:
            decode(data)
        except FleetError as error:
            said = envelope(error.error, DIALECTS[dialect].style)
        assert time.process_time() - began < CPU_SECONDS, path
        assert len(said) < MAX_ANSWER, path
