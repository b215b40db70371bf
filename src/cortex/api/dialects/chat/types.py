"""The types of what OpenAI's clients send to ``/v1/chat/completions``."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cortex.api.dialects.request_fields import Integer, Limit, SamplingFields, StreamOptions, empty


class TextPart(Struct, tag_field="type", tag="text", frozen=True):
    """A text part of a message."""

    text: str


class RefusalPart(Struct, tag_field="type", tag="refusal", frozen=True):
    """An earlier refusal, sent back as history."""

    refusal: str


class ImagePart(Struct, tag_field="type", tag="image_url", frozen=True):
    """An image; refused with a clear error while no architecture reads images."""

    image_url: Any = None


class AudioPart(Struct, tag_field="type", tag="input_audio", frozen=True):
    """Sound; refused like images."""

    input_audio: Any = None


class FilePart(Struct, tag_field="type", tag="file", frozen=True):
    """A file; refused like images."""

    file: Any = None


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | list[ContentPart] | None


class FunctionCall(Struct, frozen=True):
    """The function of an earlier call."""

    name: str
    arguments: str | None = "{}"


class AssistantToolCall(Struct, frozen=True):
    """A call that the assistant made in an earlier turn."""

    function: FunctionCall | None = None
    id: str = ""


class ChatMessage(Struct, frozen=True):
    """One turn as the client sent it; roles are folded later."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    tool_calls: list[AssistantToolCall] | None = None
    function_call: FunctionCall | None = None
    """A call as clients wrote it before there were tools."""
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(Struct, frozen=True):
    """A function as a tool declares it."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=empty)


class AnyTool(Struct, frozen=True):
    """A tool of any type; all types but ``function`` are skipped."""

    type: str = "function"
    function: Function | None = None


class ChosenFunction(Struct, frozen=True):
    """The function of a tool choice."""

    name: str


class AllowedTools(Struct, frozen=True):
    """The tools that may be called."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[AnyTool] = []


class ToolChoice(Struct, frozen=True):
    """``tool_choice`` as an object: one function, or the allowed ones."""

    type: str = "function"
    function: ChosenFunction | None = None
    allowed_tools: AllowedTools | None = None


class ResponseFormat(Struct, frozen=True):
    """Constrained output; only ``text`` is served."""

    type: str = "text"


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Limit | None = None
    max_tokens: Limit | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: str | ChosenFunction | None = None
    chat_template_kwargs: dict[str, bool | Integer | float | str | None] | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    service_tier: str | None = None
    modalities: list[str] | None = None
    response_format: ResponseFormat | None = None
    """Constrained output; only ``text`` is served until answers can be constrained."""
