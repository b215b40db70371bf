"""Renders events as OpenAI's text completions."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cortex.api.dialects.completions.decode import Echo
from cortex.api.dialects.cursor import UNNUMBERED, Place
from cortex.api.dialects.openai_answers import (
    DONE,
    FINGERPRINT,
    LEAST_LOGPROB,
    UsageOut,
    finish_text,
    usage_out,
)
from cortex.api.dialects.pieces import HOLE, RenderedItems, filled, listed
from cortex.api.dialects.sse_writer import Aggregator, Head, Writer
from cortex.api.error_responses import envelope
from cortex.streams.events import Ended, Started
from protocol.errors import WireError
from protocol.frames import AnswerPart, Text
from protocol.generate import TokenLogprobs

_encode = msgspec.json.encode


class LogprobsOut(msgspec.Struct, frozen=True):
    """The log-probabilities of a choice, as parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


_EMPTY = {name: [HOLE] for name in LogprobsOut.__struct_fields__}
"""The lists before anything is put in."""


class CompletionWriter(Writer):
    """Writes one answer as ``text_completion`` chunks."""

    trailer = DONE

    def __init__(self, head: Head, seen: Place = (), number: int = UNNUMBERED) -> None:
        super().__init__(head, seen, number)
        self._echo = head.told(Echo)
        self._lengths = [0] * head.choices

    def _chunk(self, choices: list[dict[str, object]], usage: UsageOut | None = None) -> bytes:
        chunk = {**_constant(self.head), "choices": choices}
        if self.head.include_usage:
            chunk["usage"] = usage
        return b"data: " + _encode(chunk) + b"\n\n"

    def _chunk_of(self, choice: int, text: Text, finish: str | None) -> bytes:
        offset = self._lengths[choice] - len(text.text)
        logprobs = logprobs_out(text.logprobs, offset) if self._echo.logprobs else None
        shown = _choice(choice, text.text, logprobs, finish)
        is_shown = self._echo.running_usage
        return self._chunk([shown], usage_out([self._usage_so_far(choice)]) if is_shown else None)

    def _openings(self, choice: int, started: Started | None) -> Iterable[bytes]:
        return ()

    def _before(self, choice: int, part: AnswerPart) -> Iterable[bytes]:
        return ()

    def _noted(self, choice: int, part: AnswerPart) -> None:
        if isinstance(part, Text):
            self._lengths[choice] += len(part.text)

    def _said(self, choice: int, part: AnswerPart) -> bytes:
        if not isinstance(part, Text):
            return b""
        return self._chunk_of(choice, part, None)

    def _endings(self, choice: int, ended: Ended) -> Iterable[bytes]:
        yield self._chunk_of(choice, Text(""), finish_text(ended.reason))

    def _closings(self, ended: Sequence[Ended]) -> Iterable[bytes]:
        if self.head.include_usage:
            yield self._chunk([], _usage(ended, self._echo))

    def failure(self, error: WireError) -> list[bytes]:
        """Renders an error object, without ``[DONE]``, because the answer is incomplete."""
        return [b"data: " + envelope(error) + b"\n\n"]


class CompletionAggregator(Aggregator):
    """Folds an answer into a ``text_completion``."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._echo = head.told(Echo)
        self._logprobs = [_Lists() for _ in range(head.choices)]

    def _scored(self, choice: int, entries: Sequence[TokenLogprobs]) -> None:
        if self._echo.logprobs:
            self._logprobs[choice].add(entries)

    def answer(self, ended: Sequence[Ended]) -> Iterator[bytes]:
        """Renders the whole answer as JSON, choice by choice."""
        usage = _usage(ended, self._echo)
        document = _encode({**_constant(self.head), "choices": [HOLE], "usage": usage})
        return listed(document, (self._choice(number, one) for number, one in enumerate(ended)))

    def _choice(self, number: int, ended: Ended) -> list[bytes]:
        texts = [part for part in self.whole(number) if isinstance(part, Text)]
        text = texts[0] if texts else Text("")
        shown = _EMPTY if self._echo.logprobs else None
        choice = _encode(_choice(number, text.text, shown, finish_text(ended.reason)))
        return filled(choice, self._logprobs[number].pieces() if shown else [])


class _Lists:
    """The parallel lists of a choice's ``logprobs``, rendered as they arrive."""

    def __init__(self) -> None:
        self._lists = [RenderedItems() for _ in _EMPTY]
        self._offset = 0

    def add(self, entries: Sequence[TokenLogprobs]) -> None:
        """Appends one value per token to each list."""
        shown = logprobs_out(entries, self._offset)
        self._offset += sum(len(token) for token in shown.tokens)
        for kept, name in zip(self._lists, _EMPTY, strict=True):
            kept.add(_encode(getattr(shown, name))[1:-1])

    def pieces(self) -> list[Sequence[bytes]]:
        """Returns what is between the brackets of each list."""
        return [kept.pieces() for kept in self._lists]


def _usage(ended: Sequence[Ended], echo: Echo) -> UsageOut:
    return usage_out([one.usage for one in ended], echo.prompts)


def _constant(head: Head) -> dict[str, object]:
    return {
        "id": f"cmpl-{head.id}",
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": FINGERPRINT,
    }


def _choice(number: int, text: str, logprobs: object, finish: str | None) -> dict[str, object]:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}


def logprobs_out(entries: Sequence[TokenLogprobs], offset: int) -> LogprobsOut:
    """Renders the ``logprobs`` of a choice; *offset* is the length of the text before, in
    characters."""
    tokens = [entry.token.decode(errors="replace") for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return LogprobsOut(
        tokens=tokens,
        token_logprobs=[_finite(entry.logprob) for entry in entries],
        top_logprobs=[
            None
            if entry.logprob is None
            else {top.token.decode(errors="replace"): _finite(top.logprob) for top in entry.top}
            for entry in entries
        ],
        text_offset=offsets,
    )


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
