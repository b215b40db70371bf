"""What the service and the fork server say to each other; no torch.

Their socket keeps messages apart (SOCK_SEQPACKET). The server says :data:`READY` once, when it can
fork. A request is a :class:`Kind`, for an engine with its rank (``engine 0``), and carries
descriptors: the channel, stderr, the lines to other ranks. It is answered by the new process's id
in decimal, or by :data:`NO_PROCESS`.
"""

from enum import StrEnum
from typing import NamedTuple, Self

READY = b"ready"
NO_PROCESS = b"0"
MESSAGE_BYTES = 32
"""No message is longer."""
MAX_DESCRIPTORS = 253
"""Linux passes no more with one message."""


class Kind(StrEnum):
    """What the new process becomes."""

    ENGINE = "engine"
    TEXT = "text"


class ForkRequest(NamedTuple):
    """A process that is wanted."""

    kind: Kind
    rank: int = 0
    """An engine's."""

    def encode(self) -> bytes:
        """The message."""
        return f"{self.kind} {self.rank}".encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads the message."""
        kind, rank = data.decode().split()
        return cls(Kind(kind), int(rank))
