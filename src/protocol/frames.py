"""Frames: what a neuron tells a gateway about a job, on ``cortex.reply.<gateway>.<job>``.

NATS core delivers at most once. Frames therefore carry the attempt and the sender's process
instance (frames of another attempt or another life are fenced off) and the index of their first
token (a gap is noticed, never papered over).

A job's frames, in order: ``Accepted``, then ``Delta`` and ``KeepAlive`` in any mixture, then
``Finished`` or ``Failed``. A refused job has only ``Failed``. After a ``Resend`` some of them come
again.
"""

from enum import StrEnum

import msgspec

from protocol.errors import WireError
from protocol.generate import FinishReason, Timings, TokenLogprobs, Usage


class Frame(
    msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, kw_only=True, gc=False
):
    """What every frame carries. It holds plain values, so that the garbage collector need not look
    at it."""

    attempt: int
    instance: str
    """The neuron's process instance."""


class Accepted(Frame, frozen=True, kw_only=True, tag="accepted"):
    """The neuron has the job; holds what the gateway needs to send the client's headers."""

    node: str
    prompt_tokens: int
    prompt_hash: str
    """Hash of the prompt's token ids: every later attempt must render the same prompt."""
    revision: str = ""
    numerics: str = ""
    """Attempts with equal values give bit-identical answers; empty = equal to none."""
    max_tokens: int
    """The value to which ``max_tokens`` was clamped."""
    ack: str = ""
    """Where the gateway acknowledges the delivery, so that a job whose ``Accepted`` got lost is
    delivered again."""


class Text(msgspec.Struct, frozen=True, tag_field="kind", tag="text", omit_defaults=True, gc=False):
    """A piece of the visible answer."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Log-probabilities of the tokens that end within it, if requested."""


class Reasoning(msgspec.Struct, frozen=True, tag_field="kind", tag="reasoning", gc=False):
    """A piece of the reasoning before the answer."""

    text: str


class ToolCallPart(
    msgspec.Struct, frozen=True, tag_field="kind", tag="tool_call", omit_defaults=True
):
    """A piece of a tool call; the first piece has the call's id and name."""

    index: int
    """The position of the call in the answer, from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""
    """A piece of the arguments' JSON text."""


AnswerPart = Text | Reasoning | ToolCallPart


class Delta(Frame, frozen=True, kw_only=True, tag="delta"):
    """New tokens, and the parts of the answer that became final with them."""

    index: int
    """The number of answer tokens before these."""
    tokens: tuple[int, ...] = ()
    choice: int = 0
    parts: tuple[AnswerPart, ...] = ()
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; only with index 0."""


class Phase(StrEnum):
    """What a job is doing while it has no token to show."""

    HELD = "held"
    """It waits for its turn because of a suspect, and the engine has not seen it yet."""
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class KeepAlive(Frame, frozen=True, kw_only=True, tag="keep_alive"):
    """Sent every half second; its next index reveals lost frames at the tail."""

    next_index: int
    phase: Phase
    done: int = 0
    """Prompt tokens computed so far, of *total*."""
    total: int = 0
    step_age_seconds: float = 0.0
    """Time since the engine last finished a step; it exposes a frozen engine."""


class Finished(Frame, frozen=True, kw_only=True, tag="finished"):
    """The answer is complete."""

    next_index: int
    """The number of tokens in the answer; a gateway that has fewer has lost some."""
    reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    stop_text: str = ""


class Failed(Frame, frozen=True, kw_only=True, tag="failed"):
    """The job ended without a complete answer."""

    node: str
    error: WireError
    retryable: bool = False
    """Whether another neuron could still serve it."""
    ack: str = ""
    """Set when the job was refused before Accepted; the gateway acknowledges it."""


class Busy(Frame, frozen=True, kw_only=True, tag="busy"):
    """The neuron has no room on the direct lane, so the gateway uses the stream."""

    node: str


AnyFrame = Accepted | Delta | KeepAlive | Finished | Failed | Busy
