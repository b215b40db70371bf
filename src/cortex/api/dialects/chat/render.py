"""Renders events as OpenAI's chat answers.

Streaming writes chunks; non-streaming is a fold over the same events, so that the two cannot
disagree.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cortex.api.dialects.chat.decode import Echo
from cortex.api.dialects.cursor import UNNUMBERED, Place
from cortex.api.dialects.openai_answers import (
    DONE,
    FINGERPRINT,
    UsageOut,
    finish_text,
    logprob_items,
    usage_out,
)
from cortex.api.dialects.pieces import HOLE, RenderedItems, filled, listed
from cortex.api.dialects.sse_writer import Aggregator, Head, Writer
from cortex.api.error_responses import envelope
from cortex.streams.events import Ended, Started
from protocol.errors import WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import TokenLogprobs

_encode = msgspec.json.encode


class ChunkWriter(Writer):
    """Writes one answer as ``chat.completion.chunk`` objects."""

    trailer = DONE

    def __init__(self, head: Head, seen: Place = (), number: int = UNNUMBERED) -> None:
        super().__init__(head, seen, number)
        self._echo = head.told(Echo)
        constant = {
            "id": f"chatcmpl-{head.id}",
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "system_fingerprint": FINGERPRINT,
        }
        # The constant part of every chunk is encoded once.
        self._head = b"data: " + _encode(constant)[:-1] + b","
        self._tail = b',"usage":null}\n\n' if head.include_usage else b"}\n\n"
        self._shows_usage = head.include_usage and self._echo.running_usage

    def _chunk(
        self, choice: int, delta: bytes, finish: str | None = None, logprobs: bytes = b"null"
    ) -> bytes:
        return (
            self._head
            + b'"choices":[{"index":%d,"delta":' % choice
            + delta
            + b',"logprobs":'
            + logprobs
            + b',"finish_reason":'
            + (b"null" if finish is None else _encode(finish))
            + b"}]"
            + (self._usage(choice) if self._shows_usage else self._tail)
        )

    def _usage(self, choice: int) -> bytes:
        return b',"usage":' + _encode(usage_out([self._usage_so_far(choice)])) + b"}\n\n"

    def _openings(self, choice: int, started: Started | None) -> Iterable[bytes]:
        if started is None:  # announces the role
            yield self._chunk(choice, b'{"role":"assistant","content":""}')

    def _before(self, choice: int, part: AnswerPart) -> Iterable[bytes]:
        match part:
            case ToolCallPart(name=str(name)) if name and not self._echo.legacy:
                function = {"name": name, "arguments": ""}
                call = {
                    "index": part.index,
                    "id": part.id,
                    "type": "function",
                    "function": function,
                }
                yield self._chunk(choice, _encode({"tool_calls": [call]}))
            case ToolCallPart(name=str(name)) if name:
                called = {"function_call": {"name": name, "arguments": ""}}
                yield self._chunk(choice, _encode(called))

    def _said(self, choice: int, part: AnswerPart) -> bytes:
        match part:
            case Text(text, logprobs):
                shown = b"null"
                if self._echo.logprobs:
                    shown = b'{"content":[' + logprob_items(logprobs) + b'],"refusal":null}'
                return self._chunk(choice, b'{"content":' + _encode(text) + b"}", logprobs=shown)
            case Reasoning(text):
                if self._echo.hides_reasoning:
                    return b""
                return self._chunk(choice, b'{"reasoning_content":' + _encode(text) + b"}")
            case ToolCallPart(index, arguments=arguments):
                function = {"arguments": arguments}
                if not arguments:
                    return b""
                if self._echo.legacy:
                    return self._chunk(choice, _encode({"function_call": function}))
                call = {"index": index, "function": function}
                return self._chunk(choice, _encode({"tool_calls": [call]}))

    def _endings(self, choice: int, ended: Ended) -> Iterable[bytes]:
        yield self._chunk(choice, b"{}", _finish(ended, self._echo))

    def _closings(self, ended: Sequence[Ended]) -> Iterable[bytes]:
        if self.head.include_usage:
            yield self._head + b'"choices":[],"usage":' + _encode(_usage(ended)) + b"}\n\n"

    def failure(self, error: WireError) -> list[bytes]:
        """Renders an error object, without ``[DONE]``, because the answer is incomplete."""
        return [b"data: " + envelope(error) + b"\n\n"]


class ChatAggregator(Aggregator):
    """Folds an answer into a ``chat.completion``."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._echo = head.told(Echo)
        self._logprobs = [RenderedItems() for _ in range(head.choices)]

    def _scored(self, choice: int, entries: Sequence[TokenLogprobs]) -> None:
        if self._echo.logprobs:
            self._logprobs[choice].add(logprob_items(entries))

    def answer(self, ended: Sequence[Ended]) -> Iterator[bytes]:
        """Renders the whole answer as JSON, choice by choice."""
        document = _encode(
            {
                "id": f"chatcmpl-{self.head.id}",
                "object": "chat.completion",
                "created": self.head.created,
                "model": self.head.model,
                "choices": [HOLE],
                "usage": _usage(ended),
                "service_tier": "default",
                "system_fingerprint": FINGERPRINT,
            }
        )
        return listed(document, (self._choice(number, one) for number, one in enumerate(ended)))

    def _choice(self, number: int, ended: Ended) -> list[bytes]:
        parts = self.whole(number)
        texts = [part for part in parts if isinstance(part, Text)]
        content = "".join(text.text for text in texts)
        reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
        calls = [part for part in parts if isinstance(part, ToolCallPart)]
        message: dict[str, object] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
            "annotations": [],
        }
        if reasoning and not self._echo.hides_reasoning:
            message["reasoning_content"] = reasoning
        if calls and self._echo.legacy:
            message["function_call"] = _function(calls[0])
        elif calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _function(call)} for call in calls
            ]
        shows = self._echo.logprobs
        choice = {
            "index": number,
            "message": message,
            "logprobs": {"content": [HOLE], "refusal": None} if shows else None,
            "finish_reason": _finish(ended, self._echo),
        }
        return filled(_encode(choice), [self._logprobs[number].pieces()] if shows else [])


def _usage(ended: Sequence[Ended]) -> UsageOut:
    return usage_out([one.usage for one in ended])


def _function(call: ToolCallPart) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def _finish(ended: Ended, echo: Echo) -> str:
    text = finish_text(ended.reason)
    return "function_call" if echo.legacy and text == "tool_calls" else text
