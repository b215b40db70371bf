"""State machines that read the streams of each dialect as strictly as the strictest client, and say
what they add up to. A stream that breaks its grammar fails an assertion."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]


class Said(NamedTuple):
    """What an answer says, in whichever dialect."""

    reasoning: str
    text: str
    calls: tuple[tuple[str, str], ...]
    """Name and arguments."""
    finish: str
    """``stop``, ``length``, ``calls`` or ``stop_text``."""
    tokens: tuple[int, int]
    """Of the prompt and of the answer."""


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    data: str
    id: str


def events(body: str) -> Iterator[Event]:
    """Of a whole stream, comments left out."""
    for block in body.split("\n\n"):
        fields = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        found = {name: value for name, _, value in fields if name}
        if "data" in found:
            yield Event(found.get("event", ""), found["data"], found.get("id", ""))


# -- Chat Completions ------------------------------------------------------------------------------

_FINISH = {"stop": "stop", "length": "length", "tool_calls": "calls"}


def chat_whole(answer: Json, choice: int = 0) -> Said:
    """A ``chat.completion``."""
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["system_fingerprint"], str)
    one = answer["choices"][choice]
    assert one["index"] == choice
    message = one["message"]
    assert message["role"] == "assistant"
    calls = message.get("tool_calls", [])
    assert message["content"] is not None or calls
    for call in calls:
        assert call["type"] == "function"
        assert call["id"]
    return Said(
        message.get("reasoning_content", ""),
        message["content"] or "",
        tuple((c["function"]["name"], c["function"]["arguments"]) for c in calls),
        _FINISH[one["finish_reason"]],
        _chat_tokens(answer["usage"]),
    )


def _chat_tokens(usage: Json) -> tuple[int, int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] >= 0
    return usage["prompt_tokens"], usage["completion_tokens"]


def chat_stream(body: str, choice: int = 0) -> Said:
    """``chat.completion.chunk`` objects, with ``include_usage``."""
    found = list(events(body))
    assert found[-1].data == "[DONE]"
    chunks = [json.loads(event.data) for event in found[:-1]]
    assert not any(event.name for event in found), "event: lines are of other dialects"
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    texts = {"reasoning_content": "", "content": ""}
    calls: list[list[str]] = []
    finish = ""
    own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice]
    assert own[0]["delta"] == {"role": "assistant", "content": ""}
    for one in own[1:]:
        assert not finish, "nothing comes after the finish"
        assert set(one) == {"index", "delta", "logprobs", "finish_reason"}
        finish = one["finish_reason"] or ""
        for key, value in one["delta"].items():
            if key in texts:
                assert value
                texts[key] += value
                continue
            assert key == "tool_calls"
            (call,) = value
            if "id" in call:
                assert call["index"] == len(calls)
                assert (call["type"], call["function"]["arguments"]) == ("function", "")
                calls.append([call["function"]["name"], ""])
            else:
                assert set(call) == {"index", "function"}
                assert call["index"] == len(calls) - 1
                calls[-1][1] += call["function"]["arguments"]
    return Said(
        texts["reasoning_content"],
        texts["content"],
        tuple((name, arguments) for name, arguments in calls),
        _FINISH[finish],
        _chat_tokens(chunks[-1]["usage"]),
    )


# -- Messages --------------------------------------------------------------------------------------

_STOP = {
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "calls",
    "stop_sequence": "stop_text",
}


def message_whole(message: Json) -> Said:
    """A ``message``."""
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["content"]
    assert (message["stop_sequence"] is not None) == (message["stop_reason"] == "stop_sequence")
    reasoning = text = ""
    calls = []
    for block in message["content"]:
        match block["type"]:
            case "thinking":
                assert block["signature"]
                reasoning += block["thinking"]
            case "text":
                text += block["text"]
            case "tool_use":
                assert block["id"].startswith("toolu_")
                calls.append((block["name"], json.dumps(block["input"])))
    usage = message["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert usage["input_tokens"] > 0
    assert usage["cache_creation_input_tokens"] == 0
    finish = _STOP[message["stop_reason"]]
    return Said(reasoning, text, tuple(calls), finish, (prompt, usage["output_tokens"]))


def message_stream(body: str) -> Said:
    """The events of a message."""
    found = list(events(body))
    message = message_of([json.loads(event.data) for event in found])
    assert all(event.name == json.loads(event.data)["type"] for event in found)
    return message_whole(message)


def message_of(stream: Sequence[Json]) -> Json:
    """The message that its events add up to."""
    assert stream[0]["type"] == "message_start"
    message: Json = stream[0]["message"]
    assert message["stop_reason"] is message["stop_sequence"] is None
    assert message["content"] == []
    start_usage = message["usage"]
    assert start_usage["output_tokens"] == 0
    blocks: list[Json] = message["content"]
    arguments: str | None = None
    is_open = False
    for event in stream[1:]:
        match event["type"]:
            case "ping":
                pass
            case "content_block_start":
                assert not is_open, "blocks overlap"
                assert event["index"] == len(blocks)
                is_open, arguments = True, ""
                blocks.append(event["content_block"])
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                arguments = _grow(blocks[-1], event["delta"], arguments or "")
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(blocks) - 1
                is_open = False
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = _object(arguments or "")
                if blocks[-1]["type"] == "thinking":
                    assert blocks[-1]["signature"]
            case "message_delta":
                assert not is_open
                message |= event["delta"]
                message["usage"] = start_usage | event["usage"]
            case other:
                assert other == "message_stop"
    assert [event["type"] for event in stream[-2:]] == ["message_delta", "message_stop"]
    return message


def _object(text: str) -> Any:
    """Clients take what the model has left broken for an empty object, which no tool takes."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _grow(block: Json, delta: Json, arguments: str) -> str:
    match block["type"], delta["type"]:
        case "text", "text_delta":
            block["text"] += delta["text"]
        case "thinking", "thinking_delta":
            assert not block["signature"], "the signature comes last"
            block["thinking"] += delta["thinking"]
        case "thinking", "signature_delta":
            assert not block["signature"]
            block["signature"] = delta["signature"]
        case "tool_use", "input_json_delta":
            return arguments + str(delta["partial_json"])
        case misfit:
            raise AssertionError(f"the delta does not fit its block: {misfit}")
    return arguments


