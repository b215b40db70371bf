"""Clients that leave, that half-close, that send more than a request: when the HTTP server counts
them as gone, and what they get."""

import asyncio
import contextlib
import os
import time
from typing import Any

import pytest

from protocol.runtime.http.crowd import Crowd
from protocol.runtime.http.http1 import MAX_AHEAD_BYTES
from tests.support.http_clients import NEXT, Client, Slow, request, response_start, serving
from tests.support.waiting import seconds_until, until

NOTICED_SECONDS = 0.3
"""How soon a client that has left is known to be gone; a few milliseconds on a machine at rest."""

BEHIND = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "a line feed": b"\n",
    "many empty lines": b"\r\n" * 50,
    "half a request": NEXT[:10],
    "the next request": NEXT,
    "three more": NEXT * 3,
    "nonsense": b"\x00\xff" * 100,
    "a large body": request(b"x" * (1 << 20)),
    "more than is kept": NEXT * (2 * MAX_AHEAD_BYTES // len(NEXT)),
    "a megabyte of nonsense": b"x" * (1 << 20),
}
KINDS = {
    "kept alive": request(),
    "to be closed": request(b"{}", "Connection: close"),
    "HTTP/1.0": request(version="1.0"),
    "without a body": NEXT,
    "to be upgraded": request(b"{}", "Connection: upgrade", "Upgrade: websocket"),
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("behind", BEHIND)
async def test_a_client_that_leaves_is_noticed(behind: str, is_stream: bool, how: str) -> None:
    for kind, sent in KINDS.items():
        app = Slow(is_stream=is_stream)
        async with serving(app) as port:
            client = Client(port)
            await asyncio.to_thread(client.send, sent + BEHIND[behind])
            await until(lambda: app.waiting == 1)  # noqa: B023
            await asyncio.sleep(0.01)
            client.leave(how)
            if is_stream and kind == "HTTP/1.0" and how == "close":
                app.may_answer.set()  # nothing can be sent before the next part of the answer
                continue
            took = await seconds_until(lambda: app.left == 1)  # noqa: B023
            slack = 0.3 if len(BEHIND[behind]) > MAX_AHEAD_BYTES else 0
            assert took < NOTICED_SECONDS + slack, (kind, took)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.3])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("behind", ["nothing", "an empty line", "many empty lines"])
async def test_a_half_closed_client_gets_its_answer(
    behind: str, is_stream: bool, seconds: float
) -> None:
    app = Slow(is_stream=is_stream)
    async with serving(app) as port:
        clients = {}
        for kind, sent in KINDS.items():
            clients[kind] = Client(port)
            clients[kind].send(sent + BEHIND[behind])
            clients[kind].half_close()
        await until(lambda: app.waiting == len(KINDS))
        await asyncio.sleep(seconds)
        assert app.left == 0
        app.may_answer.set()
        for kind, client in clients.items():
            answer = await client.read_all()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), (kind, answer)
            expected = b"firstlast" if is_stream else b"last"
            assert _unchunked(head, body) == expected, (kind, answer)


def _unchunked(head: bytes, body: bytes) -> bytes:
    if b"chunked" not in head.lower():
        return body
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            assert body == b"\r\n"
            return whole
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


async def test_a_half_closed_client_that_leaves_later_is_noticed() -> None:
    app = Slow()
    async with serving(app) as port:
        client = Client(port)
        client.send(request())
        client.half_close()
        await until(lambda: app.waiting == 1)
        await asyncio.sleep(0.1)
        client.leave("close")  # the byte that it has not read makes that a reset
        assert await seconds_until(lambda: app.left == 1) < NOTICED_SECONDS
        client = Client(port)
        client.send(request())
        client.half_close()
        await until(lambda: app.waiting == 1)
        assert await asyncio.to_thread(client.sock.recv, 1) == b"H"
        client.leave("close")  # that says nothing, so it is noticed by the next byte
        assert await seconds_until(lambda: app.left == 2) < 1.0 + NOTICED_SECONDS


