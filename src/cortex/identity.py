"""Who this gateway is on the bus."""

from typing import NamedTuple

from protocol.bus import Bus
from protocol.timing import NORMAL, Timing


class GatewayIdentity(NamedTuple):
    """The connection, and the two names that this gateway's messages and records carry."""

    bus: Bus
    gateway: str
    """The gateway's id; neurons answer to it."""
    instance: str
    """This life of its process."""
    timing: Timing = NORMAL
    """The fleet's."""
