"""Expectations of OpenAI's Responses, most of them Codex', and of Completions."""

import json
from typing import Any

from bench.compat.world import OUTPUTS, RESPONSE_TOOLS, World, expects, turn
from tests.support import grammar

RESPONSES = "/v1/responses"


@expects("responses: text, thinking and calls, whole")
async def _(world: World) -> None:
    found = await world.answer(RESPONSES, input=turn("call"), tools=RESPONSE_TOOLS)
    said = grammar.response_whole(found)
    assert (said.reasoning, said.text.strip()) == ("hm", "Look.")
    assert said.calls == (("f", '{"x": 1}'),)


@expects("responses: the same as a stream, one response from created to completed")
async def _(world: World) -> None:
    body = await world.stream(RESPONSES, input=turn("call"), tools=RESPONSE_TOOLS)
    told = [json.loads(e.data) for e in grammar.events(body) if e.data != "[DONE]"]
    kinds = [one["type"] for one in told]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert told[0]["response"]["id"] == told[-1]["response"]["id"]
    calls = (i for i in told[-1]["response"]["output"] if i["type"] == "function_call")
    assert [(call["name"], call["arguments"]) for call in calls] == [("f", '{"x": 1}')]
    pieces = (one for one in told if one["type"] == "response.function_call_arguments.delta")
    assert "".join(one["delta"] for one in pieces) == '{"x": 1}'


@expects("responses: an answer that is cut off is incomplete")
async def _(world: World) -> None:
    found = await world.answer(RESPONSES, input=turn("long"), max_output_tokens=20)
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}


@expects("responses: tools of other types are skipped")
async def _(world: World) -> None:
    others = [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}]
    await world.answer(RESPONSES, input=turn("plain"), tools=[*RESPONSE_TOOLS, *others])


@expects("completions: text, whole and as a stream")
async def _(world: World) -> None:
    prompt = "scenario: plain."
    asked: dict[str, Any] = {"prompt": prompt, "max_tokens": 100}
    whole = await world.answer("/v1/completions", **asked)
    assert whole["choices"][0]["text"] == OUTPUTS["plain"]
    body = await world.stream("/v1/completions", **asked)
    chunks = [json.loads(e.data) for e in grammar.events(body) if e.data != "[DONE]"]
    texts = (choice.get("text", "") for chunk in chunks for choice in chunk["choices"])
    assert "".join(texts) == OUTPUTS["plain"]


@expects("completions: several prompts")
async def _(world: World) -> None:
    prompts = ["scenario: plain.", "scenario: unicode."]
    found = await world.answer("/v1/completions", prompt=prompts, max_tokens=100)
    texts = [choice["text"] for choice in found["choices"]]
    assert texts == [OUTPUTS["plain"], OUTPUTS["unicode"]]
