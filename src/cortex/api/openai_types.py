"""What OpenAI's clients send to ``/v1/chat/completions`` and what they get back.

Unknown fields are ignored: clients send many. Wrong types of known fields are refused by name.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]


class TextPart(Struct, tag_field="type", tag="text", frozen=True):
    """Text content."""

    text: str


class RefusalPart(Struct, tag_field="type", tag="refusal", frozen=True):
    """An earlier refusal, sent back as history."""

    refusal: str


class ImagePart(Struct, tag_field="type", tag="image_url", frozen=True):
    """An image; refused with a clear error while no architecture reads images."""

    image_url: msgspec.Raw = msgspec.Raw(b"null")


ContentPart = TextPart | RefusalPart | ImagePart
Content = str | list[ContentPart] | None


class FunctionCall(Struct, frozen=True):
    """The function of an earlier call."""

    name: str
    arguments: str | None = "{}"


class AssistantToolCall(Struct, frozen=True):
    """A call that the assistant made in an earlier turn."""

    function: FunctionCall
    id: str = ""


class ChatMessage(Struct, frozen=True):
    """One turn as sent by the client; roles are folded later."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class FunctionTool(Struct, frozen=True):
    """A function as a tool describes it."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"{}")


class AnyTool(Struct, frozen=True):
    """A tool of any type; other types than ``function`` are skipped."""

    type: str = "function"
    function: FunctionTool | None = None


class StreamOptions(Struct, frozen=True):
    """Options of a streaming answer."""

    include_usage: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """Constrained output; only ``text`` is served."""

    type: str = "text"


class ChatRequest(Struct, frozen=True):
    """The body of ``POST /v1/chat/completions``."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Fraction | None = None
    seed: Integer | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: str | dict[str, msgspec.Raw] | None = None
    chat_template_kwargs: dict[str, bool | Integer | float | str | None] | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    # Known to the dialect and not served yet: refused unless they ask for nothing.
    logprobs: bool | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None


# -- answers -----------------------------------------------------------------------------------


class FunctionOut(Struct, frozen=True, omit_defaults=True):
    """The function of a call; in a stream, pieces of it."""

    arguments: str
    name: str | None = None


class ToolCallOut(Struct, frozen=True, omit_defaults=True):
    """A tool call in an answer; ``index`` only in streams."""

    function: FunctionOut
    index: int | None = None
    id: str | None = None
    type: str | None = None


class PromptDetails(Struct, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Struct, frozen=True):
    """What the answer's tokens were."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageOut(Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
