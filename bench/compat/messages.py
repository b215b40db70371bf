"""Expectations of Anthropic's Messages, most of them Claude Code's."""

import json
import re

from bench.compat.world import TOOLS, World, expects, message, turn
from tests.support import grammar

MESSAGES = "/v1/messages"
THINKS = {"thinking": {"type": "enabled", "budget_tokens": 1024}}


def message_blocks(body: str) -> list[tuple[str, str]]:
    """The kinds and contents of a stream's blocks, which do not overlap."""
    blocks: list[tuple[str, str]] = []
    is_open = False
    for event in grammar.events(body):
        told = json.loads(event.data)
        match told["type"]:
            case "content_block_start":
                assert not is_open
                assert told["index"] == len(blocks)
                blocks.append((told["content_block"]["type"], ""))
                is_open = True
            case "content_block_delta":
                assert is_open
                delta, (kind, text) = told["delta"], blocks[-1]
                fits = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}[kind]
                if delta["type"] != "signature_delta":
                    blocks[-1] = (kind, text + delta[fits])
            case "content_block_stop":
                is_open = False
    return blocks


@expects("messages: text, thinking and calls, whole")
async def _(world: World) -> None:
    found = await world.answer(MESSAGES, **message("call", tools=TOOLS, **THINKS))
    thinking, text, call = found["content"]
    assert (thinking["thinking"], text["text"].strip(), call["input"]) == ("hm", "Look.", {"x": 1})
    assert found["stop_reason"] == "tool_use"


@expects("messages: the same as a stream: blocks in order, each delta fits its block")
async def _(world: World) -> None:
    body = await world.stream(MESSAGES, **message("call", tools=TOOLS, **THINKS))
    thinking, (_, text), call = message_blocks(body)
    assert (thinking, text.strip()) == (("thinking", "hm"), "Look.")
    assert (call[0], json.loads(call[1])) == ("tool_use", {"x": 1})


@expects("messages: thinking has a signature")
async def _(world: World) -> None:
    found = await world.answer(MESSAGES, **message("thinking", **THINKS))
    assert found["content"][0]["signature"]


@expects("messages: message_start tells the prompt's tokens")
async def _(world: World) -> None:
    body = await world.stream(MESSAGES, **message("plain"))
    first = next(grammar.events(body))
    assert json.loads(first.data)["message"]["usage"]["input_tokens"] > 0


@expects("messages: adaptive thinking")
async def _(world: World) -> None:
    adaptive = await world.answer(MESSAGES, **message("thinking", thinking={"type": "adaptive"}))
    assert adaptive["content"][0]["type"] == "thinking"


@expects("messages: the stop text is named")
async def _(world: World) -> None:
    found = await world.answer(MESSAGES, **message("stop", stop_sequences=["END"]))
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")


@expects("messages: a turn of the system in the middle is taken")
async def _(world: World) -> None:
    turns = [*turn("plain"), {"role": "system", "content": "9 left"}]
    await world.answer(MESSAGES, messages=turns, max_tokens=5)


@expects("messages: … and the next prompt begins with this one")
async def _(world: World) -> None:
    first = [*turn("plain"), {"role": "system", "content": "9 left"}]
    more = [{"role": "assistant", "content": "Hello there."}, *turn("plain")]
    later = [*first, *more, {"role": "system", "content": "8 left"}]
    one = await world.prompt(MESSAGES, messages=first, max_tokens=5, system="Be brief.")
    two = await world.prompt(MESSAGES, messages=later, max_tokens=5, system="Be brief.")
    shared = one.rpartition("<|im_start|>assistant")[0]
    assert two.startswith(shared), "the prefix cache is lost"


@expects("messages: the billing header does not reach the model")
async def _(world: World) -> None:
    system = [{"type": "text", "text": "x-anthropic-billing-header: cch=1"}]
    found = await world.prompt(MESSAGES, **message("plain", system=system))
    assert "billing" not in found


@expects("messages: thinking goes back as thinking, not as text")
async def _(world: World) -> None:
    answer = [
        {"type": "thinking", "thinking": "secret", "signature": "x"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
    ]
    result = [{"type": "tool_result", "tool_use_id": "t1", "content": "done"}]
    turns = [
        *turn("plain"),
        {"role": "assistant", "content": answer},
        {"role": "user", "content": result},
    ]
    found = await world.prompt(MESSAGES, messages=turns, max_tokens=5, tools=TOOLS, **THINKS)
    assert "secret" not in re.sub(r"<think>.*?</think>", "", found, flags=re.DOTALL)


@expects("messages: too long a prompt is told in the words that Claude Code looks for")
async def _(world: World) -> None:
    long = [{"role": "user", "content": "word " * 30_000}]
    found = await world.post(MESSAGES, messages=long, max_tokens=5)
    assert found.status_code == 400, found.status_code
    words = r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)"
    assert re.search(words, found.json()["error"]["message"]), found.text[:200]


@expects("messages: an unknown model is a not_found_error")
async def _(world: World) -> None:
    found = await world.post(MESSAGES, **message("plain"), model="nope")
    assert (found.status_code, found.json()["error"]["type"]) == (404, "not_found_error")


@expects("messages: count_tokens is what the message will say")
async def _(world: World) -> None:
    counted = await world.answer(
        "/v1/messages/count_tokens", messages=turn("plain"), system="Be brief.", tools=TOOLS
    )
    found = await world.answer(MESSAGES, **message("plain", system="Be brief.", tools=TOOLS))
    assert counted["input_tokens"] == found["usage"]["input_tokens"]


@expects("messages: an assistant's turn at the end is continued")
async def _(world: World) -> None:
    turns = [*turn("plain"), {"role": "assistant", "content": "Hello"}]
    found = await world.prompt(MESSAGES, messages=turns, max_tokens=5)
    assert found.endswith("Hello"), found[-60:]


@expects("messages: a tool of Anthropic's servers is skipped")
async def _(world: World) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    await world.answer(MESSAGES, **message("plain", tools=[*TOOLS, search]))


@expects("messages: while the prompt is read, bytes come every 5 s")
async def _(world: World) -> None:
    assert max(await world.pauses(MESSAGES, **message("slow"))) <= 5.0
