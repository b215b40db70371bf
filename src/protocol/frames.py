"""Frames: what a neuron tells a gateway about a job, on ``cortex.reply.<gateway>.<job>``.

NATS core delivers at most once. Frames therefore carry the attempt and the sender's process
instance (frames of another attempt or life are fenced off) and the index of their first token (a
hole is noticed, never papered over).

A job's frames, in order: ``Accepted``, then ``Delta`` and ``KeepAlive`` in any mixture, then
``Finished`` or ``Failed``. A job that is refused has only ``Failed``. After a ``Resume`` some of
them come again.
"""

from enum import StrEnum

import msgspec

from protocol.errors import WireError
from protocol.generate import FinishReason, Timings, TokenLogprobs, Usage


class Frame(
    msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, kw_only=True, gc=False
):
    """What every frame carries. Plain values, so the garbage collector need not look at them."""

    attempt: int
    instance: str
    """The neuron's process instance."""


class Accepted(Frame, frozen=True, kw_only=True, tag="accepted"):
    """The neuron has the job; what the gateway needs to answer the client's headers."""

    node: str
    prompt_tokens: int
    prompt_hash: str
    """Of the prompt's token ids: every later attempt must render the same prompt."""
    revision: str = ""
    numerics: str = ""
    """Attempts with equal values give bit-identical answers; empty = of none."""
    max_tokens: int
    """What the answer was clamped to."""
    ack: str = ""
    """The gateway acknowledges the delivery here, so a job whose Accepted got lost comes back."""


class Text(msgspec.Struct, frozen=True, tag_field="kind", tag="text", omit_defaults=True, gc=False):
    """A piece of the visible answer."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens that end within it, if asked for."""


class Reasoning(msgspec.Struct, frozen=True, tag_field="kind", tag="reasoning", gc=False):
    """A piece of the thinking before the answer."""

    text: str


class ToolCallPart(
    msgspec.Struct, frozen=True, tag_field="kind", tag="tool_call", omit_defaults=True
):
    """A piece of a tool call: the first of a call has its id and name."""

    index: int
    """Counts the calls of one answer from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""
    """A piece of the arguments' JSON text."""


AnswerPart = Text | Reasoning | ToolCallPart


class Delta(Frame, frozen=True, kw_only=True, tag="delta"):
    """New tokens, and the parts of the answer that became certain with them."""

    index: int
    """How many answer tokens came before these."""
    tokens: tuple[int, ...] = ()
    choice: int = 0
    parts: tuple[AnswerPart, ...] = ()
    cached_tokens: int = 0
    """With index 0: prompt tokens that the prefix cache held."""


class Phase(StrEnum):
    """What a job is doing when it has no token to show."""

    HELD = "held"
    """It waits for its turn beside a suspect, and the engine has not seen it."""
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class KeepAlive(Frame, frozen=True, kw_only=True, tag="keep_alive"):
    """Sent every half second; its next index reveals lost frames at the tail."""

    next_index: int
    phase: Phase
    done: int = 0
    """Prompt tokens computed, of *total*."""
    total: int = 0
    step_age_seconds: float = 0.0
    """Time since the engine last finished a step; a frozen engine shows here."""


class Finished(Frame, frozen=True, kw_only=True, tag="finished"):
    """The answer is complete."""

    next_index: int
    """Total answer tokens; a gateway that has fewer lost some."""
    reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    stop_text: str = ""


class Failed(Frame, frozen=True, kw_only=True, tag="failed"):
    """The job ends without a complete answer."""

    node: str
    error: WireError
    retryable: bool = False
    """Another neuron could still serve it."""
    ack: str = ""
    """Set when the job was refused before Accepted; the gateway acknowledges it."""


class Busy(Frame, frozen=True, kw_only=True, tag="busy"):
    """The neuron has no room on the direct lane; the gateway uses the stream."""

    node: str


AnyFrame = Accepted | Delta | KeepAlive | Finished | Failed | Busy
