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
        common = _common(self._over, text)
        self._over = self._over[common:] if common == len(text) else b""
        text = text[common:]
        matched = []
        while text and self._tokens:
            entry = self._tokens.popleft()
            common = _common(entry.token, text)
            if not common:
                continue  # a tag, or removed white space
            matched.append(entry)
            self._over = entry.token[common:] if common == len(text) else b""
            text = text[common:]
        return matched


def _common(one: bytes, other: bytes) -> int:
    """The length of the prefix that both share."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(n for n in range(size) if one[n] != other[n])
