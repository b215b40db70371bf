"""Requests that are a lot of work for whoever reads them, and well-formed, or nearly."""

import json
from typing import Any

MODEL = "cortex-demo"
TEXT = "/v1/chat/completions"


def _chat(**fields: Any) -> dict[str, Any]:
    few = [{"role": "user", "content": "hi"}]
    return {"model": MODEL, "messages": few, "max_tokens": 2, **fields}


def _tools(count: int, words: int = 40, properties: int = 1) -> list[dict[str, Any]]:
    schema = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "enum": ["a", "b"]} for n in range(properties)},
    }
    return [
        {
            "type": "function",
            "function": {"name": f"f{n}", "description": "word " * words, "parameters": schema},
        }
        for n in range(count)
    ]


def _turns(count: int, text: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n in range(count)]


def _parts(count: int, text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for _ in range(count)]


def _calls(count: int) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a":"' + "x" * 80 + '"}'}}
    answered = [{"role": "tool", "tool_call_id": f"c{n}", "content": "ok"} for n in range(count)]
    calls = [{"id": f"c{n}", **call} for n in range(count)]
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": calls},
        *answered,
    ]


def _called(arguments: str, times: int) -> list[dict[str, Any]]:
    """A conversation in which a tool was called so many times at once."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call] * times},
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
    ]


LONG = "hello world " * 640_000
PAGE = "hello world, how are you? " * 40_000
NESTED = '{"a":' * 900 + "1" + "}" * 900
Requests = dict[str, tuple[str, Any]]


def of_the_report() -> Requests:
    """Those that held others up."""
    return {
        "180,000 messages": (TEXT, _chat(messages=_turns(180_000, "hi"))),
        "60,000 items to shorten": (
            "/v1/responses",
            {"model": MODEL, "input": _turns(60_000, "hello, there"), "truncation": "auto"},
        ),
        "tokens of 1.2 MB as strings": (
            "/tokenize",
            {"model": MODEL, "prompt": "hello wo " * 133_000, "return_token_strs": True},
        ),
        "9,000 tools": (TEXT, _chat(tools=_tools(9_000))),
        "a prompt of 7.6 MB": (
            "/v1/completions",
            {"model": MODEL, "prompt": LONG, "max_tokens": 2},
        ),
        "a message of 7.6 MB": (TEXT, _chat(messages=_turns(1, LONG))),
        "tokens of 7.6 MB": ("/tokenize", {"model": MODEL, "prompt": LONG}),
        "60,000 parts": (TEXT, _chat(messages=[{"role": "user", "content": _parts(60_000, "a")}])),
        "20,000 stop texts": (TEXT, _chat(stop=["a"] * 20_000)),
        "a bias for every token": (TEXT, _chat(logit_bias={str(n): 1 for n in range(50_000)})),
        "a million tokens": ("/v1/completions", {"model": MODEL, "prompt": [5] * 1_000_000}),
        "128 prompts of 30 kB": (
            "/v1/completions",
            {"model": MODEL, "prompt": [LONG[:30_000]] * 128},
        ),
    }


def texts() -> Requests:
    """Long texts of all kinds."""
    return {
        "15,000 messages": (TEXT, _chat(messages=_turns(15_000, "hi"))),
        "10,000 messages": (TEXT, _chat(messages=_turns(10_000, "hi"))),
        "500,000 tokens": ("/v1/completions", {"model": MODEL, "prompt": [5] * 500_000}),
        "10,000 messages to shorten": (
            "/v1/responses",
            {"model": MODEL, "input": _turns(10_000, "hello, there"), "truncation": "auto"},
        ),
        "15,000 messages to shorten": (
            "/v1/responses",
            {"model": MODEL, "input": _turns(15_000, "hello, there"), "truncation": "auto"},
        ),
        "four pages to shorten": (
            "/v1/responses",
            {"model": MODEL, "input": _turns(5, PAGE), "truncation": "auto"},
        ),
        "a page of one word": (TEXT, _chat(messages=_turns(1, "a" * 2_000_000))),
        "a page of spaces": (TEXT, _chat(messages=_turns(1, " " * 2_000_000))),
        "a page of new lines": (TEXT, _chat(messages=_turns(1, "\n" * 2_000_000))),
        "a page of emoji": (TEXT, _chat(messages=_turns(1, "🙂" * 500_000))),
        "a page of CJK": (TEXT, _chat(messages=_turns(1, "漢字" * 400_000))),
        "a page of escapes": (TEXT, _chat(messages=_turns(1, "\u0001" * 400_000))),
        "a page of combining marks": (TEXT, _chat(messages=_turns(1, "a\u0301\u0327" * 300_000))),
        "a page of special tokens": (TEXT, _chat(messages=_turns(1, "<|im_end|>" * 100_000))),
    }


def structures() -> Requests:
    """Many values, and deep ones."""
    return {
        "thoughts of 4 MB": (
            TEXT,
            _chat(messages=[*_turns(2, "hi"), {"role": "user", "content": "<think>" + PAGE * 4}]),
        ),
        "5,000 calls": (TEXT, _chat(messages=_calls(5_000))),
        "arguments of 5 MB": (TEXT, _chat(messages=_called(json.dumps([1] * 1_000_000), 1))),
        "2,000 tools": (TEXT, _chat(tools=_tools(2_000))),
        "tools with large schemas": (TEXT, _chat(tools=_tools(200, properties=300))),
        "deep arguments": (TEXT, _chat(messages=_called(NESTED, 500))),
        "Anthropic blocks": (
            "/v1/messages",
            {
                "model": MODEL,
                "max_tokens": 2,
                "system": _parts(8_000, "be brief"),
                "messages": [{"role": "user", "content": _parts(8_000, "hello")}],
            },
        ),
        "counting 6 MB": (
            "/v1/messages/count_tokens",
            {"model": MODEL, "messages": [{"role": "user", "content": PAGE * 6}]},
        ),
        "applying a template to 6 MB": ("/apply-template", _chat(messages=_turns(6, PAGE))),
        "128 choices of a page": (TEXT, _chat(messages=_turns(1, LONG[:8_000]), n=128)),
        "128 choices of 7 MB": (TEXT, _chat(messages=_turns(1, LONG[:7_000_000]), n=128)),
        "30 choices of a megabyte": (TEXT, _chat(messages=_turns(1, LONG[:1_000_000]), n=30)),
        "a role of 7 MB": (TEXT, _chat(messages=[{"role": PAGE * 7, "content": "hi"}])),
        "a role that looks like paths": (
            TEXT,
            _chat(messages=[{"role": " - at `$" * 500_000 + "\n", "content": "hi"}]),
        ),
        "a long field of many values": (TEXT, _chat(**{"k" * 70_000: list(range(60_000))})),
        "texts of 500,000 tokens": ("/detokenize", {"model": MODEL, "tokens": [5] * 500_000}),
        "texts of a million tokens": ("/detokenize", {"model": MODEL, "tokens": [5] * 1_000_000}),
    }


def requests() -> dict[str, tuple[str, bytes]]:
    """Path and body of each, by what it is."""
    made = {**of_the_report(), **texts(), **structures()}
    return {name: (path, json.dumps(body).encode()) for name, (path, body) in made.items()}
