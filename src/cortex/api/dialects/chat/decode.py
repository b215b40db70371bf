"""Decodes an OpenAI chat body into neutral requests. Pure; every refusal names the field and says
what to do."""

import msgspec

from cortex.api.dialects.base import Call
from cortex.api.dialects.chat.types import (
    AllowedTools,
    AssistantToolCall,
    ChatMessage,
    ChatRequest,
    ChosenFunction,
    Content,
    RefusalPart,
    TextPart,
    ToolChoice,
)
from cortex.api.dialects.request_fields import (
    StreamOptions,
    check_count,
    checked_model,
    invalid,
    priority_of,
    read,
    sampling_of,
    thinking_options,
    tool_of,
)
from cortex.dispatch.answer import Choice
from protocol.generate import GenerateRequest, Message, Role, Tool, ToolCall

_DECODER = msgspec.json.Decoder(ChatRequest)
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}


class Echo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the renderer needs to know of the request."""

    legacy: bool = False
    """Whether calls are written as ``function_call``."""
    logprobs: bool = False
    hides_reasoning: bool = False
    running_usage: bool = False


def decode_chat(body: bytes) -> Call:
    """Decodes a body; raises ``FleetError(INVALID_REQUEST)`` with the path of the field at
    fault."""
    chat = read(_DECODER, body)
    _refuse_unserved(chat)
    tools, call = _tools(chat)
    last = chat.messages[-1]
    request = GenerateRequest(
        model=checked_model(chat.model),
        messages=tuple(_message(m, i) for i, m in enumerate(chat.messages)),
        tools=tools,
        call=call,
        one_call=chat.parallel_tool_calls is False or chat.functions is not None,
        sampling=sampling_of(
            chat,
            max_tokens=chat.max_completion_tokens or chat.max_tokens,
            logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        ),
        template_options=thinking_options(chat.reasoning_effort)
        | (chat.chat_template_kwargs or {}),
        continues_last=bool(chat.continue_final_message) and last.role == "assistant",
    )
    options = chat.stream_options or StreamOptions()
    echo = Echo(
        legacy=chat.functions is not None,
        logprobs=bool(chat.logprobs),
        hides_reasoning=chat.include_reasoning is False,
        running_usage=bool(options.continuous_usage_stats),
    )
    return Call(
        choices=tuple(Choice(request, number) for number in range(chat.n or 1)),
        model=chat.model,
        stream=bool(chat.stream),
        seed=chat.seed,
        priority=priority_of(chat.service_tier),
        include_usage=bool(options.include_usage),
        echo=msgspec.json.encode(echo),
    )


def _refuse_unserved(chat: ChatRequest) -> None:
    if chat.response_format is not None and chat.response_format.type != "text":
        raise invalid(
            f"response_format: {chat.response_format.type!r} is not supported by this version of "
            "the gateway. Leave the field out, and ask for JSON in a message.",
            "response_format",
        )
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid("top_logprobs: requires logprobs = true.", "top_logprobs")
    if chat.modalities is not None and set(chat.modalities) - {"text"}:
        raise invalid("modalities: only text output is supported.", "modalities")
    if chat.continue_final_message and chat.messages[-1].role != "assistant":
        raise invalid(
            f"continue_final_message: the last message is from {chat.messages[-1].role!r}, not "
            "from the assistant.",
            "continue_final_message",
        )


def _message(message: ChatMessage, position: int) -> Message:
    earlier = [*(message.tool_calls or ())]
    if message.function_call is not None:
        earlier.append(AssistantToolCall(message.function_call))
    calls = tuple(
        ToolCall(call.id, call.function.name, call.function.arguments or "{}")
        for call in earlier
        if call.function is not None
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
            case _:
                path = f"messages[{position}].content[{number}]"
                kind = part.__struct_config__.tag
                raise invalid(f"{path}: this model cannot read {kind!r} parts; send text.", path)
    return "".join(texts)


def _tools(chat: ChatRequest) -> tuple[tuple[Tool, ...], str | None]:
    """Returns the functions that are offered, and which of them must be called: None = no call is
    required, empty = any."""
    check_count(chat.tools, chat.functions)
    tools = [
        tool_of(f.name, f.description, f.parameters, f"tools[{position}].function.parameters")
        for position, tool in enumerate(chat.tools or ())
        if tool.type == "function" and (f := tool.function) is not None
    ]
    tools += [
        tool_of(f.name, f.description, f.parameters, f"functions[{position}].parameters")
        for position, f in enumerate(chat.functions or ())
    ]
    match chat.function_call if chat.tool_choice is None else chat.tool_choice:
        case None | "auto":
            return tuple(tools), None
        case "none":
            return (), None
        case "required":
            return _at_least_one(tools), ""
        case str(other):
            raise invalid(
                f"tool_choice: {other[:40]!r} is unknown. Allowed: none, auto, required.",
                "tool_choice",
            )
        case ChosenFunction(name) | ToolChoice(function=ChosenFunction(name)):
            return _named(tools, name)
        case ToolChoice(allowed_tools=AllowedTools() as allowed):
            return _allowed(tools, allowed)
        case ToolChoice(kind):
            raise invalid(
                f"tool_choice: a tool of type {kind[:40]!r} cannot be chosen; choose a function.",
                "tool_choice",
            )


def _at_least_one(tools: list[Tool]) -> tuple[Tool, ...]:
    if not tools:
        raise invalid(
            "tool_choice: a call is required, but tools contains no function.", "tool_choice"
        )
    return tuple(tools)


def _named(tools: list[Tool], name: str) -> tuple[tuple[Tool, ...], str]:
    if name not in [tool.name for tool in tools]:
        raise invalid(f"tool_choice: {name[:80]!r} is not among the tools.", "tool_choice")
    return tuple(tools), name


def _allowed(tools: list[Tool], allowed: AllowedTools) -> tuple[tuple[Tool, ...], str | None]:
    names = {tool.function.name for tool in allowed.tools if tool.function is not None}
    kept = [tool for tool in tools if tool.name in names]
    if allowed.mode == "required":
        return _at_least_one(kept), ""
    return tuple(kept), None
