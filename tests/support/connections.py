"""Connections to a gateway of every kind that there is at the moment when it is told to stop.

Each function opens one and returns when the server knows it as far as it ever will.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import h2.connection

from tests.support.fleet import chat_body

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[int], Awaitable[Connection]]
"""Opens one to a port of this machine."""


async def _connect(port: int) -> Connection:
    return await asyncio.open_connection("127.0.0.1", port, limit=4096)


async def silent(port: int) -> Connection:
    """Says nothing."""
    return await _connect(port)


async def idle(port: int) -> Connection:
    """Is kept alive after an answer."""
    reader, writer = await _connect(port)
    writer.write(_get("/health"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    return reader, writer


async def half_a_head(port: int) -> Connection:
    """Has sent half of a request's head."""
    reader, writer = await _connect(port)
    writer.write(_get("/health")[:20])
    await writer.drain()
    return reader, writer


async def half_a_body(port: int) -> Connection:
    """Has sent half of a request's body."""
    reader, writer = await _connect(port)
    request = _chat()
    writer.write(request[: len(request) - 10])
    await writer.drain()
    return reader, writer


async def streaming(port: int) -> Connection:
    """Reads an answer as it is made."""
    reader, writer = await _connect(port)
    writer.write(_chat(stream=True))
    await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"data: ")
    return reader, writer


async def streaming_with_next(port: int) -> Connection:
    """The same, and has sent its next request already."""
    reader, writer = await streaming(port)
    writer.write(_get("/health"))
    await writer.drain()
    return reader, writer


async def waiting(port: int) -> Connection:
    """Waits for a whole answer."""
    reader, writer = await _connect(port)
    writer.write(_chat())
    await writer.drain()
    return reader, writer


async def watching(port: int) -> Connection:
    """Follows what happens in the fleet, which never ends."""
    reader, writer = await _connect(port)
    writer.write(_get("/fleet/events"))
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def deaf(port: int) -> Connection:
    """Asks for more than fits into all buffers, and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(_get("/openapi.json") * 500)
    await asyncio.sleep(0.3)  # there is nothing to see from outside
    return reader, writer


async def half_closed(port: int) -> Connection:
    """Has said that it sends no more, and reads on."""
    reader, writer = await streaming(port)
    writer.write_eof()
    return reader, writer


async def gone(port: int) -> Connection:
    """Has reset the connection in the middle of an answer."""
    reader, writer = await streaming(port)
    writer.transport.abort()
    return reader, writer


async def http2(port: int) -> Connection:
    """Speaks HTTP/2 and has an answer under way."""
    reader, writer = await _connect(port)
    client = h2.connection.H2Connection()
    client.initiate_connection()
    body = json.dumps(_body(stream=True)).encode()
    client.send_headers(
        1,
        [
            *((":method", "POST"), (":scheme", "http"), (":authority", "gateway")),
            *((":path", "/v1/chat/completions"), ("content-length", str(len(body)))),
        ],
    )
    client.send_data(1, body, end_stream=True)
    writer.write(client.data_to_send())
    await reader.readuntil(b"data: ")
    return reader, writer


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()


def _body(**body: object) -> dict[str, object]:
    return chat_body("Go on.", max_tokens=5000, seed=1, **body)


def _chat(**body: object) -> bytes:
    sent = json.dumps(_body(**body))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(sent)}"
    return f"{head}\r\n\r\n{sent}".encode()


RESTING: tuple[Open, ...] = (silent, idle, half_a_head)
"""What nobody waits for."""

BUSY: tuple[Open, ...] = (
    *(half_a_body, streaming, streaming_with_next, waiting, watching),
    *(deaf, half_closed, gone, http2),
)
"""What may go on until the end of draining."""
