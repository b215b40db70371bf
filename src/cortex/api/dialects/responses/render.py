"""Renders events as OpenAI's responses: items one after the other, each with its own events."""

import time
from collections.abc import Iterable, Sequence

import msgspec

from cortex.api.dialects.cursor import UNNUMBERED, Place
from cortex.api.dialects.openai_answers import DONE, logprob_items
from cortex.api.dialects.pieces import HOLE, Body, RenderedItems, filled
from cortex.api.dialects.responses.decode import Echo, sealed
from cortex.api.dialects.sse_writer import Aggregator, Head, Writer, continues
from cortex.api.error_responses import http_of
from cortex.streams.events import Ended, Parts, Started
from protocol.errors import WireError
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart
from protocol.generate import FinishReason, Usage

_encode = msgspec.json.encode
_UNNUMBERED = b'"sequence_number":-1'
_PREFIXES = {Text: "msg", Reasoning: "rs", ToolCallPart: "fc"}
Json = dict[str, object]


class _Item:
    """One item of the output while it grows."""

    def __init__(self, head: Head, echo: Echo, number: int, part: AnswerPart) -> None:
        self.number = number
        self.kind = type(part)
        self.id = f"{_PREFIXES[self.kind]}_{head.id}_{number}"
        self._echo = echo
        self.first = Text("") if isinstance(part, Text) else part
        self._call = part if isinstance(part, ToolCallPart) else None
        self._texts: list[str] = []
        self._logprobs = RenderedItems()

    @property
    def text(self) -> str:
        """The text so far."""
        self._texts = ["".join(self._texts)]
        return self._texts[0]

    @property
    def name(self) -> str:
        """The name of the function."""
        return self._call.name if self._call else ""

    def add(self, part: AnswerPart) -> list[bytes]:
        """Appends a part to the item; returns its log-probabilities, rendered, if requested."""
        rendered: list[bytes] = []
        match part:
            case Text(text, logprobs):
                self._texts.append(text)
                if self._echo.logprobs:
                    rendered = [logprob_items([entry]) for entry in logprobs]
                    self._logprobs.add(b",".join(rendered))
            case Reasoning(text):
                self._texts.append(text)
            case ToolCallPart(arguments=arguments):
                self._texts.append(arguments)
        return rendered

    def fills(self) -> list[Sequence[bytes]]:
        """Returns what belongs into the holes of everything that shows its text."""
        return [self._logprobs.pieces()] if self.kind is Text else []

    def shown(self, status: str, *, is_empty: bool = False) -> Json:
        """Renders the item as JSON; empty when it has only begun."""
        base: Json = {"id": self.id, "status": status}
        if self._call is not None:
            return base | {
                "type": "function_call",
                "call_id": self._call.id,
                "name": self._call.name,
                "arguments": "" if is_empty else self.text,
            }
        if self.kind is Reasoning:
            seals = self._echo.encrypted and not is_empty
            return base | {
                "type": "reasoning",
                "summary": [],
                "content": [] if is_empty else [self.content()],
                "encrypted_content": sealed(self.text) if seals else None,
            }
        content = [] if is_empty else [self.content()]
        return base | {"type": "message", "role": "assistant", "content": content}

    def content(self, *, is_empty: bool = False) -> Json:
        """Renders its only content part."""
        text = "" if is_empty else self.text
        if self.kind is Reasoning:
            return {"type": "reasoning_text", "text": text}
        shown = [] if is_empty else [HOLE]
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": shown}


