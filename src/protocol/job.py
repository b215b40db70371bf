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


class Client(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gateway needs to go on with an answer that another one began."""

    dialect: str = "openai_chat"
    owner: str = ""
    """Hash of the key that the client presented: nobody else may take the stream up."""
    created: int = 0
    """Unix seconds, as every chunk of the answer says."""
    include_usage: bool = False
    model: str = ""
    """The name that the client asked for; empty = the model's id."""
    choices: int = 1
    """How many jobs the answer is made of; this one's id tells the others'."""
    echo: msgspec.Raw = msgspec.Raw(b"null")
    """What else the dialect needs to write its events, as JSON."""


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
    prompt_hash: str = ""
    """Of the prompt that the first attempt rendered; a neuron that renders another one refuses."""
    suspect: bool = False
    """An attempt ended with its engine before it had a new token: the neuron lets nothing else
    without a token run beside this one, so that the next death has one explanation."""
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0
    """How long its gateway waits for a neuron, from the hand-over; 0 = no bound. The stream drops
    it by itself a little later."""
    revision: str = ""
    """The model revision that the first attempt ran on; empty = any."""
    client: Client | None = None
    """None: the client does not stream, so nobody can take its answer up."""
    protocol: int = PROTOCOL


class Cancel(msgspec.Struct, frozen=True, tag_field="kind", tag="cancel"):
    """Stop a job: its client left, or another attempt took over."""

    attempt: int
    """This attempt and all lower ones."""


class Resend(msgspec.Struct, frozen=True, tag_field="kind", tag="resume"):
    """Send the frames from a token on again, and then how things stand.

    Asked for at a gap, after a reconnect, and as a probe when nothing has been heard: the answer
    is Delta frames, if there are any, then KeepAlive or Finished; Failed from a neuron that does
    not know the job.
    """

    attempt: int
    index: int
    gateway: str
    """Where to answer, should the neuron not know the job."""


Steer = Cancel | Resend


class Locate(msgspec.Struct, frozen=True):
    """Asked of all neurons on ``cortex.find.<job>``: who runs or keeps this job?

    Those that do answer with :class:`Located`, the others not at all.
    """

    gateway: str


class Located(msgspec.Struct, frozen=True, omit_defaults=True):
    """A neuron has the job: running, parked or finished."""

    node: str
    instance: str
    attempt: int
    next_index: int


class Claim(msgspec.Struct, frozen=True):
    """Request to one neuron on ``cortex.take.<node>.<job>``: another gateway owns the job now."""

    gateway: str
    attempt: int
    """Higher than the one that was found; the job goes on under this number."""
    owner: str
    """Must be that of the job."""


class Claimed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to :class:`Claim`."""

    job: Job | None = None
    """As it goes on; None when the neuron has it no more, or it belongs to somebody else."""
