"""Decodes an Anthropic body into a neutral request. Pure; every refusal names the field and says
what to do.

To keep the prefix cache useful, system turns in the middle of a conversation stay where they are,
and what changes with every request is dropped.
"""

from collections.abc import Iterable

import msgspec

from cortex.api.dialects.base import Call
from cortex.api.dialects.messages.types import Block, CountRequest, MessagesRequest, Turn
from cortex.api.dialects.request_fields import (
    bounded,
    check_count,
    checked_model,
    invalid,
    joined,
    priority_of,
    read,
    stops_of,
    thinking_options,
    tool_of,
)
from cortex.dispatch.answer import Choice
from protocol.generate import GenerateRequest, Message, Role, Sampling, Tool, ToolCall

_MESSAGES = msgspec.json.Decoder(MessagesRequest)
_COUNT = msgspec.json.Decoder(CountRequest)
_BILLING = "x-anthropic-billing-header"
"""How Claude Code's first system block begins; that block is different in every request."""
_UNREAD = ("image", "container_upload")
_GAP = "\n\n"
_REMINDER = "<system-reminder>\n{}\n</system-reminder>"


class Echo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the renderer needs to know of the request."""

    hides_thinking: bool = False


def decode_messages(body: bytes) -> Call:
    """Decodes a body; raises ``FleetError(INVALID_REQUEST)`` with the path of the field at
    fault."""
    asked = read(_MESSAGES, body)
    request = msgspec.structs.replace(
        _request(asked),
        sampling=Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=None if asked.top_k is None else max(asked.top_k, 0),
            max_tokens=bounded(asked.max_tokens),
            stop=stops_of(asked.stop_sequences, "stop_sequences"),
        ),
    )
    hides = asked.thinking is not None and asked.thinking.display == "omitted"
    return Call(
        choices=(Choice(request),),
        model=asked.model,
        stream=bool(asked.stream),
        priority=priority_of(asked.service_tier),
        include_usage=True,
        echo=msgspec.json.encode(Echo(hides_thinking=hides)),
    )


def decode_count(body: bytes) -> GenerateRequest:
    """Decodes the prompt whose tokens are to be counted; raises like :func:`decode_messages`."""
    return _request(read(_COUNT, body))


def _request(asked: CountRequest) -> GenerateRequest:
    tools, call = _tools(asked)
    turns = [turn for i, t in enumerate(asked.messages) for turn in _turn(t, f"messages[{i}]")]
    system = "\n\n".join(_system(asked))
    if system:
        turns.insert(0, Message(Role.SYSTEM, system))
    if not turns:
        raise invalid(
            "messages: none of them contains text. Send what the model should answer.", "messages"
        )
    messages = _merged(turns)
    choice = asked.tool_choice
    return GenerateRequest(
        model=checked_model(asked.model),
        messages=messages,
        tools=tools,
        call=call,
        one_call=bool(choice and choice.disable_parallel_tool_use),
        template_options=_options(asked),
        continues_last=_is_prefill(messages[-1]),
    )


def _is_prefill(last: Message) -> bool:
    return last.role is Role.ASSISTANT and bool(last.content) and not last.tool_calls


def _options(asked: CountRequest) -> dict[str, bool | int | float | str | None]:
    effort = asked.output_config.effort if asked.output_config else None
    thinks = asked.thinking is not None and asked.thinking.type != "disabled"
    return {**thinking_options(effort), "enable_thinking": thinks}


# -- messages --------------------------------------------------------------------------------------


def _system(asked: CountRequest) -> Iterable[str]:
    """Lists the texts of the system prompt."""
    blocks = [Block("text", asked.system)] if isinstance(asked.system, str) else asked.system
    for block in blocks or ():
        if block.text and not block.text.startswith(_BILLING):
            yield block.text
    form = (asked.output_config and asked.output_config.format) or asked.output_format
    if form is not None and form.type == "json_schema":
        # Asked for in words until answers can be constrained.
        yield (
            "Answer with one JSON object that matches this JSON schema, and with nothing else: "
            + bytes(form.schema).decode()
        )


def _turn(turn: Turn, path: str) -> list[Message]:
    content = turn.content
    blocks = [Block("text", content)] if isinstance(content, str) else content
    if turn.role == "assistant":
        return [_assistant(blocks, path)]
    if turn.role == "system":
        text = "\n\n".join(_texts(blocks, f"{path}.content"))
        return [Message(Role.SYSTEM, text)] if text else []
    return _user(blocks, path)


def _assistant(blocks: list[Block], path: str) -> Message:
    calls = []
    for number, block in enumerate(blocks):
        if block.type != "tool_use":
            continue
        if not block.name:
            where = f"{path}.content[{number}].name"
            raise invalid(f"{where}: a tool_use block must name its tool.", where)
        calls.append(ToolCall(block.id or "", block.name, bytes(block.input).decode()))
    return Message(
        Role.ASSISTANT,
        content="".join(_texts(blocks, f"{path}.content")),
        reasoning="".join(block.thinking or "" for block in blocks if block.type == "thinking"),
        tool_calls=tuple(calls),
    )


def _user(blocks: list[Block], path: str) -> list[Message]:
    """Splits a user's turn into messages: one for each run of text and one for each tool result."""
    messages: list[Message] = []
    texts: list[Block] = []

    def flush() -> None:
        if texts:
            text = "\n\n".join(_texts(texts, f"{path}.content"))
            messages.append(Message(Role.USER, text))
            texts.clear()

    for number, block in enumerate(blocks):
        if block.type == "tool_result":
            flush()
            messages.append(_result(block, f"{path}.content[{number}]"))
        else:
            texts.append(block)
    flush()
    return messages


