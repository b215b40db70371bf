"""A job's answer so far, kept so that any part of it can be sent again."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from protocol.frames import AnswerPart


class TranscriptEntry(NamedTuple):
    """New tokens, and the parts of the answer that became certain with them."""

    start: int
    """Number of tokens before these."""
    tokens: tuple[int, ...]
    parts: tuple[AnswerPart, ...]


class Transcript:
    """The entries of one answer, in order.

    Entries are never joined, so that a reader can continue after any entry that was seen before.
    """

    def __init__(self) -> None:
        self._pieces: list[TranscriptEntry] = []
        self._next = 0

    @property
    def next_index(self) -> int:
        """Number of tokens it holds."""
        return self._next

    def add(self, tokens: Sequence[int], parts: tuple[AnswerPart, ...]) -> TranscriptEntry:
        """Appends an entry with at least one token."""
        piece = TranscriptEntry(self._next, tuple(tokens), parts)
        self._pieces.append(piece)
        self._next += len(tokens)
        return piece

    def extend_last(self, parts: tuple[AnswerPart, ...]) -> TranscriptEntry:
        """Adds parts to the last entry, before it has been sent."""
        last = self._pieces[-1]
        self._pieces[-1] = last._replace(parts=last.parts + parts)
        return self._pieces[-1]

    def at(self, index: int) -> TranscriptEntry | None:
        """Returns the entry that begins with token *index* or is the next after it."""
        number = bisect_left(self._pieces, index, key=lambda piece: piece.start)
        return self._pieces[number] if number < len(self._pieces) else None

    def tokens(self) -> tuple[int, ...]:
        """All tokens of the answer."""
        return tuple(token for piece in self._pieces for token in piece.tokens)