# -- Responses -------------------------------------------------------------------------------------

_FIELDS = """
    id object created_at completed_at status incomplete_details model previous_response_id
    instructions output error tools tool_choice truncation parallel_tool_calls text top_p
    presence_penalty frequency_penalty top_logprobs temperature reasoning usage max_output_tokens
    max_tool_calls store background service_tier metadata safety_identifier prompt_cache_key
"""
RESPONSE_FIELDS = frozenset(_FIELDS.split())
"""A client that is strict misses any that is absent."""


def response_whole(response: Json) -> Said:
    """A ``response``."""
    assert set(response) >= RESPONSE_FIELDS
    reasoning = text = ""
    calls = []
    for item in response["output"]:
        match item["type"]:
            case "reasoning":
                reasoning += "".join(part["text"] for part in item["content"])
            case "message":
                text += "".join(part["text"] for part in item["content"])
            case "function_call":
                calls.append((item["name"], item["arguments"]))
    is_cut = response["status"] == "incomplete"
    assert (response["incomplete_details"] is not None) == is_cut
    assert all(item["status"] == "completed" for item in response["output"][:-1])
    assert response["output"][-1]["status"] == response["status"]
    finish = "length" if is_cut else "calls" if calls else "stop"
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    tokens = usage["input_tokens"], usage["output_tokens"]
    return Said(reasoning, text, tuple(calls), finish, tokens)


def response_stream(body: str) -> Said:
    """The events of a response."""
    found = list(events(body))
    assert found[-1].data == "[DONE]"
    stream = [json.loads(event.data) for event in found[:-1]]
    assert all(e.name == one["type"] for e, one in zip(found, stream, strict=False))
    numbers = [one["sequence_number"] for one in stream]
    assert numbers == list(range(len(numbers)))
    kinds = [one["type"].removeprefix("response.") for one in stream]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] in ("completed", "incomplete")
    assert len({one["response"]["id"] for one in (stream[0], stream[1], stream[-1])}) == 1
    reader = _Items()
    for kind, one in zip(kinds[2:-1], stream[2:-1], strict=True):
        reader.read(kind, one)
    response: Json = stream[-1]["response"]
    assert reader.done == response["output"]
    return response_whole(response)


class _Items:
    """Follows the items of a response."""

    def __init__(self) -> None:
        self.done: list[Json] = []
        self._item: Json | None = None
        self._text = ""
        self._is_said = False
        self._part: Json | None = None

    def read(self, kind: str, event: Json) -> None:
        """The next event."""
        assert event["output_index"] == len(self.done)
        if kind == "output_item.added":
            assert self._item is None, "items overlap"
            self._item = event["item"]
            assert self._item["status"] == "in_progress"
            assert not self._item.get("content")
            self._text, self._is_said, self._part = "", False, None
            return
        assert self._item is not None
        if kind == "output_item.done":
            item = event["item"]
            assert self._is_said
            assert item["id"] == self._item["id"]
            whole = item.get("arguments")
            if whole is None:
                (part,) = item["content"]
                assert part == self._part
                whole = part["text"]
            assert whole == self._text
            self.done.append(item)
            self._item = None
            return
        assert event["item_id"] == self._item["id"]
        if kind == "content_part.added":
            assert event["part"]["text"] == ""
        elif kind == "content_part.done":
            assert self._is_said
            self._part = event["part"]
        elif kind.endswith(".delta"):
            assert not self._is_said
            assert event["delta"]
            self._text += event["delta"]
        else:
            assert kind.endswith(".done")
            assert event.get("text", event.get("arguments")) == self._text
            self._is_said = True


# -- Completions -----------------------------------------------------------------------------------


def completion_whole(answer: Json, choice: int = 0) -> Said:
    """A ``text_completion``."""
    assert answer["object"] == "text_completion"
    one = answer["choices"][choice]
    assert one["index"] == choice
    finish = _FINISH[one["finish_reason"]]
    return Said("", one["text"], (), finish, _chat_tokens(answer["usage"]))


def completion_stream(body: str, choice: int = 0) -> Said:
    """``text_completion`` chunks, with ``include_usage``."""
    found = list(events(body))
    assert found[-1].data == "[DONE]"
    chunks = [json.loads(event.data) for event in found[:-1]]
    assert chunks[-1]["choices"] == []
    text, finish = "", ""
    for chunk in chunks[:-1]:
        (one,) = chunk["choices"]
        if one["index"] == choice:
            assert not finish
            text += one["text"]
            finish = one["finish_reason"] or ""
    return Said("", text, (), _FINISH[finish], _chat_tokens(chunks[-1]["usage"]))
