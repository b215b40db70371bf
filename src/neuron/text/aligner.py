"""Matches an answer's tokens to the visible text that they produced, for their logprobs.

Tokens and text do not arrive together: text is held back while it may be a tag or a stop text, and
thinking, tags and white space are removed. So each token waits until the text that it starts is
released; a token whose text never is gets dropped.
"""

from collections import deque
from collections.abc import Iterable

from protocol.frames import AnswerPart, Reasoning, Text
from protocol.generate import TokenLogprobs


class Aligner:
    """Matches the tokens and text of one answer."""

    def __init__(self) -> None:
        self._tokens: deque[TokenLogprobs] = deque()
        self._over = b""
        """Bytes of the last matched token whose text has not been released yet."""

    def add(self, tokens: Iterable[TokenLogprobs]) -> None:
        """Adds tokens, in the order of the answer."""
        self._tokens.extend(token for token in tokens if token.token)

    def give(self, parts: Iterable[AnswerPart]) -> tuple[AnswerPart, ...]:
        """Returns *parts* with the logprobs of the tokens that produced their text."""
        given: list[AnswerPart] = []
        for part in parts:
            match part:
                case Text(text):
                    given.append(Text(text, tuple(self._match(text.encode()))))
                case Reasoning(text):
                    self._match(text.encode())
                    given.append(part)
                case _:
                    self._over = b""
                    given.append(part)
        return tuple(given)

    def _match(self, text: bytes) -> list[TokenLogprobs]:
        at = _common(self._over, text, 0)
        self._over = self._over[at:] if at == len(text) else b""
        matched = []
        while at < len(text) and self._tokens:
            entry = self._tokens.popleft()
            common = _common(entry.token, text, at)
            if not common:
                continue  # a tag, or removed white space
            matched.append(entry)
            at += common
            self._over = entry.token[common:] if at == len(text) else b""
        return matched


def _common(token: bytes, text: bytes, at: int) -> int:
    """The length of the longest beginning of *token* that is in *text* at index *at*."""
    if text.startswith(token, at):
        return len(token)
    size = min(len(token), len(text) - at)
    if text.startswith(token[:size], at):
        return size
    return next(n for n in range(size) if token[n] != text[at + n])
