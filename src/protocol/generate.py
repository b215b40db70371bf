"""The neutral generation request: every API dialect is decoded to it, and every neuron renders it.

It holds messages, not token ids: the neuron has the model's chat template and tokenizer, so a
gateway needs neither. Absent numbers mean "the model's own default".
"""

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """The speaker of a message."""

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
    """In a tool's result: the call that it answers."""


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    """The JSON schema of the arguments, passed through as the client wrote it."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen and when generation ends; None = the model's default."""

    temperature: float | None = None
    """Sampling temperature; 0 is greedy."""
    top_k: int | None = None
    """How many of the likeliest tokens are kept; 0 keeps all."""
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    """Upper bound of the answer; the neuron clamps it to what is left of the context."""
    min_tokens: int = 0
    """Number of tokens before which no end token can be chosen."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these texts; none of that text is returned."""
    include_stop: bool = False
    """Returns the stop text, too."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """Never ends at the model's own end tokens (for benchmarks)."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the answer already contains."""
    frequency_penalty: float | None = None
    """Subtracted once for each occurrence of the token in the answer."""
    repetition_penalty: float | None = None
    """Divides the positive logits and multiplies the negative logits of every token in prompt and
    answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and the value added to its logit."""
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that can be chosen; empty = all."""
    logprobs: int | None = None
    """Returns log-probabilities of the answer's tokens, and of this many best alternatives each;
    None = off."""


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One prompt and how to continue it: a conversation, a text, or tokens."""

    model: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    sampling: Sampling = Sampling()
    template_options: dict[str, bool | int | float | str | None] = {}
    """Extra variables of the chat template, such as ``enable_thinking``."""
    prompt: str | tuple[int, ...] | None = None
    """The prompt itself instead of messages; no template is applied."""
    add_special: bool = True
    """Adds the tokens with which the model's texts begin to a text prompt."""
    truncates: bool = False
    """Drops the oldest turns of a conversation that is too long."""
    echo: bool = False
    """Begins the answer with the prompt's text."""
    continues_last: bool = False
    """Takes the last message as the beginning of the answer."""
    one_call: bool = False
    """Ends the answer with its first tool call."""
    call: str | None = None
    """The tool that the answer must call first; empty = any tool, None = no call is required."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token and the natural logarithm of its probability."""

    token: bytes
    """The token's text; part of a character where the vocabulary splits one."""
    logprob: float | None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token of the answer, and the likeliest tokens in its place."""

    token: bytes
    logprob: float | None
    """None for a prompt's first token, which has no predecessor."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens, in descending order."""


class FinishReason(StrEnum):
    """Why a stream ended."""

    STOP = "stop"
    """An end token or a stop text was reached."""
    LENGTH = "length"
    """``max_tokens`` or the context limit was reached."""
    TOOL_CALLS = "tool_calls"
    """Like STOP, and the answer contains at least one complete tool call."""
    CANCELLED = "cancelled"
    """Its gateway cancelled it."""


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
