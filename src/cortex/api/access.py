"""Identifies the caller of a request, from the key it presents or the peer's address."""

import contextlib
import hashlib
import ipaddress
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from cortex.api.error_responses import plain_envelope

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Caller(NamedTuple):
    """Identity of the sender of a request."""

    tenant: str
    """Whose queue the request joins: a tenant's requests wait for each other, not for other
    tenants'."""
    owner: str
    """Hash of the presented key, which owns the stream; empty when there was no key."""


def caller_of(scope: Scope) -> Caller:
    """Identifies a caller by ``Authorization: Bearer`` or ``x-api-key``, otherwise by address. The
    key itself is not kept."""
    headers = dict(scope["headers"])
    key = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
    if key:
        owner = hashlib.sha256(key).hexdigest()[:32]
        return Caller(owner, owner)
    address = scope.get("client") or ("unknown", 0)
    return Caller(f"address {address[0]}", "")


def refused_unless_from_here(request: Request) -> Response | None:
    """Refuses operators' requests from other machines, until there are keys that tell an operator
    from a guest. A request that a proxy forwarded counts as coming from elsewhere."""
    host = request.client.host if request.client else ""
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    with contextlib.suppress(ValueError):
        if not is_forwarded and ipaddress.ip_address(host).is_loopback:
            return None
    message = (
        "Operators' requests are accepted from the gateway's own machine only; this one came from "
        "elsewhere or through a proxy. Run the command on that machine."
    )
    body = plain_envelope(message, "forbidden", "permission_error")
    return Response(body, 403, media_type="application/json")
