"""Which tokens of an answer made which of its visible text, for their log-probabilities.

Tokens and text do not come together: text is held back while it may be a tag or a stop text, and
thinking, tags and white space are taken out. So each token waits until the text that it begins
comes out; one whose text never does is dropped.
"""

from collections import deque
from collections.abc import Iterable

from protocol.frames import AnswerPart, Reasoning, Text
from protocol.generate import TokenLogprobs


class Aligner:
    """Of one answer."""

    def __init__(self) -> None:
        self._tokens: deque[TokenLogprobs] = deque()
        self._over = b""
        """Bytes of the token given last that have not come out yet."""

    def add(self, tokens: Iterable[TokenLogprobs]) -> None:
        """Tokens, in the order of the answer."""
        self._tokens.extend(token for token in tokens if token.token)

    def give(self, parts: Iterable[AnswerPart]) -> tuple[AnswerPart, ...]:
        """*parts* with the log-probabilities of the tokens that made their text."""
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
                continue  # a tag, or white space that was taken out
            matched.append(entry)
            self._over = entry.token[common:] if common == len(text) else b""
            text = text[common:]
        return matched


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(n for n in range(size) if one[n] != other[n])
