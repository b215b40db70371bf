"""Chat completions over HTTP against the real gateway, bus and service, with scripted answers."""

import asyncio
import json

import openai
import pytest

from neuron.engine_process.client import EngineLoadError
from protocol import codec
from protocol.frames import Delta, Finished
from tests.support.fleet import (
    MODEL,
    TestFleet,
    chat_body,
    running_fleet,
    scripted_fleet,
    spied,
    sse_events,
)
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

WORDS = ("Hello", " ", "wörld", " 🎉", "!")


async def test_a_whole_answer(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script(lambda add: WORDS)) as fleet:
        answer = await fleet.chat()
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] in body["id"]
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    choice = body["choices"][0]
    assert choice["message"]["content"] == "Hello wörld 🎉!"
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5 > 5


async def test_a_streamed_answer_has_the_grammar_that_clients_expect(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script(lambda add: WORDS)) as fleet:
        events = await fleet.stream_events(stream_options={"include_usage": True})
    assert events[-1] == {}, "[DONE] is last"
    chunks = events[:-1]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == "Hello wörld 🎉!"
    finishes = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert finishes[-1] == "stop"
    assert not any(finishes[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert all(c["usage"] is None for c in chunks[:-1])
    for chunk in chunks[:-1]:
        assert set(chunk["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}


async def test_without_include_usage_there_is_no_usage_and_no_empty_choices(
    nats: NatsServer,
) -> None:
    async with scripted_fleet(nats, Script(lambda add: WORDS)) as fleet:
        events = await fleet.stream_events()
    assert all(e["choices"] and "usage" not in e for e in events[:-1])


async def test_streaming_and_not_are_one_projection(nats: NatsServer) -> None:
    """Thinking, text and a tool call, in tokens that cut every tag."""
    text = "<think>\nhm\n</think>\n\nLet me look.\n<tool_call>\n" + json.dumps(
        {"name": "get_weather", "arguments": {"city": "Zürich"}}
    )
    text += "\n</tool_call>"
    script = Script(lambda add: [text[i : i + 3] for i in range(0, len(text), 3)])
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    async with scripted_fleet(nats, script) as fleet:
        whole = (await fleet.chat(tools=tools)).json()["choices"][0]
        events = await fleet.stream_events(tools=tools)
    message = whole["message"]
    assert whole["finish_reason"] == "tool_calls"
    assert message["reasoning_content"] == "hm"
    assert message["content"].strip() == "Let me look."
    call = message["tool_calls"][0]
    assert call["type"] == "function"
    assert json.loads(call["function"]["arguments"]) == {"city": "Zürich"}
    deltas = [e["choices"][0]["delta"] for e in events[:-1]]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "hm"
    calls = [c for d in deltas for c in d.get("tool_calls", [])]
    assert calls[0]["index"] == 0
    assert calls[0]["id"]
    assert calls[0]["function"]["name"] == "get_weather"
    assert "".join(c["function"]["arguments"] for c in calls) == call["function"]["arguments"]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_max_tokens_ends_with_length_and_is_clamped(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script(lambda add: WORDS)) as fleet:
        short = (await fleet.chat(max_tokens=2)).json()
        assert short["choices"][0]["message"]["content"] == "Hello "
        assert short["choices"][0]["finish_reason"] == "length"
        huge = await fleet.chat(max_tokens=10**9)
        assert huge.status_code == 200
        assert huge.json()["choices"][0]["finish_reason"] == "stop"


async def test_keep_alives_and_headers_come_while_nothing_happens(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.api.endpoints.relay.HEADERS_AFTER_SECONDS", 0.2)
    monkeypatch.setattr("cortex.api.endpoints.relay.KEEP_ALIVE_SECONDS", 0.1)
    script = Script()
    async with scripted_fleet(nats, script) as fleet:
        script.engines[0].paused = True
        async with fleet.streaming() as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            seen = [await anext(lines) for _ in range(8)]
            assert seen.count(": keep-alive") >= 2
            script.engines[0].paused = False
            rest = [line async for line in lines]
        assert rest[-2] == "data: [DONE]" or rest[-1] == "data: [DONE]"


async def test_a_request_waits_for_a_model_that_is_loading(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.api.endpoints.relay.HEADERS_AFTER_SECONDS", 0.1)
    monkeypatch.setattr("cortex.api.endpoints.relay.KEEP_ALIVE_SECONDS", 0.1)
    async with running_fleet(nats) as fleet:
        script = Script(lambda add: WORDS, load_seconds=0.8)
        await fleet.add_node(script.start)
        await until(lambda: fleet.gateway.fleet.models() == [MODEL])
        assert (await fleet.client.get("/ready")).status_code == 503
        async with fleet.streaming() as answer:
            body = (await answer.aread()).decode()
        assert ": keep-alive" in body
        assert ": loading on n1: reading 50%" in body, "how far it is"
        assert body.count("Hello") == 1
        assert body.endswith("data: [DONE]\n\n")
        assert (await fleet.client.get("/ready")).status_code == 200


async def test_eight_clients_share_four_slots_and_get_their_own_answers(nats: NatsServer) -> None:
    script = Script(lambda add: [str(add.sample.max_tokens), "."] * 20, slots=4)
    async with scripted_fleet(nats, script) as fleet:
        answers = await asyncio.gather(*(fleet.chat(max_tokens=n) for n in range(20, 28)))
        for n, answer in zip(range(20, 28), answers, strict=True):
            content = answer.json()["choices"][0]["message"]["content"]
            assert content == f"{n}." * (n // 2) + (str(n) if n % 2 else "")
        assert max(script.engines[0].rows) == 4


async def test_two_nodes_share_the_work(nats: NatsServer) -> None:
    script = Script(lambda add: WORDS * 10, slots=1)
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        answers = await asyncio.gather(*(fleet.chat() for _ in range(6)))
        assert all(a.status_code == 200 for a in answers)
        assert all(engine.steps_of for engine in script.engines)


# -- failures ----------------------------------------------------------------------------------


async def test_nats_killed_mid_stream_heals(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script(lambda add: ["x"] * 100)) as fleet:
        assert (await fleet.chat()).status_code == 200
        nats.kill()
        await until(lambda: not fleet.gateway.bus.is_connected)
        refused = await fleet.chat()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert (await fleet.client.get("/ready")).status_code == 503
        assert (await fleet.client.get("/health")).status_code == 200
        nats.start()
        await until(lambda: fleet.gateway.bus.is_connected)
        await fleet.ready()
        answer = await fleet.chat()
        assert answer.status_code == 200, answer.text


async def test_a_failed_load_is_a_503_with_the_reason(nats: NatsServer) -> None:
    script = Script()
    script.load_error = EngineLoadError("corrupt", "model.safetensors is truncated")
    async with running_fleet(nats) as fleet:
        await fleet.add_node(script.start)
        await until(lambda: _states(fleet) == ["failed"])
        answer = await fleet.chat()
        assert answer.status_code == 503
        assert "model.safetensors is truncated" in answer.json()["error"]["message"]
        listed = (await fleet.client.get("/v1/models")).json()["data"][0]
        assert listed["state"] == "failed"
        assert "truncated" in listed["error"]


async def test_a_node_that_drains_finishes_its_streams(nats: NatsServer) -> None:
    script = Script(lambda add: ["x"] * 60, step_seconds=0.01)
    async with running_fleet(nats) as fleet:
        node = await fleet.add_node(script.start)
        await fleet.ready()
        async with fleet.streaming() as answer:
            events = sse_events(answer)
            await anext(events)
            await anext(events)
            draining = asyncio.create_task(node.drain())
            await until(lambda: not fleet.gateway.fleet.ready(MODEL))
            refused = await fleet.chat()
            assert refused.status_code == 503
            assert "draining" in refused.json()["error"]["message"]
            rest = [event async for event in events]
        await draining
        assert rest[-1] == {}
        assert script.engines[0].open == 0


# -- clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine(nats: NatsServer, stream: bool) -> None:
    script = Script(lambda add: ["x"] * 10_000, step_seconds=0.005)
    async with scripted_fleet(nats, script) as fleet:
        engine = script.engines[0]
        request = asyncio.create_task(
            fleet.client.post("/v1/chat/completions", json=chat_body("Hi", stream=stream))
        )
        await until(lambda: engine.open == 1 and engine.steps_of.total() > 5)
        request.cancel()
        await until(lambda: engine.open == 0, seconds=2)
        steps = dict(engine.steps_of)
        await asyncio.sleep(0.05)
        assert dict(engine.steps_of) == steps
        await until(lambda: fleet.gateway.dispatcher.in_flight == 0)
        assert b'outcome="cancelled"} 1.0' in fleet.gateway.metrics.exposition()


async def test_a_client_that_leaves_the_line_is_never_handed_over(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        await fleet.add_node(Script(load_seconds=0.6).start)
        await until(lambda: fleet.gateway.fleet.models() == [MODEL])
        request = asyncio.create_task(fleet.chat())
        await until(lambda: fleet.gateway.dispatcher.waiting == 1)
        request.cancel()
        await until(lambda: fleet.gateway.dispatcher.waiting == 0)
        await fleet.ready()
        assert fleet.gateway.dispatcher.in_flight == 0


# -- the bus -----------------------------------------------------------------------------------


async def test_frames_carry_attempt_instance_and_index(nats: NatsServer) -> None:
    script = Script(lambda add: WORDS)
    async with scripted_fleet(nats, script) as fleet, spied(nats, "cortex.reply.>") as seen:
        await fleet.chat()
        await until(lambda: b'"finished"' in seen[-1] if seen else False)
    frames = [codec.read_frame(data) for data in seen]
    assert {(f.attempt, bool(f.instance)) for f in frames} == {(1, True)}
    index = 0
    for frame in frames:
        if isinstance(frame, Delta):
            assert frame.index == index
            index += len(frame.tokens)
    assert isinstance(frames[-1], Finished)
    assert frames[-1].next_index == index == 5


async def test_the_hand_over_is_empty_afterwards(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        await asyncio.gather(*(fleet.chat() for _ in range(5)))
        await until(lambda: _nothing_stored(fleet))


async def _nothing_stored(fleet: TestFleet) -> bool:
    info = await fleet.gateway.bus.request("$JS.API.STREAM.INFO.JOBS")
    return info is not None and json.loads(info)["state"]["messages"] == 0


def _states(fleet: TestFleet) -> list[str]:
    return [str(p.record.state) for p in fleet.gateway.fleet.placed(MODEL)]


async def test_a_pause_in_a_stream_is_nothing_to_the_openai_sdk(nats: NatsServer) -> None:
    """Keep-alives come between events that have an id."""
    script = Script(lambda _: ("one", " two"), step_seconds=2.3)
    async with scripted_fleet(nats, script) as fleet:
        client = openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        await client.close()
    assert "".join(texts) == "one two"