async def test_what_comes_behind_a_request_is_answered_in_its_turn() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
        await asyncio.sleep(0.01)
        await send(response_start([(b"content-length", str(len(body)).encode())]))
        await send({"type": "http.response.body", "body": body})

    sent = [b"a", b"bb" * 9000, b"", b"c" * 60_000, b"dd"]
    async with serving(echo) as port:
        for gap in (b"", b"\r\n", b"\r\n\r\n"):
            for is_half in (False, True):
                client = Client(port)
                client.send(gap.join(request(one) for one in sent) + gap)
                if is_half:
                    client.half_close()
                else:
                    client.send(request(b"end", "Connection: close"))
                got = await client.read_all()
                bodies = [*sent] if is_half else [*sent, b"end"]
                for body in bodies:
                    head, _, got = got.partition(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200"), head
                    assert got.startswith(body)
                    got = got[len(body) :]
                assert got == b""


async def test_too_much_behind_a_request_costs_the_connection_not_the_answer() -> None:
    app = Slow()
    async with serving(app) as port:
        client = Client(port)
        client.send(request())
        client.send(b"x" * (3 * MAX_AHEAD_BYTES))
        await until(lambda: app.waiting == 1)
        await asyncio.sleep(0.4)
        app.may_answer.set()
        answer = await client.read_all()
        assert answer.endswith(b"\r\n\r\nlast")
        assert b"connection: close" in answer.lower()


async def test_nobody_waits_for_an_application_that_has_ended() -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send(response_start([(b"content-length", b"2")]))
        await send({"type": "http.response.body", "body": b"ok"})

    before = len(asyncio.all_tasks())
    async with serving(early) as port:
        clients = [Client(port) for _ in range(5)]
        for client in clients:
            client.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.sock.send(request(b"x" * (8 << 20), method="GET"))
        await until(lambda: len(asyncio.all_tasks()) <= before + 2)
        for client in clients:
            client.sock.close()


async def test_a_closed_connection_is_forgotten_at_once() -> None:
    app = Slow()
    app.may_answer.set()
    async with serving(app) as port:
        before = len(os.listdir("/proc/self/fd"))
        for how in ("close", "reset"):
            clients = [Client(port) for _ in range(20)]
            for client in clients:
                client.send(request())
                await asyncio.to_thread(client.sock.recv, 1)
                client.leave(how)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before, seconds=2)


async def test_a_client_that_is_gone_in_the_middle_of_a_write_leaves_nothing() -> None:
    """A write may fail before the hang-up is reported, and takes the report with it."""

    async def pouring(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send(response_start([]))
        gone = asyncio.create_task(receive())
        while not gone.done():
            time.sleep(0.003)  # the loop is busy when the reset comes
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            await asyncio.sleep(0)

    async with serving(pouring) as port:
        before = len(asyncio.all_tasks())
        for number in range(60):
            client = Client(port)
            client.send(request() + NEXT * (number % 2))
            await asyncio.to_thread(client.sock.recv, 200)
            client.half_close()
            await asyncio.sleep(0.02)
            await asyncio.to_thread(client.leave, "reset" if number % 4 < 2 else "close")
        await until(lambda: len(asyncio.all_tasks()) == before, seconds=3)


async def test_a_client_that_only_connects_and_resets_is_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As health checks of TCP do. It is gone when it is accepted, or directly afterwards."""
    counted: list[str] = []
    add = Crowd.add

    def noted(crowd: Crowd[Any], connection: Any, peer: str) -> None:
        counted.append(peer)
        add(crowd, connection, peer)

    monkeypatch.setattr(Crowd, "add", noted)
    app = Slow()
    async with serving(app) as port:
        before = len(asyncio.all_tasks())
        for sent in (b"", NEXT[:10], NEXT, request(b"x" * 1000)[:-5]):
            for pause in (0.0, 0.0, 0.0, 0.001):
                client = Client(port)
                if sent:
                    client.send(sent)
                await asyncio.sleep(pause)
                client.leave("reset")
        await until(lambda: len(asyncio.all_tasks()) == before)
    assert not caplog.records
    assert "" not in counted, "an address that nobody has"
