"""Long answers as pieces of JSON: rendered while they arrive, never copied into one whole.

Log-probabilities are up to 1.5 kB of JSON per token. Rendered and joined at the end of an answer,
they would hold the event loop for seconds; so each token's are rendered when it arrives, and an
answer's end only says where they belong.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

PIECE_BYTES = 64 << 10
"""What is worth a write of its own: less is joined."""
HOLE = msgspec.Raw(b"\0")
"""Marks the place of pieces in a document. JSON never contains this byte: strings escape it."""

Body = bytes | list[bytes]
"""An event, whole or in pieces."""


class RenderedItems:
    """The items of a growing JSON list, rendered; many small ones are kept as few large pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._fresh: list[bytes] = []
        self._fresh_bytes = 0

    def add(self, items: bytes) -> None:
        """Appends one or more items, with commas between them; nothing when empty."""
        if not items:
            return
        if self._fresh or self._pieces:
            self._fresh.append(b",")
        self._fresh.append(items)
        self._fresh_bytes += len(items)
        if self._fresh_bytes >= PIECE_BYTES:
            self._settle()

    def pieces(self) -> Sequence[bytes]:
        """Returns everything between the brackets of the list."""
        if self._fresh:
            self._settle()
        return self._pieces

    def _settle(self) -> None:
        self._pieces.append(b"".join(self._fresh))
        self._fresh, self._fresh_bytes = [], 0


def filled(document: bytes, fills: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Puts pieces into the holes of a document, in order."""
    fills = list(fills)
    first, *others = document.split(bytes(HOLE), len(fills))
    out = [first]
    for fill, after in zip(fills, others, strict=True):
        out += fill
        out.append(after)
    return out


def listed(document: bytes, items: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Puts items into the only hole of a document, each when it is asked for."""
    before, after = document.split(bytes(HOLE), 1)
    yield before
    for number, item in enumerate(items):
        if number:
            yield b","
        yield from item
    yield after


def blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Joins pieces to blocks that are worth a write each."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)
