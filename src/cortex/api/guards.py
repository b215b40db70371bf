"""What stands before every endpoint: one guard for each audience, which lets a request in or
refuses it before anything of its body is read.

``access`` decides; here a decision becomes a response.
"""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from cortex.api.access import (
    Access,
    Head,
    why_not_json,
    why_not_operator,
    why_not_page,
    why_not_scraper,
)
from cortex.api.error_responses import plain_envelope, style_of
from cortex.api.http import send_json

_OPERATORS_ONLY = "Operators' requests are accepted from the gateway's own machine only; {}."


class ForOperators:
    """ASGI middleware for operators' endpoints: requests from this machine, of nobody else's web
    page, through no proxy."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = Head(scope)
        if why := why_not_operator(head, self._access):
            await _refuse(scope, send, 403, _OPERATORS_ONLY.format(why))
        elif why := why_not_json(head, may_be_absent=False):
            await _refuse(scope, send, 400, why)
        else:
            await self._app(scope, receive, send)


class ForPrograms:
    """ASGI middleware for the API: programs from anywhere, web pages where they are allowed."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = Head(scope)
        if (task := asyncio.current_task()) is not None:  # for whoever tells what holds the loop
            task.set_name(f"{head.method} {scope['path'][:100]} from {head.address}")
        if why := why_not_page(head, self._access):
            await _refuse(scope, send, 403, why)
        elif why := why_not_json(head, may_be_absent=True):
            await _refuse(scope, send, 415, why)
        else:
            await self._app(scope, receive, send)


class ForScrapers:
    """ASGI middleware for the metrics: where only this machine reaches them, no page that was
    rebound reads them."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if why := why_not_scraper(Head(scope), self._access):
            await _refuse(scope, send, 403, why)
        else:
            await self._app(scope, receive, send)


_CODES = {
    400: ("invalid_value", "invalid_request_error"),
    403: ("forbidden", "permission_error"),
    415: ("unsupported_media_type", "invalid_request_error"),
}


async def _refuse(scope: Scope, send: Send, status: int, message: str) -> None:
    code, kind = _CODES[status]
    await send_json(send, plain_envelope(message, code, kind, style_of(scope)), status=status)
