"""What a dialect is: how its requests are read, and how its answers are written.

There is one way through the gateway: body → ``Call`` → jobs → events → bytes. Nothing between the
two ends knows a dialect, and no dialect knows another one.
"""

from collections.abc import Callable
from typing import NamedTuple

from cortex.api.dialects.cursor import Place
from cortex.api.dialects.sse_writer import Aggregator, Head, Writer
from cortex.api.errors import Style
from cortex.dispatch.answer import Choice
from protocol.job import Priority


class Call(NamedTuple):
    """A decoded request."""

    choices: tuple[Choice, ...]
    model: str
    """As the client named it."""
    stream: bool
    seed: int | None = None
    priority: Priority = Priority.NORMAL
    include_usage: bool = False
    echo: bytes = b"null"
    """For the renderer, as JSON."""


class Dialect(NamedTuple):
    """One way of speaking to the gateway."""

    name: str
    """In the stored jobs of streams, which another gateway may have to go on with."""
    style: Style
    decode: Callable[[bytes], Call]
    """Raises ``FleetError(INVALID_REQUEST)`` with the path of the field at fault."""
    writer: Callable[[Head, Place], Writer]
    folder: Callable[[Head], Aggregator]