class ResponseWriter(Writer):
    """Writes the events of one response.

    Its end shows everything four times over: the pieces of it are shared, not copied.
    """

    trailer = DONE

    def __init__(self, head: Head, seen: Place = (), number: int = UNNUMBERED) -> None:
        super().__init__(head, seen, number)
        self._echo = head.told(Echo)
        self._items: list[_Item] = []
        self._is_open = False
        self._unsaid: list[bytes] = []  # the latest tokens' log-probabilities, rendered

    numbers = True

    def numbered(self, body: bytes, number: int) -> bytes:
        """Writes its number into an event."""
        return body.replace(_UNNUMBERED, b'"sequence_number":%d' % number, 1)

    def _openings(self, choice: int, started: Started | None) -> Iterable[Body]:
        if started is None:
            response = _response(self.head, self._echo, "in_progress", [])
            yield _event("response.created", response=response)
            yield _event("response.in_progress", response=response)

    def parts(self, choice: int, events: Iterable[Parts]) -> list[bytes]:
        """Renders pieces of the answer."""
        out = super().parts(choice, events)
        self._unsaid.clear()
        return out

    def _before(self, choice: int, part: AnswerPart) -> Iterable[Body]:
        last = self._items[-1] if self._is_open else None
        is_new_call = isinstance(part, ToolCallPart) and bool(part.name)
        if last is not None and last.kind is type(part) and not is_new_call:
            return
        yield from self._close("completed")
        item = _Item(self.head, self._echo, len(self._items), part)
        self._items.append(item)
        self._is_open = True
        yield _event(
            "response.output_item.added",
            output_index=item.number,
            item=item.shown("in_progress", is_empty=True),
        )
        if item.kind is not ToolCallPart:
            yield self._of_part(
                "response.content_part.added", item, part=item.content(is_empty=True)
            )

    def _noted(self, choice: int, part: AnswerPart) -> None:
        self._unsaid += self._items[-1].add(part)

    def _said(self, choice: int, part: AnswerPart) -> bytes:
        item = self._items[-1]
        match part:
            case Text(text, logprobs):
                latest = self._unsaid[-len(logprobs) :] if logprobs else []
                shown = msgspec.Raw(b"[" + b",".join(latest) + b"]")
                return self._of_part("response.output_text.delta", item, delta=text, logprobs=shown)
            case Reasoning(text):
                return self._of_part("response.reasoning_text.delta", item, delta=text)
            case ToolCallPart(arguments=arguments) if arguments:
                return self._of_item(
                    "response.function_call_arguments.delta", item, delta=arguments
                )
        return b""

    def _close(self, status: str) -> Iterable[Body]:
        """Ends the open item, if there is one."""
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        fills = item.fills()
        if item.kind is ToolCallPart:
            yield self._of_item(
                "response.function_call_arguments.done",
                item,
                name=item.name,
                arguments=item.text,
            )
        else:
            if item.kind is Text:
                done = self._of_part(
                    "response.output_text.done", item, text=item.text, logprobs=[HOLE]
                )
            else:
                done = self._of_part("response.reasoning_text.done", item, text=item.text)
            yield filled(done, fills)
            done = self._of_part("response.content_part.done", item, part=item.content())
            yield filled(done, fills)
        done = _event(
            "response.output_item.done", output_index=item.number, item=item.shown(status)
        )
        yield filled(done, fills)

    def _endings(self, choice: int, ended: Ended) -> Iterable[Body]:
        if not self._items:  # an answer always has a message
            yield from self._before(choice, Text(""))
        status = _status(ended)
        yield from self._close(status)
        response = _response(self.head, self._echo, status, _shown(self._items, status), ended)
        yield filled(_event(f"response.{status}", response=response), _fills(self._items))

    def failure(self, error: WireError) -> list[bytes]:
        """Renders a failed response, which ends the stream for every client."""
        shown = _shown(self._items, "incomplete")
        response = _response(self.head, self._echo, "failed", shown, error=error)
        failed = self.numbered(_event("response.failed", response=response), self._number + 1)
        return [*filled(failed, _fills(self._items)), DONE]

    @staticmethod
    def _of_item(event: str, item: _Item, /, **fields: object) -> bytes:
        return _event(event, item_id=item.id, output_index=item.number, **fields)

    @staticmethod
    def _of_part(event: str, item: _Item, /, **fields: object) -> bytes:
        return _event(event, item_id=item.id, output_index=item.number, content_index=0, **fields)


class ResponseAggregator(Aggregator):
    """Folds an answer into a response."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._echo = head.told(Echo)
        self._items: list[_Item] = []

    def add(self, choice: int, parts: Iterable[AnswerPart]) -> None:
        """Adds pieces of the answer, in order."""
        for part in parts:
            if not self._items or not continues(self._items[-1].first, part):
                self._items.append(_Item(self.head, self._echo, len(self._items), part))
            self._items[-1].add(part)

    def answer(self, ended: Sequence[Ended]) -> Iterable[bytes]:
        """Renders the whole response as JSON."""
        (one,) = ended
        if not self._items:  # an answer always has a message
            self.add(0, [Text("")])
        status = _status(one)
        response = _response(self.head, self._echo, status, _shown(self._items, status), one)
        return filled(_encode(response), _fills(self._items))


def _shown(items: list[_Item], status: str) -> list[Json]:
    """Renders the output; only its last item can be incomplete."""
    last = len(items) - 1
    return [i.shown(status if i.number == last else "completed") for i in items]


def _fills(items: list[_Item]) -> list[Sequence[bytes]]:
    return [fill for item in items for fill in item.fills()]


def _event(event: str, /, **fields: object) -> bytes:
    """Renders one server-sent event with its name in both places; it gets its number when it is
    sent."""
    data = _encode({"type": event, "sequence_number": -1, **fields})
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def _status(ended: Ended) -> str:
    return "incomplete" if ended.reason is FinishReason.LENGTH else "completed"


def _response(
    head: Head,
    echo: Echo,
    status: str,
    output: list[Json],
    ended: Ended | None = None,
    error: WireError | None = None,
) -> Json:
    is_cut = ended is not None and ended.reason is FinishReason.LENGTH
    shown = msgspec.json.decode(echo.response, type=dict[str, msgspec.Raw])
    return {
        "id": f"resp_{head.id}",
        "object": "response",
        "created_at": head.created,
        "completed_at": int(time.time()) if status == "completed" else None,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": head.model,
        "output": output,
        "error": None if error is None else {"code": http_of(error).code, "message": error.message},
        "usage": None if ended is None else usage_out(ended.usage),
        **shown,
    }


def usage_out(usage: Usage) -> Json:
    """Renders the token counts of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
