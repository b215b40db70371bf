"""A small HTTP server, an application that waits, and clients that do what no library does."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

from protocol.runtime.http.crowd import HttpLimits
from protocol.runtime.http_server import http_server
from protocol.runtime.listen import open_socket, url_of

NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


class Slow:
    """An application that answers after its body has come and it is told to; it notes who left."""

    def __init__(self, *, is_stream: bool = False) -> None:
        self.is_stream = is_stream
        self.may_answer = asyncio.Event()
        self.waiting = 0
        self.left = 0
        self.answered = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        self.waiting += 1
        if self.is_stream:
            await send(response_start([]))
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        gone = asyncio.create_task(receive())
        told = asyncio.create_task(self.may_answer.wait())
        await asyncio.wait([gone, told], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        told.cancel()
        self.waiting -= 1
        if not self.may_answer.is_set():
            self.left += 1
            return
        if not self.is_stream:
            await send(response_start([(b"content-length", b"4")]))
        await send({"type": "http.response.body", "body": b"last"})
        self.answered += 1


def response_start(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": headers}


class Client:
    """A client that may do what no library does."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(10)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def leave(self, how: str) -> None:
        """As a program that ends (``close``), or whose machine resets it (``reset``)."""
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()

    async def read_all(self) -> bytes:
        """Everything until the server closes."""
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.to_thread(self.sock.recv, 65536):
                parts.append(part)
        self.sock.close()
        return b"".join(parts)


@contextlib.asynccontextmanager
async def serving(app: Any, **limits: Any) -> AsyncIterator[int]:
    """The port of a server."""
    listener = open_socket("127.0.0.1:0")
    port = int(url_of(listener).rpartition(":")[2])
    async with http_server(app, listener, drain_seconds=0.1, limits=HttpLimits(**limits)):
        yield port


def request(
    body: bytes = b"{}", *headers: str, version: str = "1.1", method: str = "POST"
) -> bytes:
    lines = [f"{method} / HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
