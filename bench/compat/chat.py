"""Expectations of OpenAI's Chat Completions."""

import json

from bench.compat.world import CHAT_TOOLS, OUTPUTS, World, expects, turn
from tests.support import grammar

CHAT = "/v1/chat/completions"


@expects("chat: text, thinking and calls, whole")
async def _(world: World) -> None:
    said = grammar.chat_whole(await world.answer(CHAT, messages=turn("call"), tools=CHAT_TOOLS))
    assert (said.reasoning, said.text.strip(), said.finish) == ("hm", "Look.", "calls")
    assert said.calls == (("f", '{"x": 1}'),)


def chat_stream(body: str) -> tuple[str, str, list[list[str]], str]:
    """Text, thinking, calls and finish, as the least strict client adds them up."""
    found = [event.data for event in grammar.events(body)]
    assert found[-1] == "[DONE]"
    text = thinking = finish = ""
    calls: dict[int, list[str]] = {}
    for chunk in map(json.loads, found[:-1]):
        for one in chunk["choices"]:
            delta = one["delta"]
            text += delta.get("content") or ""
            thinking += delta.get("reasoning_content") or ""
            for piece in delta.get("tool_calls") or ():
                call = calls.setdefault(piece["index"], ["", ""])
                call[0] += piece["function"].get("name") or ""
                call[1] += piece["function"].get("arguments") or ""
            finish = one.get("finish_reason") or finish
    return text, thinking, [calls[index] for index in sorted(calls)], finish


@expects("chat: the same as a stream")
async def _(world: World) -> None:
    body = await world.stream(CHAT, messages=turn("call"), tools=CHAT_TOOLS)
    text, thinking, calls, finish = chat_stream(body)
    assert (text.strip(), thinking, finish) == ("Look.", "hm", "tool_calls")
    assert calls == [["f", '{"x": 1}']]


@expects("chat: usage comes last when it is asked for")
async def _(world: World) -> None:
    options = {"include_usage": True}
    body = await world.stream(CHAT, messages=turn("plain"), stream_options=options)
    chunks = [json.loads(e.data) for e in grammar.events(body) if e.data != "[DONE]"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] > 0


@expects("chat: no chunk with usage unless it is asked for")
async def _(world: World) -> None:
    body = await world.stream(CHAT, messages=turn("plain"))
    chunks = [json.loads(e.data) for e in grammar.events(body) if e.data != "[DONE]"]
    assert all(chunk["choices"] for chunk in chunks)


@expects("chat: a call without arguments has {}")
async def _(world: World) -> None:
    said = grammar.chat_whole(
        await world.answer(CHAT, messages=turn("empty call"), tools=CHAT_TOOLS)
    )
    assert said.calls == (("f", "{}"),)


@expects("chat: n = 2")
async def _(world: World) -> None:
    found = await world.answer(CHAT, messages=turn("plain"), n=2)
    assert [choice["index"] for choice in found["choices"]] == [0, 1]


@expects("chat: unicode survives every chunk")
async def _(world: World) -> None:
    body = await world.stream(CHAT, messages=turn("unicode"))
    assert chat_stream(body)[0] == OUTPUTS["unicode"]


@expects("chat: too long a prompt is context_length_exceeded")
async def _(world: World) -> None:
    long = [{"role": "user", "content": "word " * 30_000}]
    for stream in (False, True):
        found = await world.post(CHAT, messages=long, stream=stream)
        assert found.status_code == 400, found.status_code
        assert found.json()["error"]["code"] == "context_length_exceeded", found.text[:200]


@expects("chat: an unknown model is a 404 with model_not_found")
async def _(world: World) -> None:
    found = await world.post(CHAT, messages=turn("plain"), model="nope")
    assert (found.status_code, found.json()["error"]["code"]) == (404, "model_not_found")


@expects("chat: a wrong type is a 400 that names the field")
async def _(world: World) -> None:
    found = await world.post(CHAT, messages=turn("plain"), temperature="hot")
    assert found.status_code == 400, found.status_code
    assert found.json()["error"]["param"] == "temperature", found.text[:200]


@expects("chat: tools [], tool_choice null, content null")
async def _(world: World) -> None:
    turns = [*turn("plain"), {"role": "assistant", "content": None}, *turn("plain")]
    await world.answer(CHAT, messages=turns, tools=[], tool_choice=None)
