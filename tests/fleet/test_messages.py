"""Anthropic's Messages over HTTP, byte for byte where it counts."""

import json
from typing import Any

import pytest

from neuron.ipc.messages import Add
from protocol.errors import ErrorCode, WireError
from tests.support.fleet import MODEL, TestFleet, scripted_fleet
from tests.support.grammar import message_of
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

CALL = ("<tool_call>\n", '{"name": "f", "arguments": {"x": 1}}', "\n</tool_call>")
TOOL = {"name": "f", "description": "does it", "input_schema": {"type": "object"}}


def body(content: Any = "Hi", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "max_tokens": 100, "messages": messages, **more}


async def post(fleet: TestFleet, **more: Any) -> dict[str, Any]:
    answer = await fleet.client.post("/v1/messages", json=body(**more))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def events(fleet: TestFleet, **more: Any) -> list[dict[str, Any]]:
    """The events of a stream; their names are checked."""
    found = []
    async with fleet.client.stream(
        "POST", "/v1/messages", json=body(stream=True, **more)
    ) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
                assert found[-1]["type"] == name
    return found


def says(*texts: str) -> Script:
    return Script(lambda add: texts)


@pytest.mark.parametrize(
    ("texts", "more", "blocks", "stop"),
    [
        (("Hi", " there"), {}, [{"type": "text", "text": "Hi there"}], ("end_turn", None)),
        ((), {}, [{"type": "text", "text": ""}], ("end_turn", None)),
        (("a",) * 9, {"max_tokens": 3}, [{"type": "text", "text": "aaa"}], ("max_tokens", None)),
        (
            ("<think>", "hm", "</think>", "\n\n", "Hi"),
            {"thinking": {"type": "adaptive"}},
            [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hi"}],
            ("end_turn", None),
        ),
        (
            ("<think>", "hm", "</think>", "\n\n", "Hi"),
            {"thinking": {"type": "enabled", "budget_tokens": 10, "display": "omitted"}},
            [{"type": "thinking", "thinking": ""}, {"type": "text", "text": "Hi"}],
            ("end_turn", None),
        ),
        (
            ("Look", ":", *CALL, *CALL),
            {"tools": [TOOL]},
            [
                {"type": "text", "text": "Look:"},
                {"type": "tool_use", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "name": "f", "input": {"x": 1}},
            ],
            ("tool_use", None),
        ),
    ],
)
async def test_an_answer_in_both_forms(
    nats: NatsServer,
    texts: tuple[str, ...],
    more: dict[str, Any],
    blocks: list[dict[str, Any]],
    stop: tuple[str, str | None],
) -> None:
    async with scripted_fleet(nats, says(*texts)) as fleet:
        whole = await post(fleet, **more)
        streamed = message_of(await events(fleet, **more))
    for message in (whole, streamed):
        assert message["id"].startswith("msg_")
        assert (message["type"], message["role"], message["model"]) == (
            "message",
            "assistant",
            MODEL,
        )
        assert (message["stop_reason"], message["stop_sequence"]) == stop
        for block in message["content"]:
            assert block.pop("id", "toolu_").startswith("toolu_")
            assert block.pop("signature", "x")
        assert message["content"] == blocks
        usage = message["usage"]
        assert usage["input_tokens"] > 0
        assert usage["cache_creation_input_tokens"] == usage["cache_read_input_tokens"] == 0
    assert whole["usage"] == streamed["usage"]
    assert set(whole) == set(streamed)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_text_is_named(nats: NatsServer, stream: bool) -> None:
    async with scripted_fleet(nats, says("one ", "EN", "D two", " three")) as fleet:
        more = {"stop_sequences": ["nothing", "END"]}
        whole = message_of(await events(fleet, **more)) if stream else await post(fleet, **more)
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "END")
    assert whole["content"] == [{"type": "text", "text": "one "}]


async def test_message_start_counts_the_prompt_and_so_does_count_tokens(nats: NatsServer) -> None:
    asked = {
        "content": "Count me in.",
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [TOOL],
    }
    async with scripted_fleet(nats, says("Hi")) as fleet:
        start = (await events(fleet, **asked))[0]["message"]
        counted = body(**asked)
        del counted["max_tokens"]
        answer = await fleet.client.post("/v1/messages/count_tokens", json=counted)
        assert answer.json() == {"input_tokens": start["usage"]["input_tokens"]}
        billed = [{"type": "text", "text": "x-anthropic-billing-header: cch=1"}]
        again = counted | {"system": [*billed, *asked["system"]]}
        assert (await fleet.client.post("/v1/messages/count_tokens", json=again)).json() == (
            answer.json()
        )


