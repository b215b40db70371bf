"""Clients that do not read, or read slowly, whatever is left of their answers."""

import asyncio
import socket
from typing import Any

import pytest

from protocol.runtime import http_server
from protocol.runtime.http import connection
from protocol.runtime.listen import open_socket
from tests.support.http_clients import response_start, serving
from tests.support.waiting import until

IDLE_SECONDS = 0.3
BEYOND = (-1_500_000, -30_000, 0, 20_000, 40_000, 60_000, 100_000, 5_000_000)
"""How much longer an answer is than what the kernel takes of it when nobody reads."""


@pytest.fixture(scope="module")
def kernel_bytes() -> int:
    """What the kernel takes of an answer that nobody reads."""
    with open_socket("127.0.0.1:0") as listener, _unconnected() as client:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            return server.send(b"x" * 20_000_000)


def _unconnected() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return sock


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_CONNECTION_SECONDS", IDLE_SECONDS)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(connection, "CLOSING_SECONDS", 0.3)


class Sized:
    """An application that answers with as many bytes as the path says, at once or in parts."""

    def __init__(self, part: int = 1 << 30) -> None:
        self.part = part
        self.ended = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size = int(scope["path"].strip("/"))
        try:
            await send(response_start([(b"content-length", str(size).encode())]))
            for start in range(0, size, self.part):
                end = min(start + self.part, size)
                more = end < size
                body = b"x" * (end - start)
                await send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            self.ended += 1


async def deaf(port: int, size: int, *headers: str) -> socket.socket:
    """Asks for an answer and reads nothing of it."""
    sock = _unconnected()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    lines = [f"GET /{size} HTTP/1.1", "Host: x", *headers]
    await loop.sock_sendall(sock, "\r\n".join(lines).encode() + b"\r\n\r\n")
    return sock


def open_connections() -> int:
    return sum(task.get_name() == "http" for task in asyncio.all_tasks())


@pytest.mark.parametrize("part", [1 << 30, 30_000])
@pytest.mark.parametrize("how", ["kept alive", "to be closed"])
@pytest.mark.parametrize("beyond", BEYOND)
async def test_a_client_that_does_not_read_is_closed(
    kernel_bytes: int, beyond: int, how: str, part: int
) -> None:
    app, size = Sized(part), kernel_bytes + beyond
    async with serving(app) as port:
        headers = ["Connection: close"] if how == "to be closed" else []
        socks = [await deaf(port, size, *headers) for _ in range(3)]
        await until(lambda: app.ended == 3, seconds=4, what="nobody writes to it any more")
        await until(lambda: open_connections() == 0, seconds=4)
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("beyond", BEYOND[:-2])
async def test_a_client_that_has_not_read_makes_way(
    kernel_bytes: int, beyond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "IDLE_CONNECTION_SECONDS", 60)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 60)
    app = Sized()
    async with serving(app, connections=4) as port:
        socks = []
        for number in range(12):
            socks.append(await deaf(port, kernel_bytes + beyond))
            await until(lambda: app.ended == number + 1)  # noqa: B023
            await until(lambda: open_connections() <= 4, seconds=1)
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("part", [1 << 30, 30_000])
@pytest.mark.parametrize("how", ["kept alive", "to be closed"])
async def test_a_client_that_reads_slowly_gets_everything(
    kernel_bytes: int, how: str, part: int
) -> None:
    """Its answer takes longer than any of the times, each of which is over in between."""
    size = kernel_bytes + 2_000_000
    async with serving(Sized(part)) as port:
        headers = ["Connection: close"] if how == "to be closed" else []
        sock = await deaf(port, size, *headers)
        loop = asyncio.get_running_loop()
        got = bytearray()
        while len(got.partition(b"\r\n\r\n")[2]) < size:
            piece = await loop.sock_recv(sock, 65536)
            assert piece, len(got)
            got += piece
            await asyncio.sleep(len(piece) / 1_500_000)
        await until(lambda: open_connections() == 0)
        sock.close()
