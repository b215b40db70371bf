"""Parameters that change an answer, each seen to do so with a real engine and the demo model."""

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.fleet import MODEL, TestFleet, sse_events
from tests.support.nats import running_nats
from tests.support.watched import WatchedEngines, real_fleet

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("get_weather", "get_time")
]
QUESTION = "What is 17 + 25?"


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("parameters")]


@pytest_asyncio.fixture(name="fleet", scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestFleet]:
    """One for all: each engine takes seconds to start."""
    with running_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with real_fleet(nats, WatchedEngines()) as fleet:
            yield fleet


async def choice(fleet: TestFleet, text: str = QUESTION, **more: Any) -> dict[str, Any]:
    """The only choice of a greedy answer without thinking."""
    options = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    answer = await fleet.chat(text, **(options | more))
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["choices"]
    assert isinstance(found, dict)
    return found


async def says(fleet: TestFleet, text: str = QUESTION, **more: Any) -> str:
    return str((await choice(fleet, text, **more))["message"]["content"])


async def post(fleet: TestFleet, path: str, **body: Any) -> dict[str, Any]:
    answer = await fleet.client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def tokens(fleet: TestFleet, text: str) -> list[int]:
    found: list[int] = (await post(fleet, "/tokenize", prompt=text))["tokens"]
    return found


