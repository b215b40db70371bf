"""Whatever a client sends, it gets a 4xx in OpenAI's envelope that names the field, and others
are served as before."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cortex.api.dialects.request_fields import MAX_TOOLS
from protocol.catalogue import Profile
from tests.support.fleet import (
    MODEL,
    PAGE,
    TestFleet,
    chat_body,
    running_fleet,
    scripted_fleet,
    sse_events,
)
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

USER = [{"role": "user", "content": "Hi"}]


def _tool(parameters: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


_SURROGATE = json.dumps(chat_body("Hi", tools=[_tool({"a": "?"})])).replace("?", "\\ud800").encode()
BAD_BODIES: list[tuple[bytes | dict[str, Any], int, str | None, str]] = [
    (b"", 400, None, "not valid JSON"),
    (b"{nope", 400, None, "not valid JSON"),
    (b"[1,2]", 400, None, "Expected `object`"),
    (b'{"model": "\xff"}', 400, None, "utf-8"),
    (b"[" * 100_000, 400, None, "Expected `object`"),
    (b'{"x": ' + b"[" * 100_000, 400, None, "JSON"),
    (b'{"model": "m", "messages": ' + b"[" * 100_000, 400, "messages[0]", "Expected `object`"),
    ({"messages": USER}, 400, "model", "missing required field `model`"),
    ({"model": MODEL}, 400, "messages", "missing required field `messages`"),
    ({"model": MODEL, "messages": []}, 400, "messages", "length >= 1"),
    ({"model": 7, "messages": USER}, 400, "model", "Expected `str`, got `int`"),
    ({"model": "", "messages": USER}, 400, "model", "length >= 1"),
    ({"model": "x" * 300, "messages": USER}, 400, "model", "1 to 200 bytes"),
    ({"model": MODEL, "messages": "Hi"}, 400, "messages", "Expected `array`"),
    (chat_body("Hi", messages=[{"content": "x"}]), 400, "messages[0].role", "missing"),
    (chat_body("Hi", messages=[{"role": "king"}]), 400, "messages[0].role", "king"),
    (chat_body("Hi", messages=[{"role": "user", "content": 5}]), 400, "messages[0].content", "int"),
    (chat_body("Hi", temperature="hot"), 400, "temperature", "Expected `float"),
    (chat_body("Hi", temperature=3), 400, "temperature", "<= 2.0"),
    (chat_body("Hi", temperature=-1), 400, "temperature", ">= 0.0"),
    (chat_body("Hi", top_p=1.5), 400, "top_p", "<= 1.0"),
    (chat_body("Hi", max_tokens=0), 400, "max_tokens", ">= 1"),
    (chat_body("Hi", max_tokens="many"), 400, "max_tokens", "Expected `int"),
    (chat_body("Hi", max_tokens=True), 400, "max_tokens", "got `bool`"),
    (chat_body("Hi", n=1000), 400, "n", "<= 128"),
    (chat_body("Hi", logprobs=True, top_logprobs=21), 400, "top_logprobs", "<= 20"),
    (chat_body("Hi", top_logprobs=2), 400, "top_logprobs", "logprobs = true"),
    (chat_body("Hi", presence_penalty=3), 400, "presence_penalty", "<= 2.0"),
    (chat_body("Hi", repetition_penalty=0), 400, "repetition_penalty", "> 0.0"),
    (chat_body("Hi", logit_bias={"x": 1}), 400, "logit_bias", "not a token id"),
    (chat_body("Hi", logit_bias={"5": 101}), 400, "logit_bias.5", "range from -100 to 100"),
    (chat_body("Hi", logit_bias={"99999999": 1}), 400, "logit_bias", "not a token"),
    (chat_body("Hi", bad_words=["x"]), 400, "bad_words", "logit_bias"),
    (chat_body("Hi", modalities=["audio"]), 400, "modalities", "only text"),
    (chat_body("Hi", continue_final_message=True), 400, "continue_final_message", "'user'"),
    (chat_body("Hi", tool_choice="maybe"), 400, "tool_choice", "'maybe'"),
    (chat_body("Hi", tool_choice={"type": "custom"}), 400, "tool_choice", "'custom'"),
    (
        chat_body("Hi", tool_choice={"type": "function", "function": {"name": "g"}}),
        400,
        "tool_choice",
        "'g' is not among",
    ),
    (chat_body("Hi", response_format={"type": "json_object"}), 400, "response_format", "not supp"),
    (chat_body("Hi", tool_choice="required"), 400, "tool_choice", "contains no function"),
    (chat_body("Hi", stop=["a"] * 99), 400, "stop", "at most 16"),
    (chat_body("Hi", stop_token_ids=[10**9]), 400, "stop_token_ids", "not a token"),
    (chat_body("Hi", seed=2**70), 400, "seed", ""),
    (
        chat_body("Hi", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        400,
        "messages[0].content[0]",
        "cannot read 'image_url' parts",
    ),
    (chat_body("Hi", chat_template_kwargs={"a": 10**30}), 400, "chat_template_kwargs[...]", ""),
    (chat_body("Hi", chat_template_kwargs={"messages": "x"}), 400, "chat_template_kwargs", ""),
    (chat_body("Hi", tools=[_tool(5)]), 400, "tools[0].function.parameters", "object"),
    (_SURROGATE, 400, None, "not valid JSON"),
    (chat_body("word " * 5000), 400, "messages", "maximum context length is 2048 tokens"),
    ({"model": "nope", "messages": USER}, 404, "model", "does not exist"),
]


async def connection(fleet: TestFleet) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """For requests that no client library would send."""
    host, port = fleet.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("stream", [False, True])
async def test_each_mistake_is_named(nats: NatsServer, stream: bool) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        for body, status, param, words in BAD_BODIES:
            if isinstance(body, dict):
                answer = await fleet.client.post(
                    "/v1/chat/completions", json=body | {"stream": stream}
                )
            else:
                answer = await fleet.client.post("/v1/chat/completions", content=body)
            assert answer.status_code == status, (body, answer.text)
            assert answer.headers["content-type"] == "application/json"
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert error["param"] == param, (body, error)
            assert words in error["message"], (body, error)
            assert "Traceback" not in answer.text
        assert (await fleet.chat()).status_code == 200


DEEP = 20_000
_DEEP_BLOCKS = b'{"type": "tool_result", "content": [' * DEEP
_HEAD = b'{"model": "cortex-demo", "max_tokens": 5, '
BROKEN_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{nope",
    "a list": b"[1, 2]",
    "a number": b"7",
    "no UTF-8": _HEAD + b'"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a surrogate": _HEAD + b'"prompt": "\\ud800"}',
    "deep brackets": b"[" * 100_000,
    "deep field": _HEAD + b'"x": ' + b"[" * 100_000,
    "deep whole field": _HEAD + b'"x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep blocks": _HEAD + b'"messages": [{"role": "user", "content": [' + _DEEP_BLOCKS,
    "deep schema": _HEAD
    + b'"messages": [], "input": [], "tools": [{"type": "function", "name": "f", "parameters": '
    + b'{"a":' * DEEP
    + b"1"
    + b"}" * DEEP
    + b"}]}",
    "huge number": _HEAD + b'"temperature": 1e999}',
    "long number": _HEAD + b'"seed": ' + b"9" * 5000 + b"}",
    "control characters": _HEAD + b'"model": "a\x00b"}',
}
POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
    "/tokenize",
    "/detokenize",
    "/apply-template",
)


@pytest.mark.parametrize("path", POSTS)
async def test_broken_bodies_are_refused_in_the_callers_dialect(
    nats: NatsServer, path: str
) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        for name, body in BROKEN_BODIES.items():
            answer = await fleet.client.post(path, content=body)
            assert answer.status_code == 400, (name, answer.text[:500])
            found = answer.json()
            assert found["error"]["type"] == "invalid_request_error"
            assert ("type" in found) == ("messages" in path)
            assert 10 < len(found["error"]["message"]) < 500, name
            assert "Traceback" not in answer.text
            assert "Error" not in answer.text
        assert (await fleet.chat()).status_code == 200


async def test_context_overflow_has_the_code_that_clients_look_for(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        error = (await fleet.chat("word " * 5000)).json()["error"]
    assert error["code"] == "context_length_exceeded"


async def test_what_real_clients_send_is_tolerated(nats: NatsServer) -> None:
    odd: list[dict[str, Any]] = [
        {"user": "me", "metadata": {"a": 1}, "store": True, "unknown_field": [1]},
        {"tools": [], "tool_choice": None, "stop": None, "temperature": None},
        {"tools": [{"type": "web_search"}], "parallel_tool_calls": False},
        {"max_completion_tokens": 5, "max_tokens": None, "stream_options": None},
        {"messages": [{"role": "developer", "content": "Be brief."}, *USER]},
        {"messages": [*USER, {"role": "assistant", "content": None}, *USER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"messages": [{"role": "user", "content": ""}], "name": "x"},
        {"response_format": {"type": "text"}, "n": 1, "logprobs": False, "presence_penalty": 0},
        {"top_k": -1, "min_p": 0, "reasoning_effort": "low"},
        {"service_tier": "auto"},
    ]
    async with scripted_fleet(nats, Script()) as fleet:
        for extra in odd:
            answer = await fleet.chat(**extra)
            assert answer.status_code == 200, (extra, answer.text)


async def test_paths_and_methods_answer_in_the_envelope(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        missing = await fleet.client.get("/v1/nope")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
        wrong = await fleet.client.get("/v1/chat/completions")
        assert wrong.status_code == 405
        assert "use POST" in wrong.json()["error"]["message"]
        model = await fleet.client.get("/v1/models/nope")
        assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")
        assert (await fleet.client.head("/")).status_code == 200


@pytest.mark.parametrize("length", ["known", "unknown"])
async def test_an_oversized_body_is_refused(nats: NatsServer, length: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 20)

    body = pieces() if length == "unknown" else b" " * (33 << 20)
    async with scripted_fleet(nats, Script()) as fleet:
        for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
            answer = await fleet.client.post(path, content=body, timeout=30)
            assert answer.status_code == 413
            assert "16 MiB" in answer.json()["error"]["message"]
            body = b" " * (33 << 20)
        assert (await fleet.chat()).status_code == 200


async def test_a_large_body_to_a_wrong_path_gets_its_answer(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        for _ in range(3):
            answer = await fleet.client.post("/v1/nope", content=b" " * (50 << 20), timeout=30)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "unknown_url"


async def test_an_oversized_body_is_refused_before_it_has_come(nats: NatsServer) -> None:
    head = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (100 << 20)
    async with scripted_fleet(nats, Script()) as fleet:
        reader, writer = await connection(fleet)
        writer.write(head)
        async with asyncio.timeout(1):
            answer = await reader.readuntil(b'"type":"error"}')
        assert b" 413 " in answer
        assert b'"type":"request_too_large"' in answer
        writer.write(b" " * (1 << 20))
        await writer.drain()
        async with asyncio.timeout(5):  # who sends no more does not keep the connection
            assert await reader.read() == b""
        writer.close()


async def test_a_request_larger_than_the_bus_is_a_413(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        answer = await fleet.chat("x" * (9 << 20))
        assert answer.status_code == 413, answer.text
        assert "on the bus" in answer.json()["error"]["message"]
        assert (await fleet.chat()).status_code == 200


async def test_models_are_listed_and_described(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        listed = (await fleet.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        model = listed["data"][0]
        assert model["id"] == MODEL
        assert model["object"] == "model"
        assert model["state"] == "ready"
        assert model["nodes"] == ["n1"]
        assert model["max_model_len"] == 2048
        assert (await fleet.client.get(f"/v1/models/{MODEL}")).json() == model
        version = (await fleet.client.get("/version")).json()
        assert version["metrics"] == "http://metrics"


async def test_models_come_in_pages_and_speak_both_dialects(nats: NatsServer) -> None:
    profile = Profile(MODEL, aliases=("a", "b", "claude-x"))
    async with running_fleet(nats, (profile,)) as fleet:
        await fleet.add_node(Script().start)
        await fleet.ready()
        await until(lambda: len(fleet.gateway.catalogue.names) == 3, what="the aliases")

        async def page(**asked: str) -> tuple[list[str], bool]:
            found = (await fleet.client.get("/v1/models", params=asked)).json()
            return [model["id"] for model in found["data"]], found["has_more"]

        assert await page(limit="1000") == (["a", "b", "claude-x", MODEL], False)
        assert await page(limit="2") == (["a", "b"], True)
        assert await page(limit="2", after_id="b") == (["claude-x", MODEL], False)
        assert await page(limit="1", before_id="claude-x") == (["b"], True)
        model = (await fleet.client.get("/v1/models/claude-x")).json()
        assert (model["type"], model["object"], model["root"]) == ("model", "model", MODEL)
        assert model["created_at"].endswith("Z")
        assert model["max_input_tokens"] == 2048
        for wrong in ({"limit": "0"}, {"limit": "x"}, {"after_id": "nope"}):
            answer = await fleet.client.get("/v1/models", params=wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(wrong)))
        theirs = {"anthropic-version": "2023-06-01"}
        for path in ("/v1/models/nope", "/v1/nope"):
            answer = await fleet.client.get(path, headers=theirs)
            assert answer.json()["error"]["type"] == "not_found_error"


async def test_endpoints_are_found_where_clients_look(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        chat = chat_body("Hi")
        paths = ("/v1/chat/completions", "/chat/completions", "/v1/chat/completions/?x=1")
        for path in paths:
            assert (await fleet.client.post(path, json=chat)).status_code == 200
        message = {**chat, "max_tokens": 5}
        for path in ("/v1/messages?beta=true", "/anthropic/v1/messages", "/messages"):
            answer = await fleet.client.post(path, json=message, headers={"x-api-key": "k"})
            assert answer.json()["type"] == "message"
            assert answer.headers["request-id"]
        refused = await fleet.client.post("/anthropic/v1/messages", json={})
        assert refused.json()["type"] == "error"
        for path in ("/v1/models/", f"/v1/models/{MODEL}/", "/health/"):
            assert (await fleet.client.get(path)).status_code == 200


async def test_pages_of_named_origins_use_the_api_and_nothing_else(nats: NatsServer) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x-any"}
    async with scripted_fleet(nats, Script()) as fleet:
        for origin, path, is_let_in in (
            (PAGE, "/v1/chat/completions", True),
            (PAGE, "/anthropic/v1/messages", True),
            (PAGE, "/models/unload", False),
            ("https://other.example", "/v1/chat/completions", False),
        ):
            answer = await fleet.client.options(path, headers={"origin": origin, **asks})
            allowed = answer.headers.get("access-control-allow-origin")
            assert (allowed == origin) == is_let_in, (origin, path)
        fleet.client.headers["origin"] = PAGE
        async with fleet.streaming() as stream:
            assert stream.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in stream.headers["access-control-expose-headers"]
            assert [event async for event in sse_events(stream)]


async def test_a_body_that_never_ends_does_not_keep_its_connection(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.api.http.SILENT_SECONDS", 0.2)

    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    async with scripted_fleet(nats, Script()) as fleet:
        reader, writer = await connection(fleet)
        writer.write(head + b'{"model": ')
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"}}")
            assert await reader.read() == b""
        writer.close()
        assert b" 400 " in answer
        assert b"incomplete" in answer


async def test_thousands_of_tools(nats: NatsServer) -> None:
    tools = [_tool({"type": "object"}) for _ in range(MAX_TOOLS + 1)]
    async with scripted_fleet(nats, Script()) as fleet:
        refused = await fleet.chat(tools=tools)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
        answer = await fleet.chat(tools=tools[:MAX_TOOLS])
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert (await fleet.chat()).status_code == 200