def _result(block: Block, path: str) -> Message:
    inner = block.content
    blocks = [Block("text", inner)] if isinstance(inner, str) else inner or []
    text = "\n".join(_texts(blocks, f"{path}.content"))
    if block.is_error and not text.lower().startswith(("error", "<")):
        text = f"Error: {text}"
    return Message(Role.TOOL, text, tool_call_id=block.tool_use_id or "")


def _texts(blocks: list[Block], path: str) -> list[str]:
    """Lists the texts of all blocks that have one."""
    found = []
    for number, block in enumerate(blocks):
        where = f"{path}[{number}]"
        if block.type in _UNREAD:
            raise invalid(f"{where}: this model cannot read images; send text.", where)
        if block.type == "document":
            found += _document(block, where)
        elif block.type == "search_result":
            inner = block.content if isinstance(block.content, list) else []
            source = block.source if isinstance(block.source, str) else ""
            heading = " ".join(filter(None, (block.title, source)))
            found.append("\n".join(filter(None, (heading, *_texts(inner, f"{where}.content")))))
        elif block.type == "text" and block.text is not None:
            found.append(block.text)
    return found


def _document(block: Block, path: str) -> list[str]:
    source = block.source
    if isinstance(source, str) or source is None or source.type != "text":
        kind = "nothing" if source is None or isinstance(source, str) else repr(source.type)
        raise invalid(
            f"{path}: documents are read as plain text only (source.type 'text'); this one is "
            f"{kind}. Send its text.",
            path,
        )
    return [text for text in (block.title, source.data) if text]


def _merged(turns: list[Message]) -> tuple[Message, ...]:
    """Merges adjacent turns of one speaker, and moves mid-conversation system turns into the turn
    before: many templates refuse them anywhere but at the start, and moving them there would change
    the prefix of every later prompt."""
    merged: list[Message] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if turn.role is Role.SYSTEM and last is not None and last.role is not Role.SYSTEM:
            turn = Message(Role.USER, _REMINDER.format(turn.content))
            if last.role is Role.TOOL:
                merged[-1] = joined(last, turn, _GAP)
                continue
        is_same = last is not None and turn.role is last.role and turn.role is not Role.TOOL
        if last is not None and is_same:
            merged[-1] = joined(last, turn, "" if turn.role is Role.ASSISTANT else _GAP)
        else:
            merged.append(turn)
    return tuple(merged)


# -- tools -----------------------------------------------------------------------------------------


def _tools(asked: CountRequest) -> tuple[tuple[Tool, ...], str | None]:
    """Returns the functions that are offered, and which of them must be called: None = no call is
    required, empty = any."""
    check_count(asked.tools)
    tools = tuple(
        tool_of(tool.name, tool.description, tool.input_schema, f"tools[{number}].input_schema")
        for number, tool in enumerate(asked.tools or ())
        if tool.is_function
    )
    choice = asked.tool_choice
    if choice is None or choice.type == "auto":
        return tools, None
    if choice.type == "none":
        return (), None
    names = [tool.name for tool in tools]
    wanted = choice.name or ""
    if choice.type == "any" and names:
        return tools, ""
    if choice.type == "tool" and wanted in names:
        return tools, wanted
    what = f"{wanted[:80]!r} is not" if choice.type == "tool" else "there is none"
    raise invalid(
        f"tool_choice: {what} among the tools that this gateway can offer, which are those with an "
        "input_schema; tools that run on Anthropic's servers are not available here.",
        "tool_choice",
    )
