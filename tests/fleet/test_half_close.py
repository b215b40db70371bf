"""Clients that close only their sending half get their answer; those that are gone are noticed,
whatever they have sent behind their request."""

import asyncio
import json
import socket
import struct

import pytest

from tests.support.fleet import TestFleet, running_fleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import seconds_until, until

pytestmark = pytest.mark.xdist_group("wall_clock")

STEP_SECONDS = 0.005
LIMIT_SECONDS = 0.3
WORDS = 30
_MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES = {
    "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": WORDS},
    "/v1/completions": {"prompt": "Hi", "max_tokens": WORDS},
    "/v1/responses": {"input": "Hi", "max_output_tokens": WORDS},
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": WORDS},
}
BEHIND = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "the next request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a request": b"GET /hea",
}


def request(path: str, version: str = "1.1", **body: object) -> bytes:
    sent = json.dumps({"model": "cortex-demo", **BODIES[path], **body}).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n"
    return head.encode() + sent


async def connected(fleet: TestFleet) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = fleet.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_a_half_closed_client_gets_its_answer(
    nats: NatsServer, path: str, stream: bool, version: str
) -> None:
    script = Script(lambda add: ["x "] * 10_000, step_seconds=STEP_SECONDS)
    async with scripted_fleet(nats, script) as fleet:
        for behind in ("nothing", "an empty line"):
            reader, writer = await connected(fleet)
            writer.write(request(path, version, stream=stream) + BEHIND[behind])
            writer.write_eof()
            async with asyncio.timeout(20):
                answer = (await reader.read()).decode()
            writer.close()
            assert answer.startswith("HTTP/1.1 200"), answer
            assert answer.count("x ") >= WORDS, answer
        assert fleet.gateway.dispatcher.in_flight == 0


async def test_a_half_closed_client_waits_for_a_load(nats: NatsServer) -> None:
    script = Script(lambda add: ["x "] * 5, load_seconds=1.5)
    async with running_fleet(nats) as fleet:
        await fleet.add_node(script.start)
        await until(fleet.gateway.fleet.models)
        clients = []
        for stream in (False, True):
            clients.append(await connected(fleet))
            clients[-1][1].write(request("/v1/chat/completions", stream=stream))
            clients[-1][1].write_eof()
        for reader, writer in clients:
            answer = (await reader.read()).decode()
            writer.close()
            assert answer.startswith("HTTP/1.1 200"), answer
            assert answer.count("x ") == 5 or answer.count('"x ') == 5, answer


@pytest.mark.parametrize("how", ["close", "reset", "half-close, then close"])
@pytest.mark.parametrize("phase", ["decode", "decode, streaming", "prefill", "prefill, streaming"])
async def test_who_is_gone_is_noticed(nats: NatsServer, phase: str, how: str) -> None:
    prefill = 10_000 if phase.startswith("prefill") else 1
    script = Script(lambda add: ["x"] * 10_000, step_seconds=STEP_SECONDS, prefill_steps=prefill)
    script.context = 20_000
    async with scripted_fleet(nats, script) as fleet:
        (engine,) = script.engines
        for behind in BEHIND.values():
            _, writer = await connected(fleet)
            stream = "streaming" in phase
            writer.write(request("/v1/chat/completions", stream=stream, max_tokens=9000) + behind)
            before = engine.steps_of.total()
            await until(lambda n=before: engine.steps_of.total() > n + 5)  # type: ignore[misc]
            # Before and after the headers of a stream, which wait for a second at most.
            await asyncio.sleep(1.1 if stream and not behind else 0)
            if how.startswith("half"):
                writer.write_eof()
                await asyncio.sleep(0.05)
                assert engine.open == 1
            leave(writer, how)
            took = await seconds_until(lambda: engine.open == 0)
            # Who leaves after the byte that asks has come is asked again after a second, or gets
            # the next part of a stream.
            limit = LIMIT_SECONDS + (2.0 if how.startswith("half") else 0.0)
            assert took < limit, (behind, took)
            await until(lambda: fleet.gateway.dispatcher.in_flight == 0)


def leave(writer: asyncio.StreamWriter, how: str) -> None:
    sock = writer.get_extra_info("socket")
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
