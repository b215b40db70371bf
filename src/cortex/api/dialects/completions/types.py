"""The types of what clients send to ``/v1/completions``."""

from typing import Annotated

from msgspec import Meta

from cortex.api.dialects.request_fields import Count, SamplingFields, StreamOptions, TokenId


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of ``POST /v1/completions``."""

    model: Annotated[str, Meta(min_length=1)]
    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    """One text, the tokens of one, or a list of either."""
    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: str | None = None
