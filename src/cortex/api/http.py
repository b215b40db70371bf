"""ASGI helpers for the endpoints that stream.

Starlette's ``StreamingResponse`` neither joins what arrives in one tick nor stops a non-streaming
handler when its client leaves, and Hypercorn's ``send()`` does not raise after a disconnect. So the
streaming endpoints speak ASGI themselves and watch ``receive()``.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import cast

from starlette.types import Message, Receive, Scope, Send

from cortex.api.body_budget import BodyBudget, UnfinishedBody
from cortex.api.error_responses import Style, envelope, retry_headers, status_of
from cortex.api.screening.complexity import signs
from cortex.api.screening.screener import Screener
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.runtime.listen import address_group
from protocol.runtime.sizes import size_text

MAX_BODY_BYTES = 16 << 20
"""Twice what the bus takes: text may be twice as long in JSON, with everything escaped."""
LARGE_BYTES = 1 << 20
"""Bodies from this size on hold the loop for milliseconds, in each step of their handling."""
MAX_ORDER_BYTES = 1 << 20
"""Of the body of an operator's request."""
SILENT_SECONDS = 30.0
"""How long a client may pause in the middle of its body."""
BODY_SECONDS = 30.0
"""How long any body may take to arrive."""
MIN_BYTES_PER_SECOND = 64_000
"""How fast a body must arrive that takes longer than that."""
RETRY_SECONDS = 2
"""When to send a body again that gave way to others."""
UNREAD_SECONDS = 30.0
"""How long an HTTP/2 client may leave its stream unread."""
_JSON = (b"content-type", b"application/json")
_SSE = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class ClientGone(Exception):
    """Raised when a client disconnects before it has sent its whole body, or stops reading."""


class BodyReader:
    """Reads the bodies of one gateway's requests, which share a budget until they are decoded."""

    def __init__(self, budget: BodyBudget | None = None) -> None:
        self._budget = budget or BodyBudget()
        self._screener = Screener()

    async def close(self) -> None:
        """Ends what it has started."""
        await self._screener.close()

    async def read(self, scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
        """Reads a request's body, which can be decoded without holding the event loop.

        Raises :class:`ClientGone`, and ``FleetError``: ``REQUEST_TOO_LARGE`` as soon as the body is
        known to exceed *limit* bytes, ``OVERLOADED`` when it gave way to others,
        ``INVALID_REQUEST`` or ``BODY_TIMEOUT`` when it does not come, and ``INVALID_REQUEST`` when
        it has too many values.
        """
        announced = announced_bytes(scope)
        if announced > limit:
            raise _too_large(announced, limit)
        body = self._budget.begin(address_group((scope.get("client") or ("", 0))[0]))
        try:
            await self._receive_all(receive, body, limit)
            whole = cast(bytes, body.data)  # a copy would take as long as decoding it
            await self._screen(receive, body, whole)
            await _let_others(len(whole))
            return whole
        finally:
            self._budget.discard(body)

    async def _receive_all(self, receive: Receive, body: UnfinishedBody, limit: int) -> None:
        began = asyncio.get_running_loop().time()
        while True:
            message = await _receive(receive, body, began)
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            self._budget.add(body, chunk)
            body.signs += signs(chunk)  # as it comes: at the end, all of it would take milliseconds
            if body.gave_way:
                raise _gave_way(self._budget)
            if body.size > limit:
                raise _too_large(body.size, limit)
            if not message.get("more_body", False):
                return

    async def _screen(self, receive: Receive, body: UnfinishedBody, whole: bytes) -> None:
        """Has a body looked at. Others may be first, for seconds: meanwhile it may give way, and
        its client may leave."""
        if not self._screener.has_to_look(body.signs):
            return
        try:
            async with asyncio.timeout(None) as waiting:
                body.on_giving_way = lambda: _end_now(waiting)
                async with watching_disconnect(receive, lambda: _end_now(waiting)):
                    await self._screener.check(whole, lambda now: setattr(body, "is_fixed", now))
        except TimeoutError:
            raise (_gave_way(self._budget) if body.gave_way else ClientGone) from None


async def _let_others(size: int) -> None:
    """Lets others have their turn on the event loop after a step that takes as long as *size*."""
    if size > LARGE_BYTES:
        await asyncio.sleep(0)


def announced_bytes(scope: Scope) -> int:
    """Returns the body's length as the client announced it; 0 when it did not."""
    announced = dict(scope["headers"]).get(b"content-length", b"")
    return int(announced) if announced.isdigit() else 0


async def _receive(receive: Receive, body: UnfinishedBody, began: float) -> Message:
    """Receives the next part of a body; a client that sends nothing, or too little for too long,
    does not keep its connection. Returns an empty part when the body has given way."""
    loop = asyncio.get_running_loop()
    allowed = BODY_SECONDS + body.size / MIN_BYTES_PER_SECOND
    left = began + allowed - loop.time()
    if left <= 0:
        raise _too_slow(body.size, loop.time() - began)
    try:
        async with asyncio.timeout(min(SILENT_SECONDS, left)) as waiting:
            body.on_giving_way = lambda: _end_now(waiting)
            return await receive()
    except TimeoutError:
        if body.gave_way:
            return {"type": "http.request", "more_body": True}
        if left < SILENT_SECONDS:
            raise _too_slow(body.size, loop.time() - began) from None
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The body is incomplete: nothing has arrived for {SILENT_SECONDS:.0f} s. Send the "
            "request again.",
        ) from None
    finally:
        body.on_giving_way = lambda: None


