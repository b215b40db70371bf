"""The contract of a dialect: how its requests are decoded, and how its answers are written.

There is one way through the gateway: body → ``Call`` → jobs → events → bytes. Nothing between the
two ends knows a dialect, and no dialect knows another one.
"""

from collections.abc import Callable
from typing import NamedTuple

from cortex.api.dialects.cursor import Place
from cortex.api.dialects.sse_writer import Aggregator, Head, Writer
from cortex.api.error_responses import Style
from cortex.dispatch.answer import Choice
from protocol.job import Priority


class Call(NamedTuple):
    """One client request, decoded."""

    choices: tuple[Choice, ...]
    model: str
    """The model's name as the client wrote it."""
    stream: bool
    seed: int | None = None
    priority: Priority = Priority.NORMAL
    include_usage: bool = False
    echo: bytes = b"null"
    """What the renderer needs to know of the request, as JSON."""


class Dialect(NamedTuple):
    """One API that clients may speak to the gateway."""

    name: str
    """Its name in the stored jobs of streams, which another gateway may have to continue."""
    style: Style
    decode: Callable[[bytes], Call]
    """Decodes a body; raises ``FleetError(INVALID_REQUEST)`` with the path of the field at
    fault."""
    writer: Callable[[Head, Place, int], Writer]
    """Takes what a returning client has seen, and the number of its last event."""
    folder: Callable[[Head], Aggregator]
