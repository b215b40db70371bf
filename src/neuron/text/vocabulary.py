"""What whoever splits an answer must know of its model's texts, without its tokenizer.

Owns the compact form in which the texts of all tokens travel between processes: one string of
bytes, and where each token's part of it ends.
"""

import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Self

from neuron.text.tool_calls.call_style import CallStyle

_ENDS = "I"


class Vocabulary:
    """The bytes of each token: possibly only part of a character; empty for control tokens."""

    def __init__(self, text: bytes, ends: bytes) -> None:
        """*ends*: for each token id, where its part of *text* ends; 32 bits each, little-endian."""
        self._text = text
        self._ends = array(_ENDS, [0])
        self._ends.frombytes(ends)
        if sys.byteorder == "big":
            self._ends.byteswap()

    @classmethod
    def of(cls, tokens: Iterable[bytes]) -> Self:
        """Makes the vocabulary of *tokens*, in the order of their ids."""
        ends, pieces, size = array(_ENDS), [], 0
        for token in tokens:
            pieces.append(token)
            size += len(token)
            ends.append(size)
        if sys.byteorder == "big":
            ends.byteswap()
        return cls(b"".join(pieces), ends.tobytes())

    @property
    def packed(self) -> tuple[bytes, bytes]:
        """Its text and its ends, as the constructor takes them."""
        ends = self._ends[1:]
        if sys.byteorder == "big":
            ends.byteswap()
        return self._text, ends.tobytes()

    def token_bytes(self, identity: int) -> bytes:
        """The bytes of a token; empty for an unknown id."""
        if not 0 <= identity < len(self._ends) - 1:
            return b""
        return self._text[self._ends[identity] : self._ends[identity + 1]]


class ModelText:
    """How one model writes: its tool calls, its marks, and the texts of its tokens."""

    def __init__(
        self,
        call_style: CallStyle,
        marks: Mapping[int, str],
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.call_style = call_style
        self.marks = marks
        """Control tokens that mark parts of an answer, by their ids."""
        self.vocabulary = vocabulary
        """Only needed for answers with log-probabilities, so it may be read later than the rest."""

    def token_bytes(self, identity: int) -> bytes:
        """See :meth:`Vocabulary.token_bytes`; empty without a vocabulary."""
        return self.vocabulary.token_bytes(identity) if self.vocabulary else b""
