"""OpenAI chat body → neutral request. Pure; every refusal names the field and says what to do."""

import re
from typing import NamedTuple

import msgspec

from cortex.api.openai_types import (
    ChatMessage,
    ChatRequest,
    Content,
    ImagePart,
    RefusalPart,
    TextPart,
)
from protocol.errors import ErrorCode, FleetError
from protocol.generate import GenerateRequest, Message, Role, Sampling, Tool, ToolCall
from protocol.job import Priority
from protocol.names import InvalidName, check_model_id

_DECODER = msgspec.json.Decoder(ChatRequest)
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
_MAX_STOPS = 16
_PRIORITIES = {"priority": Priority.HIGH, "flex": Priority.LOW}
"""By ``service_tier``; every other tier is a normal request."""


class ChatCall(NamedTuple):
    """A decoded request: the neutral part, and what only the dialect needs."""

    generate: GenerateRequest
    seed: int | None
    priority: Priority
    stream: bool
    include_usage: bool


def decode_chat(body: bytes) -> ChatCall:
    """Raises ``FleetError(INVALID_REQUEST)`` with the path of the field at fault."""
    try:
        chat = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(*_explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"The body is not valid JSON: {error}.", "") from None
    _refuse_unserved(chat)
    try:
        check_model_id(chat.model)
    except InvalidName as error:
        raise _invalid(f"model: {error}.", "model") from None
    tools = _tools(chat)
    return ChatCall(
        GenerateRequest(
            model=chat.model,
            messages=tuple(_message(m, i) for i, m in enumerate(chat.messages)),
            tools=tools,
            sampling=_sampling(chat),
            template_options=_template_options(chat),
        ),
        seed=chat.seed,
        priority=_PRIORITIES.get(chat.service_tier or "", Priority.NORMAL),
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
    )


def _invalid(message: str, param: str) -> FleetError:
    return FleetError(ErrorCode.INVALID_REQUEST, message, param=param)


def _explain(text: str) -> tuple[str, str]:
    """msgspec's sentence, with the path in front: ``messages[0].role: Invalid enum value …``."""
    match = _PATH.search(text)
    if not match:
        field = re.search(r"missing required field `(\w+)`", text)
        return f"{text}.", field[1] if field else ""
    path = match[1]
    field = re.search(r"missing required field `(\w+)`", text)
    if field:
        path = f"{path}.{field[1]}".lstrip(".")
    return f"{path}: {text[: match.start()]}.", path


def _refuse_unserved(chat: ChatRequest) -> None:
    """What would silently change the answer is refused, not ignored."""
    unserved = {
        "n": chat.n is not None and chat.n > 1,
        "logprobs": bool(chat.logprobs),
        "frequency_penalty": bool(chat.frequency_penalty),
        "presence_penalty": bool(chat.presence_penalty),
        "repetition_penalty": chat.repetition_penalty not in (None, 1.0),
        "logit_bias": bool(chat.logit_bias),
        "response_format": chat.response_format is not None and chat.response_format.type != "text",
        "tool_choice": chat.tool_choice not in (None, "none", "auto"),
    }
    for field, is_asked in unserved.items():
        if is_asked:
            raise _invalid(
                f"{field}: this value is not supported by this version of the gateway. "
                "Leave the field out.",
                field,
            )


def _message(message: ChatMessage, position: int) -> Message:
    calls = tuple(
        ToolCall(call.id, call.function.name, call.function.arguments or "{}")
        for call in message.tool_calls or ()
    )
    return Message(
        role=_ROLES[message.role],
        content=_text(message.content, position),
        reasoning=message.reasoning_content or message.reasoning or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
    )


def _text(content: Content, position: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for number, part in enumerate(content):
        match part:
            case TextPart(text) | RefusalPart(text):
                texts.append(text)
            case ImagePart():
                path = f"messages[{position}].content[{number}]"
                raise _invalid(f"{path}: this model does not read images; send text.", path)
    return "".join(texts)


def _tools(chat: ChatRequest) -> tuple[Tool, ...]:
    if chat.tool_choice == "none":
        return ()
    return tuple(
        Tool(function.name, function.description or "", _schema(function.parameters, position))
        for position, tool in enumerate(chat.tools or ())
        if tool.type == "function" and (function := tool.function) is not None
    )


def _schema(raw: msgspec.Raw, position: int) -> msgspec.Raw:
    """A tool's parameters: passed on as they are, once it is certain that they are an object."""
    path = f"tools[{position}].function.parameters"
    try:
        schema = msgspec.json.decode(raw, type=dict[str, object] | None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"{path}: not a JSON schema object: {error}.", path) from None
    return msgspec.Raw(b"{}") if schema is None else raw


def _sampling(chat: ChatRequest) -> Sampling:
    stop = (chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ())
    if len(stop) > _MAX_STOPS:
        raise _invalid(f"stop: {len(stop)} texts, at most {_MAX_STOPS} are allowed.", "stop")
    return Sampling(
        temperature=chat.temperature,
        top_k=None if chat.top_k is None else max(chat.top_k, 0),
        top_p=chat.top_p,
        min_p=chat.min_p,
        max_tokens=_bounded(chat.max_completion_tokens or chat.max_tokens),
        min_tokens=chat.min_tokens or 0,
        stop=tuple(text for text in stop if text),
        stop_token_ids=tuple(chat.stop_token_ids or ()),
        ignore_eos=bool(chat.ignore_eos),
    )


def _bounded(max_tokens: int | None) -> int | None:
    """Clients write absurd limits; the neuron clamps them to its context, the bus to 64 bits."""
    return None if max_tokens is None else min(max_tokens, 2**31 - 1)


def _template_options(chat: ChatRequest) -> dict[str, bool | int | float | str | None]:
    options = dict(chat.chat_template_kwargs or {})
    if chat.reasoning_effort is not None:
        thinks = chat.reasoning_effort not in ("none", "minimal")
        options.setdefault("enable_thinking", thinks)
        options.setdefault("reasoning_effort", chat.reasoning_effort)
    return options
