"""What the HTTP server refuses, how many connections it keeps, and what waits in it."""

import asyncio

import pytest

from protocol.runtime.http.inbox import MAX_UNREAD_BYTES, Inbox
from tests.support.http_clients import NEXT, Client, Slow, request, serving
from tests.support.waiting import until

HOSTILE = {
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        400,
    ),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "HTTP/9.9": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "h2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", 505),
    "nonsense": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "a large head": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000, 431),
    "other coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "half a body": (request(b"12345")[:-2], 400),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_is_not_http_is_refused_and_closed(kind: str) -> None:
    sent, status = HOSTILE[kind]
    app = Slow()
    async with serving(app) as port:
        client = Client(port)
        client.send(sent)
        if kind == "half a body":
            client.half_close()
        answer = await client.read_all()
        assert answer.startswith(f"HTTP/1.1 {status}".encode()), answer
        assert b"connection: close" in answer.lower()
        assert len(answer.partition(b"\r\n\r\n")[2]) > 20, "it says why"
        assert b"Traceback" not in answer
        await until(lambda: app.waiting == 0)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "H2C", "anything"])
async def test_nothing_is_upgraded(upgrade: str) -> None:
    app = Slow()
    app.may_answer.set()
    async with serving(app) as port:
        client = Client(port)
        more = ("HTTP2-Settings: AAMAAABkAAQAAP__", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        client.send(
            "\r\n".join(
                ["GET / HTTP/1.1", "Host: x", "Connection: Upgrade", f"Upgrade: {upgrade}", *more]
            ).encode()
            + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        client.half_close()
        assert (await client.read_all()).startswith(b"HTTP/1.1 200")


async def test_http2_is_spoken_where_it_was_asked_for() -> None:
    app = Slow()
    async with serving(app, http2=True) as port:
        client = Client(port)
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        assert (await asyncio.to_thread(client.sock.recv, 9))[3] == 4, "its settings"
        client.sock.close()


async def test_an_idle_connection_makes_way_for_a_new_one() -> None:
    app = Slow()
    async with serving(app, connections=5) as port:
        idle = [Client(port) for _ in range(4)]
        busy = Client(port)
        busy.send(request())
        await until(lambda: app.waiting == 1)
        others = []
        for client in idle:
            others.append(Client(port))
            others[-1].send(NEXT)
            assert await client.read_all() == b"", "the one that has been idle longest"
        await until(lambda: app.waiting == 5)
        refused = Client(port)
        answer = await refused.read_all()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        app.may_answer.set()
        assert (await asyncio.to_thread(busy.sock.recv, 100)).startswith(b"HTTP/1.1 200")
        await until(lambda: app.waiting == 0)
        last = Client(port)
        last.send(request(b"{}", "Connection: close"))
        assert (await last.read_all()).startswith(b"HTTP/1.1 200")
        for client in (busy, *others):
            client.sock.close()


async def test_descriptors_are_left_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (40, 40))
    app = Slow()
    async with serving(app) as port:
        clients = [Client(port) for _ in range(60)]
        for client in clients:
            client.sock.settimeout(0.05)
        open_ones = 0
        for client in clients:
            try:
                open_ones += await asyncio.to_thread(client.sock.recv, 1) != b""
            except TimeoutError:
                open_ones += 1
            client.sock.close()
        assert open_ones == 30


async def test_an_inbox_is_bounded_in_bytes() -> None:
    inbox = Inbox()
    parts = [{"type": "http.request", "body": b"x" * size} for size in (0, 1, 60_000, 9, 90_000)]

    async def fill() -> None:
        for _ in range(20):
            for part in parts:
                await inbox.put(part)
        await inbox.put({"type": "http.disconnect"})

    filling = asyncio.create_task(fill())
    largest = received = 0
    while (message := await inbox.get())["type"] != "http.disconnect":
        assert message is parts[received % 5], "in their order"
        received += 1
        await asyncio.sleep(0)
        largest = max(largest, inbox.held_bytes)
    await filling
    assert received == 100
    assert 60_000 < largest < MAX_UNREAD_BYTES + 90_000 + 1024
    assert (await inbox.get())["type"] == "http.disconnect", "again and again"


async def test_a_closed_inbox_takes_everything_and_keeps_nothing() -> None:
    inbox = Inbox()
    part = {"type": "http.request", "body": b"x" * MAX_UNREAD_BYTES}
    await inbox.put(part)
    waiting = asyncio.create_task(inbox.put(part))
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.close()
    async with asyncio.timeout(1):
        await waiting
        await inbox.put(part)
    assert inbox.held_bytes == 0
