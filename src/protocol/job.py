"""The job: one request on its way to a neuron, and the later orders about it."""

from enum import StrEnum

import msgspec

from protocol.generate import GenerateRequest

PROTOCOL = 1
"""Version of the messages in this package; raised when an old reader would misunderstand."""


class Priority(StrEnum):
    """The lanes of the hand-over, in the order in which a neuron empties them."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Client(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gateway needs to continue an answer that another one began."""

    dialect: str = "openai_chat"
    owner: str = ""
    """Hash of the key that the client presented: only its holder may claim the stream."""
    created: int = 0
    """Creation time in Unix seconds, which every chunk of the answer repeats."""
    include_usage: bool = False
    model: str = ""
    """The name that the client asked for; empty = the model's id."""
    choices: int = 1
    """Number of jobs that make up the answer; this one's id determines the others'."""
    echo: msgspec.Raw = msgspec.Raw(b"null")
    """What else the dialect needs to write its events, as JSON."""


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt to serve one request."""

    id: str
    gateway: str
    """The gateway that gets the frames: ``cortex.reply.<gateway>.<id>``."""
    request: GenerateRequest
    seed: int
    """Fixed by the gateway even when the client gave none, so that an attempt can be repeated."""
    rendered_at: float
    """Unix seconds of the first attempt, so that a template that prints the date renders the same
    text again."""
    attempt: int = 1
    """The attempt's number, which every frame repeats; a higher one fences off the lower ones."""
    choice: int = 0
    """The number of this choice among the n of one request; part of the sampling noise."""
    tokens_so_far: tuple[int, ...] = ()
    """Answer tokens of earlier attempts, which this one continues."""
    prompt_hash: str = ""
    """Hash of the prompt that the first attempt rendered; a neuron that renders another one refuses
    the job."""
    suspect: bool = False
    """Whether an attempt's engine died before the attempt had a new token: then the neuron runs no
    other job without a token beside this one, so that the next death has one explanation."""
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0
    """How long its gateway waits for a neuron, from the hand-over on; 0 = no limit. The stream
    drops the job a little later."""
    revision: str = ""
    """The model revision that the first attempt ran on; empty = any."""
    client: Client | None = None
    """None when the client does not stream, so that nobody can claim the answer."""
    protocol: int = PROTOCOL


class Cancel(msgspec.Struct, frozen=True, tag_field="kind", tag="cancel"):
    """Stops a job, because its client left or another attempt took over."""

    attempt: int
    """The latest attempt to stop; all lower ones stop, too."""


class Resend(msgspec.Struct, frozen=True, tag_field="kind", tag="resume"):
    """Asks for the frames from a token on, and then for the present state.

    It is sent at a gap, after a reconnect, and as a probe when nothing has been heard. The reply is
    ``Delta`` frames, if there are any, then ``KeepAlive`` or ``Finished``; or ``Failed`` from a
    neuron that does not know the job.
    """

    attempt: int
    index: int
    gateway: str
    """Where to reply if the neuron does not know the job."""


Steer = Cancel | Resend


class Locate(msgspec.Struct, frozen=True):
    """Asks all neurons on ``cortex.find.<job>`` which of them runs or keeps this job.

    Those that do reply with :class:`Located`; the others do not reply.
    """

    gateway: str


class Located(msgspec.Struct, frozen=True, omit_defaults=True):
    """A neuron's reply that it has the job: running, parked or finished."""

    node: str
    instance: str
    attempt: int
    next_index: int


class Claim(msgspec.Struct, frozen=True):
    """Tells one neuron on ``cortex.take.<node>.<job>`` that another gateway now owns the job."""

    gateway: str
    attempt: int
    """Higher than the one that was found; the job continues under this number."""
    owner: str
    """The job's owner, which must match."""


class Claimed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The reply to :class:`Claim`."""

    job: Job | None = None
    """The job as it continues; None when the neuron no longer has it, or it belongs to another
    owner."""