def _end_now(waiting: asyncio.Timeout) -> None:
    """Ends a wait that may have ended in this very tick, of which its task does not know yet."""
    with contextlib.suppress(RuntimeError):
        waiting.reschedule(0)


def _too_slow(received: int, seconds: float) -> FleetError:
    return FleetError(
        ErrorCode.BODY_TIMEOUT,
        f"The body came too slowly: {received:,} bytes in {seconds:.0f} s. After the first "
        f"{BODY_SECONDS:.0f} s it must come with at least {MIN_BYTES_PER_SECOND:,} bytes per "
        "second on average. Send the request again over a faster connection, or a shorter one.",
    )


def _gave_way(budget: BodyBudget) -> FleetError:
    return FleetError(
        ErrorCode.OVERLOADED,
        f"The gateway is receiving more than it keeps at a time: {budget.limit_text} of bodies "
        "that are arriving or waiting to be looked at. The address of this one holds the most, and "
        "it began later than its others. Send it again in a moment.",
        retry_after_seconds=RETRY_SECONDS,
    )


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
    await open_json(send, len(body), status=status, headers=headers)
    await send({"type": "http.response.body", "body": body})


async def open_json(
    send: Send,
    length: int,
    *,
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Sends the headers of a JSON response of *length* bytes."""
    content_length = (b"content-length", str(length).encode())
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [_JSON, content_length, *(headers or [])],
        }
    )


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
    """Sends one chunk of the stream; the last one has ``more=False``."""
    await send({"type": "http.response.body", "body": data, "more_body": more})


def given_up_when_unread(scope: Scope, send: Send) -> Send:
    """Returns a *send* that raises :class:`ClientGone` when an HTTP/2 client does not read. Over
    HTTP/1, the connection itself notices that, and tells slow clients from those that read nothing.
    """
    if scope["http_version"].startswith("1"):
        return send

    async def send_in_time(message: Message) -> None:
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                await send(message)
        except TimeoutError:
            raise ClientGone from None

    return send_in_time


def request_id_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Returns the headers that carry the request's id, as in the logs: OpenAI's and Anthropic's
    name for it."""
    value = request_id.encode()
    return [(b"x-request-id", value), (b"request-id", value)] if request_id else []
