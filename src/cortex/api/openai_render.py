"""Events → OpenAI's chat answers. Streaming writes chunks; non-streaming is a fold over the same
events, so the two cannot disagree."""

from collections.abc import Iterable, Sequence

import msgspec

from cortex.api.cursor import START, Cursor, unseen
from cortex.api.openai_types import (
    CompletionDetails,
    FunctionOut,
    PromptDetails,
    ToolCallOut,
    UsageOut,
)
from cortex.stream import Ended, Parts
from protocol.errors import WireError
from protocol.frames import Part, Reasoning, Text, ToolCallPart
from protocol.generate import FinishReason, Usage

from .errors import envelope

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


def keep_alive(waits_for: str) -> bytes:
    """An SSE comment, which says what the request waits for.

    No empty line ends it: openai-python would take that for the end of another event, as the last
    one's id still stands.
    """
    return f": {waits_for or 'keep-alive'}\n".encode()


class ChunkWriter:
    """Writes the chunks of one streaming answer, from any place of it on."""

    def __init__(
        self, job_id: str, model: str, created: int, include_usage: bool, seen: Cursor = START
    ) -> None:
        self._job_id = job_id
        self._include_usage = include_usage
        self._seen = seen
        self._index = 0
        head = {
            "id": f"chatcmpl-{job_id}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        # The constant part of every chunk is encoded once.
        self._head = b"data: " + _encode(head)[:-1] + b","
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def _chunk(self, place: Cursor, delta: bytes, finish: str | None = None) -> bytes:
        reason = _encode(finish)
        return (
            place.event_id(self._job_id)
            + self._head
            + b'"choices":[{"index":0,"delta":'
            + delta
            + b',"logprobs":null,"finish_reason":'
            + reason
            + b"}]"
            + self._tail
        )

    def opening(self) -> bytes:
        """The first chunk: who speaks."""
        if self._seen != START:
            return b""
        return self._chunk(Cursor(0), b'{"role":"assistant","content":""}')

    def parts(self, events: Sequence[Parts]) -> bytes:
        """Pieces of the answer, neighbours of one kind merged into one chunk."""
        if events:
            self._index = events[-1].next_index
        parts = unseen(events, self._seen)
        return b"".join(self._chunk(place, _delta(part)) for part, place in parts)

    def ending(self, ended: Ended) -> bytes:
        """The last chunks: why it ended, the usage when asked for, and the mark of the end."""
        places = [Cursor(self._index, 1), Cursor(self._index, 2)]
        out = b""
        if places[0] > self._seen:
            out += self._chunk(places[0], b"{}", finish_text(ended.reason))
        if self._include_usage and places[1] > self._seen:
            usage = _encode(usage_out(ended.usage))
            out += places[1].event_id(self._job_id)
            out += self._head + b'"choices":[],"usage":' + usage + b"}\n\n"
        return out + DONE

    @staticmethod
    def failure(error: WireError) -> bytes:
        """An error after the headers went out; without ``[DONE]``, for the answer is not."""
        return b"data: " + envelope(error) + b"\n\n"


def _delta(part: Part) -> bytes:
    match part:
        case Text(text):
            return b'{"content":' + _encode(text) + b"}"
        case Reasoning(text):
            return b'{"reasoning_content":' + _encode(text) + b"}"
        case ToolCallPart(index, call_id, name, arguments):
            if name:
                call = ToolCallOut(FunctionOut(arguments, name), index, call_id, "function")
            else:
                call = ToolCallOut(FunctionOut(arguments), index)
            return b'{"tool_calls":' + _encode([call]) + b"}"


class Folder:
    """Folds the events of one answer into a whole ``chat.completion``."""

    def __init__(self, job_id: str, model: str, created: int) -> None:
        self._job_id = job_id
        self._model = model
        self._created = created
        self._parts: list[Part] = []

    def add(self, parts: Iterable[Part]) -> None:
        """Pieces of the answer, in order."""
        self._parts.extend(parts)

    def answer(self, ended: Ended) -> bytes:
        """The whole answer as JSON."""
        content = "".join(p.text for p in self._parts if isinstance(p, Text))
        reasoning = "".join(p.text for p in self._parts if isinstance(p, Reasoning))
        calls = self._calls()
        message: dict[str, object] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
            "annotations": [],
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_text(ended.reason),
        }
        return _encode(
            {
                "id": f"chatcmpl-{self._job_id}",
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": [choice],
                "usage": usage_out(ended.usage),
            }
        )

    def _calls(self) -> list[ToolCallOut]:
        calls: dict[int, ToolCallOut] = {}
        for part in self._parts:
            if isinstance(part, ToolCallPart):
                known = calls.get(part.index)
                arguments = (known.function.arguments if known else "") + part.arguments
                call_id = known.id if known else part.id
                name = known.function.name if known else part.name
                calls[part.index] = ToolCallOut(
                    FunctionOut(arguments, name), id=call_id, type="function"
                )
        return [calls[index] for index in sorted(calls)]


def finish_text(reason: FinishReason) -> str:
    """OpenAI's word for why an answer ended."""
    return "stop" if reason is FinishReason.CANCELLED else str(reason)


def usage_out(usage: Usage) -> UsageOut:
    """OpenAI's token counts."""
    return UsageOut(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=usage.reasoning_tokens),
    )
