"""Renders events as Anthropic's messages. Blocks never overlap, and each delta fits its block."""

from collections.abc import Iterable, Sequence
from enum import Enum, auto

import msgspec

from cortex.api.dialects.cursor import UNNUMBERED, Place
from cortex.api.dialects.messages.decode import Echo
from cortex.api.dialects.sse_writer import Aggregator, Head, Writer
from cortex.api.error_responses import Style, envelope
from cortex.streams.events import Ended, Started
from protocol.errors import WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import FinishReason, Usage

_encode = msgspec.json.encode
_OPENAI_ID, _ANTHROPIC_ID = "call_", "toolu_"


class _Kind(Enum):
    """The kind of a block."""

    TEXT = auto()
    THINKING = auto()
    TOOL = auto()


_KINDS = {Text: _Kind.TEXT, Reasoning: _Kind.THINKING, ToolCallPart: _Kind.TOOL}


def event(name: str, **fields: object) -> bytes:
    """Renders one server-sent event, with its name in both places."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields}))


PING = event("ping")


class EventWriter(Writer):
    """Writes the events of one message."""

    def __init__(self, head: Head, seen: Place = (), number: int = UNNUMBERED) -> None:
        super().__init__(head, seen, number)
        self._echo = head.told(Echo)
        self._kind: _Kind | None = None
        self._index = -1
        self._has_begun = False

    def _openings(self, choice: int, started: Started | None) -> Iterable[bytes]:
        if started is None:
            return
        self._has_begun = True
        # How much of it was cached is known only with the first token; message_delta reports that.
        usage = usage_out(Usage(started.prompt_tokens, 0))
        message = _message(self.head, [], usage, stop_reason=None, stop_sequence=None)
        yield event("message_start", message=message)

    def started(self, choice: int, started: Started) -> list[bytes]:
        """Begins the message; a ping shows that more follows."""
        return [*super().started(choice, started), PING]

    def _before(self, choice: int, part: AnswerPart) -> Iterable[bytes]:
        kind = _KINDS[type(part)]
        is_new_call = isinstance(part, ToolCallPart) and bool(part.name)
        if kind is self._kind and not is_new_call:
            return
        yield from self._close()
        self._kind = kind
        self._index += 1
        yield event("content_block_start", index=self._index, content_block=_empty_block(part))

    def _said(self, choice: int, part: AnswerPart) -> bytes:
        match part:
            case Text(text):
                delta = {"type": "text_delta", "text": text}
            case Reasoning(text):
                if self._echo.hides_thinking:
                    return b""
                delta = {"type": "thinking_delta", "thinking": text}
            case ToolCallPart(arguments=arguments):
                delta = {"type": "input_json_delta", "partial_json": arguments}
        return event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterable[bytes]:
        """Ends the open block, if there is one."""
        if self._kind is _Kind.THINKING:
            delta = {"type": "signature_delta", "signature": signature(self.head.id)}
            yield event("content_block_delta", index=self._index, delta=delta)
        if self._kind is not None:
            yield event("content_block_stop", index=self._index)
        self._kind = None

    def _endings(self, choice: int, ended: Ended) -> Iterable[bytes]:
        if self._index < 0:  # an answer always has a block
            yield from self._before(choice, Text(""))
        yield from self._close()
        reason, stop = stop_of(ended)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        yield event("message_delta", delta=delta, usage=usage_out(ended.usage))
        yield event("message_stop")

    def failure(self, error: WireError) -> list[bytes]:
        """Renders an ``error`` event; a client that sees it retries."""
        return [b"event: error\ndata: %b\n\n" % envelope(error, Style.ANTHROPIC, self.head.id)]

    def keep_alive(self, waits_for: str) -> bytes:
        """Renders a ping once the message has begun; before that, a comment that says what the
        request waits for."""
        return PING if self._has_begun else super().keep_alive(waits_for)


class MessageAggregator(Aggregator):
    """Folds an answer into a message."""

    def answer(self, ended: Sequence[Ended]) -> Iterable[bytes]:
        """Renders the whole message as JSON."""
        (one,) = ended
        echo = self.head.told(Echo)
        blocks = [self._block(part, echo) for part in self.whole(0)]
        reason, stop = stop_of(one)
        message = _message(
            self.head,
            blocks or [{"type": "text", "text": ""}],
            usage_out(one.usage),
            stop_reason=reason,
            stop_sequence=stop,
        )
        return [_encode(message)]

    def _block(self, part: AnswerPart, echo: Echo) -> dict[str, object]:
        match part:
            case Text(text):
                return {"type": "text", "text": text}
            case Reasoning(text):
                shown = "" if echo.hides_thinking else text
                return _thinking(shown, signature(self.head.id))
            case ToolCallPart(_, call_id, name, arguments):
                return _tool_use(call_id, name, _object(arguments))


def _message(
    head: Head, content: list[dict[str, object]], usage: dict[str, object], **stop: str | None
) -> dict[str, object]:
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        **stop,
        "usage": usage,
    }


def _empty_block(part: AnswerPart) -> dict[str, object]:
    match part:
        case Text():
            return {"type": "text", "text": ""}
        case Reasoning():
            return _thinking("", "")
        case ToolCallPart(_, call_id, name):
            return _tool_use(call_id, name, msgspec.Raw(b"{}"))


def _thinking(text: str, signed: str) -> dict[str, object]:
    return {"type": "thinking", "thinking": text, "signature": signed}


def _tool_use(call_id: str, name: str, arguments: msgspec.Raw) -> dict[str, object]:
    if call_id.startswith(_OPENAI_ID):
        call_id = _ANTHROPIC_ID + call_id.removeprefix(_OPENAI_ID)
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def _object(arguments: str) -> msgspec.Raw:
    """Reads a call's arguments; JSON that the model left broken cannot be written as an object."""
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return msgspec.Raw(b"{}")
    return msgspec.Raw(arguments.encode())


def signature(job_id: str) -> str:
    """Makes a signature that is opaque to clients, which only send it back."""
    return f"cortex-{job_id}"


def stop_of(ended: Ended) -> tuple[str, str | None]:
    """Returns ``stop_reason`` and ``stop_sequence``. A complete call takes precedence over a stop
    text, and a limit over both."""
    match ended.reason:
        case FinishReason.LENGTH:
            return "max_tokens", None
        case FinishReason.TOOL_CALLS:
            return "tool_use", None
        case _ if ended.stop_text:
            return "stop_sequence", ended.stop_text
    return "end_turn", None


def usage_out(usage: Usage) -> dict[str, object]:
    """Converts token counts to Anthropic's: cached tokens are not part of ``input_tokens``."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard",
    }
