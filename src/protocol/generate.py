"""The neutral generation request: what every API dialect is decoded to and every neuron renders.

It holds messages, not token ids: the neuron has the model's chat template and tokenizer, so a
gateway needs neither. Absent numbers mean "the model's own default".
"""

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function call that the assistant made in an earlier turn."""

    id: str
    name: str
    arguments: str = "{}"
    """The arguments as JSON text, exactly as the client sent it back."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of the conversation."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """For a tool's answer: the call that it answers."""


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    """The JSON schema of the arguments, passed through as the client wrote it."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen and when generation ends; None = the model's default."""

    temperature: float | None = None
    """0 is greedy."""
    top_k: int | None = None
    """0 keeps every token."""
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    """An upper bound; the neuron clamps it to what is left of the context."""
    min_tokens: int = 0
    """End tokens cannot be chosen before this many tokens."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these texts; none of it is returned."""
    include_stop: bool = False
    """It is returned."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """Never end at the model's own end tokens (for benchmarks)."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the answer holds already."""
    frequency_penalty: float | None = None
    """Subtracted once for each time that the answer holds the token."""
    repetition_penalty: float | None = None
    """Divides a positive logit, multiplies another one, of every token of prompt and answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and what is added to its logit."""
    allowed_token_ids: tuple[int, ...] = ()
    """Only these can be chosen; empty = all."""
    logprobs: int | None = None
    """Log-probabilities of the answer's tokens, and of so many best ones each; None = off."""


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One prompt and how to continue it: a conversation, a text, or tokens."""

    model: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    sampling: Sampling = Sampling()
    template_options: dict[str, bool | int | float | str | None] = {}
    """Extra variables of the chat template, such as ``enable_thinking``."""
    prompt: str | tuple[int, ...] | None = None
    """Instead of messages: the prompt itself, which no template touches."""
    add_special: bool = True
    """A text prompt gets the tokens with which the model's texts begin."""
    truncates: bool = False
    """A conversation that is too long loses its oldest turns."""
    echo: bool = False
    """The answer begins with the prompt's text."""
    continues_last: bool = False
    """The last message is the beginning of the answer."""
    one_call: bool = False
    """The answer ends with its first tool call."""
    call: str | None = None
    """The tool that the answer must begin with a call of; empty = of any, None = it need not."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token and the natural logarithm of its probability."""

    token: bytes
    """Its text; a part of a character where the vocabulary cuts one."""
    logprob: float | None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer, and those that were likeliest in its place."""

    token: bytes
    logprob: float | None
    """None for a prompt's first token, before which there is nothing."""
    top: tuple[TokenLogprob, ...] = ()
    """Descending."""


class FinishReason(StrEnum):
    """Why a stream ended."""

    STOP = "stop"
    """An end token or a stop text was reached."""
    LENGTH = "length"
    """max_tokens or the context limit was reached."""
    TOOL_CALLS = "tool_calls"
    """As STOP, and the answer holds at least one complete tool call."""
    CANCELLED = "cancelled"
    """Its gateway asked for the end."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a request's time went on the neuron, in seconds."""

    queue_seconds: float = 0.0
    """From arrival at the neuron to the first step that computed anything of it."""
    prefill_seconds: float = 0.0
    """From there to the first generated token."""
    decode_seconds: float = 0.0
    """From the first generated token to the last."""
