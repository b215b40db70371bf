"""What a job has answered so far, so that any part of it can be sent again."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from protocol.frames import AnswerPart


class TranscriptEntry(NamedTuple):
    """New tokens, and the parts of the answer that became certain with them."""

    start: int
    """How many tokens came before."""
    tokens: tuple[int, ...]
    parts: tuple[AnswerPart, ...]


class Transcript:
    """The pieces of one answer, in order. They are never joined: whoever reads them again can go
    on after any piece that somebody has seen."""

    def __init__(self) -> None:
        self._pieces: list[TranscriptEntry] = []
        self._next = 0

    @property
    def next_index(self) -> int:
        """How many tokens it holds."""
        return self._next

    def add(self, tokens: Sequence[int], parts: tuple[AnswerPart, ...]) -> TranscriptEntry:
        """The answer has grown, by one token at least."""
        piece = TranscriptEntry(self._next, tuple(tokens), parts)
        self._pieces.append(piece)
        self._next += len(tokens)
        return piece

    def extend_last(self, parts: tuple[AnswerPart, ...]) -> TranscriptEntry:
        """The last piece has more parts, before anybody has seen it."""
        last = self._pieces[-1]
        self._pieces[-1] = last._replace(parts=last.parts + parts)
        return self._pieces[-1]

    def since(self, index: int) -> Iterator[TranscriptEntry]:
        """The pieces from token *index* on."""
        first = bisect_left(self._pieces, index, key=lambda piece: piece.start)
        return iter(self._pieces[first:])

    def tokens(self) -> tuple[int, ...]:
        """All tokens."""
        return tuple(token for piece in self._pieces for token in piece.tokens)
