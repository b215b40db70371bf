"""The API as an OpenAPI document, derived from the types that decode the bodies."""

from typing import Any, NamedTuple

import msgspec

from cortex import __version__
from cortex.api.dialects.chat.types import ChatRequest
from cortex.api.dialects.completions.types import CompletionRequest
from cortex.api.dialects.messages.types import CountRequest, MessagesRequest
from cortex.api.dialects.responses.types import ResponsesRequest
from cortex.api.endpoints.models import ModelList, ModelObject
from cortex.api.endpoints.tokenization import DetokenizeRequest, TokenizeRequest
from cortex.api.error_responses import AnthropicErrorEnvelope, ErrorEnvelope

_REFERENCE = "#/components/schemas/{name}"
_EVENT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["data"],
}
_STREAM = {"text/event-stream": {"schema": _EVENT}}
Json = dict[str, Any]


class _Operation(NamedTuple):
    """One ``POST`` endpoint of the document."""

    path: str
    summary: str
    request: type[msgspec.Struct]
    is_stream: bool = False
    error: type[msgspec.Struct] = ErrorEnvelope


_OPERATIONS = (
    _Operation("/v1/chat/completions", "OpenAI's Chat Completions", ChatRequest, is_stream=True),
    _Operation("/v1/completions", "OpenAI's Completions", CompletionRequest, is_stream=True),
    _Operation("/v1/responses", "OpenAI's Responses", ResponsesRequest, is_stream=True),
    _Operation(
        "/v1/messages", "Anthropic's Messages", MessagesRequest, True, AnthropicErrorEnvelope
    ),
    _Operation(
        "/v1/messages/count_tokens",
        "Count the tokens of a prompt",
        CountRequest,
        error=AnthropicErrorEnvelope,
    ),
    _Operation("/tokenize", "Tokenize a text or a conversation", TokenizeRequest),
    _Operation("/detokenize", "Turn tokens back into text", DetokenizeRequest),
    _Operation("/apply-template", "Render a conversation by the chat template", ChatRequest),
)


def document() -> bytes:
    """Builds the document as JSON."""
    types: list[type[msgspec.Struct]] = [
        *(operation.request for operation in _OPERATIONS),
        ErrorEnvelope,
        AnthropicErrorEnvelope,
        ModelList,
        ModelObject,
    ]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REFERENCE)
    named = dict(zip(unique, schemas, strict=True))
    paths: Json = {o.path: {"post": _post(o, named)} for o in _OPERATIONS}
    paths["/v1/models"] = {"get": _get("All models", named[ModelList])}
    one = _get("One model, by any of its names", named[ModelObject], named[ErrorEnvelope])
    one["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    paths["/v1/models/{model}"] = {"get": one}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "cortex", "version": __version__},
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _post(operation: _Operation, named: dict[type[msgspec.Struct], Json]) -> Json:
    answer: Json = {"application/json": {"schema": {"type": "object"}}}
    return {
        "summary": operation.summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": named[operation.request]}},
        },
        "responses": {
            "200": {
                "description": "The answer",
                "content": answer | (_STREAM if operation.is_stream else {}),
            },
            **_errors(named[operation.error], "4XX", "5XX"),
        },
    }


def _get(summary: str, schema: Json, error: Json | None = None) -> Json:
    found = {"description": summary, "content": {"application/json": {"schema": schema}}}
    refused = _errors(error, "4XX") if error else {}
    return {"summary": summary, "responses": {"200": found, **refused}}


def _errors(schema: Json, *statuses: str) -> Json:
    content = {"application/json": {"schema": schema}}
    return {status: {"description": "Why not", "content": content} for status in statuses}