async def test_errors_speak_to_claude_code(nats: NatsServer) -> None:
    async with scripted_fleet(nats, says("Hi")) as fleet:

        async def refused(status: int, kind: str, **sent: Any) -> str:
            for stream in (False, True):
                answer = await fleet.client.post("/v1/messages", json=sent | {"stream": stream})
                assert answer.status_code == status, answer.text
                envelope = answer.json()
                assert envelope["type"] == "error"
                assert envelope["error"]["type"] == kind
            return str(envelope["error"]["message"])

        long = await refused(400, "invalid_request_error", **body("word " * 5000))
        assert long.startswith("prompt is too long: ")
        assert long.endswith(" > 2048 maximum")
        assert "max_tokens" in await refused(
            400, "invalid_request_error", model=MODEL, messages=body()["messages"]
        )
        assert "'nope'" in await refused(404, "not_found_error", **(body() | {"model": "nope"}))
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png"}}
        message = await refused(400, "invalid_request_error", **body([image]))
        assert "messages[0].content[0]" in message
        search = {"type": "web_search_20250305", "name": "web_search"}
        choice = {"type": "tool", "name": "web_search"}
        message = await refused(
            400, "invalid_request_error", **body(tools=[search], tool_choice=choice)
        )
        assert "Anthropic's servers" in message
        nothing = await refused(
            400,
            "invalid_request_error",
            **(body() | {"messages": [{"role": "system", "content": ""}]}),
        )
        assert "messages" in nothing
        missing = await fleet.client.get("/v1/messages/nope")
        assert missing.json()["error"]["type"] == "not_found_error"
        assert (await fleet.client.get("/v1/messages")).json()["type"] == "error"


async def test_what_claude_code_sends_is_tolerated(nats: NatsServer) -> None:
    odd: list[dict[str, Any]] = [
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        {"context_management": {"edits": []}, "metadata": {"user_id": "{}"}, "betas": ["x"]},
        {"system": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
        {"max_tokens": 64000, "temperature": 1, "top_k": 5, "top_p": 0.9},
        {"tools": [], "tool_choice": None, "stop_sequences": None},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ]
    async with scripted_fleet(nats, says("Hi")) as fleet:
        for more in odd:
            await post(fleet, **more)
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "system", "content": "The date has changed."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"},
                    {"type": "text", "text": "Go on."},
                ],
            },
            {"role": "system", "content": [{"type": "text", "text": "9 tokens left"}]},
        ]
        await post(fleet, messages=messages, tools=[TOOL])


async def test_a_prefilled_answer_goes_on(nats: NatsServer) -> None:
    seen: list[Add] = []

    def answer(add: Add) -> tuple[str, ...]:
        seen.append(add)
        return (" two",)

    async with scripted_fleet(nats, Script(answer)) as fleet:
        messages = [
            {"role": "user", "content": "Count."},
            {"role": "assistant", "content": "one"},
        ]
        whole = await post(fleet, messages=messages)
        assert whole["content"] == [{"type": "text", "text": " two"}]
        sent = {"model": MODEL, "tokens": seen[0].prompt}
        prompt = (await fleet.client.post("/detokenize", json=sent)).json()["prompt"]
    assert prompt.endswith("one")


async def test_a_stream_that_is_taken_up_goes_on_with_the_next_event(nats: NatsServer) -> None:
    script = Script(lambda add: ("<think>", "a", "</think>", "b", *CALL, *"cdef"))
    async with scripted_fleet(nats, script) as fleet:
        more = {"tools": [TOOL], "thinking": {"type": "enabled", "budget_tokens": 5}}
        async with fleet.client.stream(
            "POST", "/v1/messages", json=body(stream=True, **more)
        ) as answer:
            job = answer.headers["request-id"]
            whole = (await answer.aread()).decode()
        blocks = [block for block in whole.split("\n\n") if "id: " in block]
        assert len(blocks) > 12
        for number, block in enumerate(blocks[:-1]):
            last = next(
                line.removeprefix("id: ") for line in block.split("\n") if line.startswith("id: ")
            )
            again = await fleet.client.get(f"/v1/streams/{job}", headers={"Last-Event-ID": last})
            rest = [block for block in again.text.split("\n\n") if "id: " in block]
            assert _joined(blocks[: number + 1] + rest) == _joined(blocks), number


def _joined(blocks: list[str]) -> list[Any]:
    """The events without their ids, deltas of one block joined."""
    joined: list[Any] = []
    for block in blocks:
        event = json.loads(block.partition("data: ")[2])
        delta = event.get("delta", {})
        key = next((k for k in ("text", "thinking", "partial_json") if k in delta), "")
        last = joined[-1] if joined else {}
        if key and key in last.get("delta", {}) and last["index"] == event["index"]:
            last["delta"][key] += delta[key]
        else:
            joined.append(event)
    return joined


async def test_an_error_in_the_middle_is_an_event(nats: NatsServer) -> None:
    script = Script(lambda add: ["x"] * 10_000, step_seconds=0.01)
    async with scripted_fleet(nats, script) as fleet:
        async with fleet.client.stream(
            "POST", "/v1/messages", json=body(stream=True) | {"max_tokens": 10_000}
        ) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if "text_delta" in line:
                    break
            (stream,) = fleet.gateway.dispatcher._receiver._streams.values()
            fleet.gateway.dispatcher._receiver.give_up(
                stream, WireError(ErrorCode.TIMEOUT, "It took too long.")
            )
            rest = [line async for line in lines]
        assert "event: error" in rest
        assert '"timeout_error"' in rest[rest.index("event: error") + 1]
        assert not any("message_stop" in line for line in rest)
        await until(lambda: script.engines[0].open == 0)
