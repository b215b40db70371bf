"""ASGI helpers for the endpoints that stream.

Starlette's ``StreamingResponse`` neither joins what arrives in one tick nor stops a non-streaming
handler when its client leaves, and Hypercorn's ``send()`` does not raise after a disconnect. So the
streaming endpoints speak ASGI themselves and watch ``receive()``.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.types import Message, Receive, Scope, Send

from cortex.api.error_responses import Style, envelope, retry_headers, status_of
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.runtime.sizes import size_text

MAX_BODY_BYTES = 32 << 20
SILENT_SECONDS = 30.0
"""How long a client may pause in the middle of its body."""
UNREAD_SECONDS = 30.0
"""How long a client may leave its stream unread."""
_JSON = (b"content-type", b"application/json")
_SSE = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class ClientGone(Exception):
    """Raised when a client disconnects before it has sent its whole body, or stops reading."""


async def read_body(scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """Reads the request's body; raises ``FleetError(REQUEST_TOO_LARGE)`` as soon as the body is
    known to exceed *limit* bytes."""
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
    """Returns the body's length as the client announced it; 0 when it did not."""
    announced = dict(scope["headers"]).get(b"content-length", b"")
    return int(announced) if announced.isdigit() else 0


async def _receive(receive: Receive) -> Message:
    """Receives the next part of a body; a client that sends nothing does not keep its
    connection."""
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            return await receive()
    except TimeoutError:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The body is incomplete: nothing has arrived for {SILENT_SECONDS:.0f} s. Send the "
            "request again.",
        ) from None


def _too_large(size: int, limit: int) -> FleetError:
    return FleetError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"The body has at least {size:,} bytes; this gateway accepts at most {limit:,} "
        f"({size_text(limit)}). Send a shorter request.",
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
    """Sends a whole JSON response."""
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
    """Sends a failure as the whole response; no header may have gone out yet."""
    headers = retry_headers(error) + request_id_headers(request_id)
    body = envelope(error, style, request_id)
    await send_json(send, body, status=status_of(error, style), headers=headers)


async def open_sse(send: Send, request_id: str) -> None:
    """Sends the headers of an event stream."""
    headers = [*_SSE, *request_id_headers(request_id)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_chunk(send: Send, data: bytes, *, more: bool = True) -> None:
    """Sends one chunk of the stream; the last one has ``more=False``.

    Raises :class:`ClientGone` when the client does not read: unread data would otherwise pile up
    here for as long as the model generates.
    """
    try:
        async with asyncio.timeout(UNREAD_SECONDS):
            await send({"type": "http.response.body", "body": data, "more_body": more})
    except TimeoutError:
        raise ClientGone from None


def request_id_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Returns the headers that carry the request's id, as in the logs: OpenAI's and Anthropic's
    name for it."""
    value = request_id.encode()
    return [(b"x-request-id", value), (b"request-id", value)] if request_id else []
