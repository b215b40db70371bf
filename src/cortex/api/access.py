"""Who calls: what the presented key or the peer's address says."""

import contextlib
import hashlib
import ipaddress
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from cortex.api.errors import plain_envelope

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Caller(NamedTuple):
    """The sender of a request."""

    tenant: str
    """Requests of one tenant wait for one another, not for those of others."""
    owner: str
    """Hash of the presented key, empty without one: whose streams these are."""


def caller_of(scope: Scope) -> Caller:
    """By ``Authorization: Bearer`` or ``x-api-key``, else by address. The key is not kept."""
    headers = dict(scope["headers"])
    key = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
    if key:
        owner = hashlib.sha256(key).hexdigest()[:32]
        return Caller(owner, owner)
    address = scope.get("client") or ("unknown", 0)
    return Caller(f"address {address[0]}", "")


def refused_unless_from_here(request: Request) -> Response | None:
    """Operators speak from this machine only, as long as there are no keys that could tell one from
    a guest. What a proxy forwards is not from here."""
    host = request.client.host if request.client else ""
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    with contextlib.suppress(ValueError):
        if not is_forwarded and ipaddress.ip_address(host).is_loopback:
            return None
    message = "The fleet is operated from the gateway's own machine only."
    body = plain_envelope(message, "forbidden", "permission_error")
    return Response(body, 403, media_type="application/json")
