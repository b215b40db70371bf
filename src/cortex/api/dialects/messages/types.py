"""The types of what Anthropic's clients send to ``/v1/messages`` and ``/v1/messages/count_tokens``.

Blocks of a type that is not listed here are ignored: clients send those of newer versions.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cortex.api.dialects.request_fields import Fraction, Limit, Temperature, empty


class Block(Struct, frozen=True):
    """One content block of any type; which fields count depends on it."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.field(default_factory=empty)
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None
    is_error: bool | None = None
    title: str | None = None
    source: "str | Source | None" = None


class Source(Struct, frozen=True):
    """Where an image or a document comes from."""

    type: str
    data: str | None = None


class Turn(Struct, frozen=True):
    """One message as sent by the client."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnyTool(Struct, frozen=True):
    """A tool; those that Anthropic's servers would run are skipped."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.field(default_factory=empty)

    @property
    def is_function(self) -> bool:
        """Whether the client itself runs the tool and declares how to call it."""
        return self.type in (None, "custom")


class ToolChoice(Struct, frozen=True):
    """Whether a tool must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True):
    """Whether the model should think, and whether its thinking is shown."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(Struct, frozen=True):
    """The required form of the answer."""

    type: str
    schema: msgspec.Raw = msgspec.field(default_factory=empty)


class OutputConfig(Struct, frozen=True):
    """The effort, and the form of the answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /v1/messages/count_tokens``: everything that makes up the prompt."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The earlier location of ``output_config.format``."""


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """The body of ``POST /v1/messages``."""

    max_tokens: Limit
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    stop_sequences: list[str] | None = None
    service_tier: str | None = None