async def test_logprobs_are_those_of_the_content(fleet: TestFleet) -> None:
    found = await choice(fleet, logprobs=True, top_logprobs=3)
    content = found["message"]["content"]
    entries = found["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == content
    assert bytes(b for entry in entries for b in entry["bytes"]).decode() == content
    for entry in entries:
        assert -9999 <= entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        best = entry["top_logprobs"][0]
        assert best["token"] == entry["token"], "greedy takes the best"
        assert math.isclose(best["logprob"], entry["logprob"], abs_tol=1e-6)
    assert (await choice(fleet))["logprobs"] is None
    streamed = await fleet.stream_events(QUESTION, **_plain(), logprobs=True, top_logprobs=3)
    pieces = [e["choices"][0]["logprobs"] for e in streamed if e and e["choices"][0]["logprobs"]]
    assert [entry for piece in pieces for entry in piece["content"]] == entries


def _plain() -> dict[str, Any]:
    return {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}


async def test_logprobs_leave_thinking_and_tags_out(fleet: TestFleet) -> None:
    found = await choice(fleet, logprobs=True, chat_template_kwargs={"enable_thinking": True})
    assert found["message"]["reasoning_content"]
    entries = found["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == found["message"]["content"]


async def test_biases_and_penalties(fleet: TestFleet) -> None:
    usual = await says(fleet)
    assert "42" in usual
    first, *_ = (await choice(fleet, logprobs=True))["logprobs"]["content"]
    (token,) = await tokens(fleet, first["token"])
    other = await says(fleet, logit_bias={str(token): -100})
    assert not other.startswith(first["token"])
    forced = await says(fleet, logit_bias={str(token): 100}, max_tokens=5)
    assert forced == first["token"] * 5
    only = await says(fleet, allowed_token_ids=[token], max_tokens=4)
    assert only == first["token"] * 4
    # Of two tokens the likelier one comes, until it has been punished often enough.
    (rival,) = await tokens(fleet, "z")
    pair: dict[str, Any] = {"allowed_token_ids": [token, rival], "max_tokens": 60}
    pair |= {"logit_bias": {str(token): 10}, "ignore_eos": True}
    assert await says(fleet, **pair) == first["token"] * 60
    assert "z" in await says(fleet, **pair, frequency_penalty=2)
    repeated = await says(fleet, "Repeat: red red red red", repetition_penalty=10, max_tokens=12)
    assert repeated != await says(fleet, "Repeat: red red red red", max_tokens=12)


async def test_ends(fleet: TestFleet) -> None:
    usual = await says(fleet)
    stopped = await choice(fleet, stop=["42"])
    assert stopped["message"]["content"] == usual.partition("42")[0]
    assert stopped["finish_reason"] == "stop"
    with_it = await choice(fleet, stop=["42"], include_stop_str_in_output=True)
    assert with_it["message"]["content"] == stopped["message"]["content"] + "42"
    assert (await choice(fleet, max_tokens=1))["finish_reason"] == "length"
    assert (await choice(fleet, max_tokens=10**9))["finish_reason"] == "stop"
    long = await fleet.chat(QUESTION, **_plain(), ignore_eos=True, max_tokens=60)
    assert long.json()["usage"]["completion_tokens"] == 60
    longer = await fleet.chat(QUESTION, **_plain(), min_tokens=40, max_tokens=60)
    assert longer.json()["usage"]["completion_tokens"] >= 40
    (token,) = await tokens(fleet, "4")
    ended = await choice(fleet, stop_token_ids=[token])
    assert "4" not in ended["message"]["content"]


async def test_usage_with_every_chunk(fleet: TestFleet) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chat = await fleet.stream_events(QUESTION, **_plain(), stream_options=options)
    whole = (await fleet.chat(QUESTION, **_plain())).json()["usage"]
    body = {"model": MODEL, "prompt": "Once", "stream": True, "stream_options": options}
    async with fleet.client.stream("POST", "/v1/completions", json=body) as answer:
        text = [event async for event in sse_events(answer)]
    for events in (chat, text):
        *running, last, done = events
        assert not done
        counts = [event["usage"]["completion_tokens"] for event in running]
        assert counts == sorted(counts)
        assert counts[-1] == last["usage"]["completion_tokens"] > 0
        assert running[-1]["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] > 0
    assert chat[-2]["usage"]["completion_tokens"] == whole["completion_tokens"]


async def test_chance(fleet: TestFleet) -> None:
    wild: dict[str, Any] = {"temperature": 2, "top_k": 0, "top_p": 1, "max_tokens": 30}
    wild["ignore_eos"] = True

    async def guess(**more: Any) -> str:
        return await says(fleet, "Who are you?", **(wild | more))

    one = await guess(seed=1)
    assert one == await guess(seed=1)
    assert one != await guess(seed=2)
    greedy = await guess(temperature=0)
    for narrow in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        assert await guess(seed=3, **narrow) == greedy, narrow
    several = await fleet.chat("Who are you?", **(_plain() | wild), seed=1, n=4)
    texts = [choice["message"]["content"] for choice in several.json()["choices"]]
    assert texts[0] == one
    assert len(set(texts)) == 4


@pytest.mark.parametrize("required", [True, False])
async def test_a_call_can_be_required(fleet: TestFleet, required: bool) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    more: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": "required" if required else named,
        "max_tokens": 100,
    }
    text = "What is the weather in Oslo?"
    found = await choice(fleet, text, **more)
    (call,) = found["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert call["function"]["name"] == "get_weather"
    assert found["finish_reason"] == "tool_calls"
    events = await fleet.stream_events(text, **_plain(), **more)
    pieces = [c for e in events if e for c in e["choices"][0]["delta"].get("tool_calls", [])]
    assert pieces[0]["function"]["name"] == "get_weather"
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert arguments == call["function"]["arguments"]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    assert (await choice(fleet, text, **(more | thinking)))["message"]["tool_calls"]
    greeting = await choice(fleet, "Hello!", **(more | {"tool_choice": "none"}))
    assert "tool_calls" not in greeting["message"]


async def test_an_answer_can_be_continued(fleet: TestFleet) -> None:
    usual = await says(fleet)
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": usual[:4]},
    ]
    rest = await says(fleet, messages=turns, continue_final_message=True)
    assert usual[:4] + rest == usual


async def test_prompts_as_text_and_as_tokens(fleet: TestFleet) -> None:
    prompt = (
        await post(
            fleet,
            "/apply-template",
            messages=[{"role": "user", "content": QUESTION}],
            chat_template_kwargs={"enable_thinking": False},
        )
    )["prompt"]
    ids = await tokens(fleet, prompt)
    assert (await post(fleet, "/detokenize", tokens=ids))["prompt"] == prompt
    asked: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
    text = await post(fleet, "/v1/completions", prompt=prompt, **asked)
    same = await post(fleet, "/v1/completions", prompt=ids, **asked)
    usual = await says(fleet)
    assert text["choices"][0]["text"].strip() == same["choices"][0]["text"].strip() == usual
    assert text["usage"]["prompt_tokens"] == len(ids)
    counted = await post(
        fleet,
        "/v1/chat/completions/input_tokens",
        messages=[{"role": "user", "content": QUESTION}],
        chat_template_kwargs={"enable_thinking": False},
    )
    assert counted["input_tokens"] == len(ids)
    turns = [{"role": "user", "content": QUESTION}]
    options = {"enable_thinking": False}
    found = await post(fleet, "/tokenize", messages=turns, chat_template_kwargs=options)
    assert found["tokens"] == ids
    strings = await post(fleet, "/tokenize", prompt="red house", return_token_strs=True)
    assert "".join(strings["token_strs"]) == "red house"
    assert strings["count"] == len(strings["tokens"])
    assert strings["max_model_len"] == 2048


async def test_prompts_can_be_scored(fleet: TestFleet) -> None:
    asked: dict[str, Any] = {"prompt": "red house", "echo": True, "logprobs": 2, "temperature": 0}
    scored = await post(fleet, "/v1/completions", max_tokens=0, **asked)
    (found,) = scored["choices"]
    assert found["text"] == "red house"
    scores = found["logprobs"]
    assert "".join(scores["tokens"]) == "red house"
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert all(value <= 0 for value in scores["token_logprobs"][1:])
    assert [len(top) for top in scores["top_logprobs"][1:]] == [2] * (len(scores["tokens"]) - 1)
    assert scores["text_offset"][0] == 0
    assert scored["usage"]["completion_tokens"] == 0
    more = await post(fleet, "/v1/completions", max_tokens=3, **asked)
    (longer,) = more["choices"]
    assert longer["text"].startswith("red house")
    assert (
        longer["logprobs"]["token_logprobs"][: len(scores["tokens"])] == (scores["token_logprobs"])
    )
    assert "".join(longer["logprobs"]["tokens"]) == longer["text"]


async def test_one_call_is_enough_where_several_are_not_wanted(fleet: TestFleet) -> None:
    found = await choice(
        fleet,
        "What is the weather in Oslo?",
        tools=TOOLS,
        parallel_tool_calls=False,
        ignore_eos=True,
        max_tokens=200,
    )
    assert len(found["message"]["tool_calls"]) == 1
    assert found["finish_reason"] == "tool_calls"


async def test_thinking_is_switched(fleet: TestFleet) -> None:
    for effort, thinks in (("high", True), ("none", False)):
        found = await choice(fleet, reasoning_effort=effort, chat_template_kwargs=None)
        assert bool(found["message"].get("reasoning_content")) is thinks
    quiet: dict[str, Any] = {
        "reasoning_effort": "high",
        "include_reasoning": False,
        "chat_template_kwargs": None,
    }
    found = await choice(fleet, **quiet)
    assert "reasoning_content" not in found["message"]
    events = await fleet.stream_events(QUESTION, **(_plain() | quiet))
    deltas = [event["choices"][0]["delta"] for event in events if event and event["choices"]]
    assert "".join(d.get("content", "") for d in deltas) == found["message"]["content"]
    assert not any("reasoning_content" in delta for delta in deltas)
    messages = [{"role": "user", "content": QUESTION}]
    for thinking, kinds in (({"type": "adaptive"}, ["thinking", "text"]), (None, ["text"])):
        message = await post(
            fleet, "/v1/messages", max_tokens=200, messages=messages, thinking=thinking
        )
        assert [block["type"] for block in message["content"]] == kinds
    response = await post(fleet, "/v1/responses", input=QUESTION, reasoning={"effort": "high"})
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
