"""Decodes a Responses body into a neutral request. Pure; every refusal names the field and says
what to do."""

import base64
import binascii
from collections.abc import Iterable

import msgspec

from cortex.api.dialects.base import Call
from cortex.api.dialects.request_fields import (
    bounded,
    check_count,
    checked_model,
    invalid,
    joined,
    priority_of,
    read,
    thinking_options,
    tool_of,
)
from cortex.api.dialects.responses.types import ContentPart, Item, ResponsesRequest, ToolChoice
from cortex.dispatch.answer import Choice
from protocol.generate import GenerateRequest, Message, Role, Sampling, Tool, ToolCall

_DECODER = msgspec.json.Decoder(ResponsesRequest)
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"


class Echo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the renderer needs to know of the request."""

    response: msgspec.Raw = msgspec.Raw(b"{}")
    """The fields of a response that repeat the request."""
    logprobs: bool = False
    encrypted: bool = False
    """Whether thinking is returned in a form that can be sent back."""


def decode_responses(body: bytes) -> Call:
    """Decodes a body; raises ``FleetError(INVALID_REQUEST)`` with the path of the field at
    fault."""
    asked = read(_DECODER, body)
    _refuse_unserved(asked)
    tools, call = _tools(asked)
    include = asked.include or []
    wants_logprobs = _LOGPROBS in include or bool(asked.top_logprobs)
    effort = asked.reasoning.effort if asked.reasoning else None
    request = GenerateRequest(
        model=checked_model(asked.model),
        messages=_messages(asked),
        tools=tools,
        call=call,
        one_call=asked.parallel_tool_calls is False or asked.max_tool_calls == 1,
        sampling=Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=bounded(asked.max_output_tokens),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logprobs=(asked.top_logprobs or 0) if wants_logprobs else None,
        ),
        template_options=thinking_options(effort),
        truncates=asked.truncation == "auto",
    )
    echo = Echo(msgspec.Raw(_shown(asked)), wants_logprobs, _ENCRYPTED in include)
    return Call(
        choices=(Choice(request),),
        model=asked.model,
        stream=bool(asked.stream),
        priority=priority_of(asked.service_tier),
        include_usage=True,
        echo=msgspec.json.encode(echo),
    )


def _refuse_unserved(asked: ResponsesRequest) -> None:
    form = asked.text.format if asked.text else None
    reasons = {
        "previous_response_id": asked.previous_response_id and "responses are not stored here",
        "conversation": asked.conversation and "conversations are not stored here",
        "prompt": asked.prompt and "prompts are not stored here",
        "background": asked.background and "answers are not computed in the background",
        "text.format": form
        and form.type != "text"
        and f"{form.type!r} is not supported by this version of the gateway",
    }
    for field, reason in reasons.items():
        if reason:
            raise invalid(
                f"{field}: {reason}. Leave the field out, and send the whole conversation as "
                "input.",
                field,
            )


# -- input -----------------------------------------------------------------------------------------


def _messages(asked: ResponsesRequest) -> tuple[Message, ...]:
    messages = [Message(Role.SYSTEM, asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return (*messages, Message(Role.USER, asked.input))
    for number, item in enumerate(asked.input):
        message = _message(item, f"input[{number}]")
        last = messages[-1] if messages else None
        if message is None:
            continue
        if last is not None and last.role is message.role is Role.ASSISTANT:
            # an assistant's thinking, text and calls form one turn
            messages[-1] = joined(last, message)
        else:
            messages.append(message)
    if not any(message.role is not Role.SYSTEM for message in messages):
        raise invalid("input: it contains no message. Send what the model should answer.", "input")
    return tuple(messages)


def _message(item: Item, path: str) -> Message | None:
    """Converts an item to a message; None for items that are not turns of the conversation."""
    match item.type:
        case None | "message":
            role = _ROLES.get(item.role or "")
            if role is None:
                raise invalid(
                    f"{path}.role: {item.role!r} is unknown. Allowed: user, assistant, system, "
                    "developer.",
                    f"{path}.role",
                )
            return Message(role, _text(item.content, f"{path}.content"))
        case "function_call" | "custom_tool_call" if item.name:
            arguments = item.arguments
            if arguments is None:
                arguments = msgspec.json.encode({"input": item.input or ""}).decode()
            call = ToolCall(item.call_id or item.id or "", item.name, arguments)
            return Message(Role.ASSISTANT, tool_calls=(call,))
        case "function_call_output" | "custom_tool_call_output" | "local_shell_call_output":
            text = _text(item.output, f"{path}.output")
            return Message(Role.TOOL, text, tool_call_id=item.call_id or item.id or "")
        case "reasoning":
            thought = _text(item.content, f"{path}.content") or _opened(item.encrypted_content)
            return Message(Role.ASSISTANT, reasoning=thought) if thought else None
        case "item_reference":
            raise invalid(f"{path}: items are not stored here. Send the item itself.", path)
    return None


def _text(content: str | list[ContentPart] | None, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for number, part in enumerate(content):
        where = f"{path}[{number}]"
        if part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type in _TEXTS:
            texts.append(part.text or "")
        else:
            raise invalid(
                f"{where}: this model cannot read {part.type[:40]!r} parts; send text.", where
            )
    return "".join(texts)


def sealed(text: str) -> str:
    """Encodes thinking as a string that clients send back unread."""
    return base64.b64encode(text.encode()).decode()


def _opened(text: str | None) -> str:
    """Decodes thinking that :func:`sealed` wrote; that of other services cannot be read."""
    try:
        return base64.b64decode(text or "", validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


# -- tools -----------------------------------------------------------------------------------------


def _tools(asked: ResponsesRequest) -> tuple[tuple[Tool, ...], str | None]:
    """Returns the functions that are offered, and which of them must be called: None = no call is
    required, empty = any."""
    check_count(asked.tools)
    tools = [
        tool_of(tool.name or "", tool.description, tool.parameters, f"tools[{number}].parameters")
        for number, tool in enumerate(asked.tools or ())
        if tool.type == "function"
    ]
    names = [tool.name for tool in tools]
    match asked.tool_choice:
        case None | "auto":
            return tuple(tools), None
        case "none":
            return (), None
        case "required" if tools:
            return tuple(tools), ""
        case ToolChoice(type="function", name=str(name)) if name in names:
            return tuple(tools), name
        case ToolChoice(type="allowed_tools", mode=mode, tools=allowed):
            kept = _kept(tools, (tool.name for tool in allowed))
            if mode != "required":
                return kept, None
            if kept:
                return kept, ""
    what = asked.tool_choice
    chosen = what if isinstance(what, str) else what.name or what.type
    raise invalid(
        f"tool_choice: {chosen[:80]!r} cannot be chosen; the functions are: {', '.join(names[:20])}"
        if names
        else f"tool_choice: {chosen[:80]!r} cannot be chosen, because tools contains no function.",
        "tool_choice",
    )


def _kept(tools: list[Tool], names: Iterable[str | None]) -> tuple[Tool, ...]:
    wanted = set(names)
    return tuple(tool for tool in tools if tool.name in wanted)


# -- what the response repeats ---------------------------------------------------------------------


def _shown(asked: ResponsesRequest) -> bytes:
    """Returns every field of a response that does not depend on the answer; clients fail when one
    is absent."""
    reasoning = asked.reasoning
    tools = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
        for tool in asked.tools or ()
        if tool.type == "function"
    ]
    return msgspec.json.encode(
        {
            "previous_response_id": None,
            "instructions": asked.instructions,
            "tools": tools,
            "tool_choice": asked.tool_choice or "auto",
            "truncation": asked.truncation or "disabled",
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "text": {"format": {"type": "text"}},
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "presence_penalty": asked.presence_penalty or 0.0,
            "frequency_penalty": asked.frequency_penalty or 0.0,
            "top_logprobs": asked.top_logprobs or 0,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": reasoning.summary if reasoning else None,
            },
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": asked.metadata or {},
            "safety_identifier": asked.safety_identifier,
            "prompt_cache_key": asked.prompt_cache_key,
            **({} if asked.user is None else {"user": asked.user}),  # must not be null
        }
    )
