"""Raw ASGI pieces for the endpoints that stream.

Starlette's ``StreamingResponse`` neither joins what arrives in one tick nor ends a non-streaming
handler when its client leaves; and Hypercorn's ``send()`` does not raise after a disconnect. So
the streaming endpoints speak ASGI themselves and watch ``receive()``.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.types import Message, Receive, Scope, Send

from cortex.api.errors import Style, envelope, retry_headers, status_of
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.runtime.sizes import size_text

MAX_BODY_BYTES = 32 << 20
SILENT_SECONDS = 30.0
"""How long a client may pause in the middle of its body."""
UNREAD_SECONDS = 30.0
"""How long a client may read nothing of its stream."""
_JSON = (b"content-type", b"application/json")
_SSE = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class ClientGone(Exception):
    """Raised when the client disconnected before it had sent its whole body, or reads nothing."""


async def read_body(scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """The request's body; raises ``FleetError(REQUEST_TOO_LARGE)`` as soon as it is certain that it
    is longer than *limit* bytes."""
    size = announced_bytes(scope)
    chunks: list[bytes] = []
    received = 0
    is_whole = False
    while True:
        if max(size, received) > limit:
            raise _too_large(max(size, received), limit)
        if is_whole:
            return b"".join(chunks)
        message = await _receive(receive)
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        received += len(chunks[-1])
        is_whole = not message.get("more_body", False)


def announced_bytes(scope: Scope) -> int:
    """The body's length, as far as the client has said it."""
    announced = dict(scope["headers"]).get(b"content-length", b"")
    return int(announced) if announced.isdigit() else 0


async def _receive(receive: Receive) -> Message:
    """The next piece of a body; who sends none does not keep the connection."""
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            return await receive()
    except TimeoutError:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The body is not complete, and nothing of it has come for {SILENT_SECONDS:.0f} s.",
        ) from None


def _too_large(size: int, limit: int) -> FleetError:
    return FleetError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"The body has at least {size:,} bytes; this gateway takes at most {limit:,} "
        f"({size_text(limit)}). Send less.",
    )


@contextlib.asynccontextmanager
async def watching_disconnect(
    receive: Receive, on_disconnect: Callable[[], None]
) -> AsyncIterator[None]:
    """Calls *on_disconnect* when the client leaves during the block."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_disconnect()

    task = asyncio.create_task(watch(), name="disconnect watch")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def send_json(
    send: Send, body: bytes, *, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole JSON answer."""
    length = (b"content-length", str(len(body)).encode())
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [_JSON, length, *(headers or [])],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_error(
    send: Send, error: WireError, style: Style = Style.OPENAI, request_id: str = ""
) -> None:
    """A failure before any header went out."""
    headers = retry_headers(error) + request_id_headers(request_id)
    body = envelope(error, style, request_id)
    await send_json(send, body, status=status_of(error, style), headers=headers)


async def open_sse(send: Send, request_id: str) -> None:
    """The headers of an event stream."""
    headers = [*_SSE, *request_id_headers(request_id)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_chunk(send: Send, data: bytes, *, more: bool = True) -> None:
    """A piece of the stream; the last one has ``more=False``.

    Raises :class:`ClientGone` when the client does not read: what it leaves unread would otherwise
    pile up here for as long as its model answers.
    """
    try:
        async with asyncio.timeout(UNREAD_SECONDS):
            await send({"type": "http.response.body", "body": data, "more_body": more})
    except TimeoutError:
        raise ClientGone from None


def request_id_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """By which logs and clients name the same request: OpenAI's name for it and Anthropic's."""
    value = request_id.encode()
    return [(b"x-request-id", value), (b"request-id", value)] if request_id else []
