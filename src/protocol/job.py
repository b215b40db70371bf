"""The job: one request on its way to a neuron, and the orders about it afterwards."""

from enum import StrEnum

import msgspec

from protocol.generate import GenerateRequest

PROTOCOL = 1
"""Version of the messages in this package; raised when an old reader would misunderstand."""


class Priority(StrEnum):
    """Lanes of the hand-over; a neuron empties them in this order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt to serve one request."""

    id: str
    gateway: str
    """Where the frames go: ``cortex.reply.<gateway>.<id>``."""
    request: GenerateRequest
    seed: int
    """Fixed by the gateway even when the client gave none, so that an attempt can be repeated."""
    rendered_at: float
    """Unix seconds at the first attempt: a template that prints the date renders the same again."""
    attempt: int = 1
    """Every frame repeats it; a higher attempt fences the lower ones off."""
    choice: int = 0
    """Which of the n choices of one request this is; part of the sampling noise."""
    tokens_so_far: tuple[int, ...] = ()
    """Answer tokens of earlier attempts, which this one continues."""
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0
    """How long its gateway waits for a neuron, from the hand-over; 0 = no bound. The stream drops
    it by itself a little later."""
    revision: str = ""
    """The model revision that the first attempt ran on; empty = any."""
    protocol: int = PROTOCOL


class Cancel(msgspec.Struct, frozen=True, tag_field="kind", tag="cancel"):
    """Stop a job: its client left, or another attempt took over."""

    attempt: int
    """This attempt and all lower ones."""


class Ping(msgspec.Struct, frozen=True, tag_field="kind", tag="ping"):
    """Answer with a KeepAlive at once: the gateway has heard nothing for a while."""

    attempt: int


Steer = Cancel | Ping
