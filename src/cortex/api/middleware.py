"""Middleware that every request passes through, whatever it asks for."""

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex.api.http import announced_bytes

MAX_FORGOTTEN_BYTES = 256 << 20
"""How much of a body is still read after its response was sent."""
FORGETTING_PAUSE_SECONDS = 0.0005
"""Between two parts of a body, for every body that is being forgotten, so that a crowd of them
leaves time for everybody else."""
FORGETTING_SECONDS = 30.0
FORGETTING_SILENT_SECONDS = 2.0
_SHARED = ("/v1/", "/anthropic/v1/")
_EXPOSED = ("x-request-id", "request-id", "retry-after")


class ForgetsRest:
    """ASGI middleware for responses that are sent before their request has been read to its end.

    Such a response goes out at once, but the connection stays open until the client has sent the
    rest, within bounds: most clients read nothing before they have sent everything, and would see a
    broken connection in place of the response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._forgetting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        is_read = is_too_slow = False

        async def reading() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def forget() -> None:
            left = MAX_FORGOTTEN_BYTES
            is_absurd = announced_bytes(scope) > left
            while not (is_read or is_too_slow or is_absurd or left < 0):
                async with asyncio.timeout(FORGETTING_SILENT_SECONDS):
                    left -= len((await reading()).get("body", b""))
                if self._forgetting > 1:
                    await asyncio.sleep(self._forgetting * FORGETTING_PAUSE_SECONDS)

        async def sending(message: Message) -> None:
            nonlocal is_too_slow
            is_too_slow = is_too_slow or message.get("status") == 408
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if is_last and not is_read:
                await send({**message, "more_body": True})
                self._forgetting += 1
                try:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(FORGETTING_SECONDS):
                            await forget()
                finally:
                    self._forgetting -= 1
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, reading, sending)


class NoTrailingSlash:
    """ASGI middleware that ignores a trailing slash: such clients mean the same path, and a
    redirect would cost a POST its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


class SharedWithPages:
    """ASGI middleware that lets web pages of the named origins use the API, but never the
    operators' endpoints."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """Takes *origins* as browsers write them, or ``*`` for all."""
        self._app = app
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_shared = scope["type"] == "http" and scope["path"].startswith(_SHARED)
        await (self._shared if is_shared else self._app)(scope, receive, send)
