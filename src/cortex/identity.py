"""The identity of this gateway on the bus."""

from typing import NamedTuple

from protocol.bus import Bus
from protocol.timing import NORMAL, Timing


class GatewayIdentity(NamedTuple):
    """The connection, and the two names that this gateway's messages and records carry."""

    bus: Bus
    gateway: str
    """The gateway's id, to which neurons reply."""
    instance: str
    """Names this life of its process."""
    timing: Timing = NORMAL
    """The times that the whole fleet agrees on."""
