"""What readers of tool calls have in common: they read a call while the model writes it.

A reader is fed the text after the mark that opens a call, and returns the name and the arguments in
parts. What a model writes is not always a call, so the first parts are held back until the call is
complete or too long to wait for: until then, all of it can still come out as plain text. After that
nothing can be taken back: what no longer fits comes out as arguments, verbatim, and whoever runs
the tool will report it.
"""

from abc import ABC, abstractmethod

import msgspec

HELD_CHARACTERS = 256
"""Arguments longer than this are streamed before the call is complete."""


class CallDelta(msgspec.Struct, frozen=True):
    """The part of a call that has just become certain."""

    name: str = ""
    """Set in the first part of a call."""
    arguments: str = ""
    """A part of the JSON object."""
    ends: bool = False
    """Whether the call is complete."""


class CallReader(ABC):
    """Reads the call after one mark."""

    def __init__(self) -> None:
        self.has_begun = False
        """Parts have been returned, so the call can no longer become text."""
        self.is_over = False
        """Everything that belongs to the call has been read."""
        self.is_wrong = False
        """The text is not a call."""
        self._pieces: list[CallDelta] = []
        self._held = 0

    @abstractmethod
    def take(self, text: str) -> str:
        """Reads *text*; once the call is over or wrong, returns what does not belong to it."""

    def finish(self) -> None:
        """Ends the answer: a call that is not complete by now never will be."""
        self.is_wrong = not self.is_over

    def given(self, *, all_of_it: bool = False) -> list[CallDelta]:
        """Returns the parts that are certain and have not been returned before.

        Returns none while the call may still become text, unless *all_of_it*: it certainly is a
        call.
        """
        if not (all_of_it or self.has_begun or self._held > HELD_CHARACTERS):
            return []
        pieces, self._pieces = self._pieces, []
        self.has_begun = self.has_begun or bool(pieces)
        return pieces

    def _give(self, piece: CallDelta) -> None:
        self._pieces.append(piece)
        self._held += len(piece.arguments)
