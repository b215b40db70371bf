"""The types of what OpenAI's clients send to ``/v1/responses``.

Items and tools of a type that is not listed here are ignored: clients send those of newer versions.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from cortex.api.dialects.request_fields import Fraction, Limit, Penalty, Temperature, empty


class ContentPart(Struct, frozen=True):
    """One piece of content, of any type."""

    type: str = "input_text"
    text: str | None = None
    refusal: str | None = None


class Item(Struct, frozen=True):
    """One item of the input, of any type; which fields count depends on it."""

    type: str | None = None
    """The item's type; absent for messages."""
    role: str | None = None
    content: str | list[ContentPart] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    """The input of a custom tool's call."""
    output: str | list[ContentPart] | None = None
    encrypted_content: str | None = None


class AnyTool(Struct, frozen=True):
    """A tool of any type; all types but ``function`` are skipped."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=empty)
    strict: bool | None = None


class ToolChoice(Struct, frozen=True):
    """``tool_choice`` as an object: one function, or the allowed ones."""

    type: str
    name: str | None = None
    mode: str = "auto"
    tools: list[AnyTool] = []


class TextFormat(Struct, frozen=True):
    """The form of the text; only ``text`` is served."""

    type: str = "text"


class TextOptions(Struct, frozen=True):
    """Options for the answer's text."""

    format: TextFormat | None = None


class Reasoning(Struct, frozen=True):
    """How much the model should think."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /v1/responses``."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Limit | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    store: bool | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None
