"""Who calls: what the presented key or the peer's address says."""

import hashlib
from typing import NamedTuple

from starlette.types import Scope


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
