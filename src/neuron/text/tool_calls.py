"""Reads tool calls as models write them, while they are being written.

A reader is fed the text after the mark that opens a call, and returns the name and the arguments in
parts. What a model writes is not always a call, so the first parts are held back until the call is
complete or too long to wait for: until then, all of it can still come out as plain text. After that
nothing can be taken back: what no longer fits comes out as arguments, verbatim, and whoever runs
the tool will report it.
"""

from abc import ABC, abstractmethod

import msgspec

from neuron.text.json_stream import JsonStream, Kind, Token

HELD_CHARACTERS = 256
"""Arguments longer than this are streamed before the call is complete."""
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "function", "id", *_ARGUMENTS)


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


class JsonReader(CallReader):
    """Reads ``{"name": …, "arguments": {…}}``, or an array of such objects.

    Keys may come in any order, and unknown ones are ignored. ``parameters`` stands for
    ``arguments``; these may be missing, null, or a string that holds the object.
    """

    def __init__(self, end_mark: str = "", *, is_certain: bool = True) -> None:
        """*end_mark* is what follows the call. Without *is_certain* the text may be any JSON, and
        is not a call if it begins with a key that calls do not have."""
        super().__init__()
        self._json = JsonStream(end_mark)
        self._is_certain = is_certain
        self._base = 1
        """Bracket depth of a call's own object."""
        self._key = ""
        self._name = ""
        self._text = ""
        """The current string or key so far, with its quotes."""
        self._early: list[str] = []
        """Arguments that came before the name."""
        self._arguments_key = ""
        """The key that held the arguments; later ones do not count."""
        self._is_named = False
        """Whether the call's first part has been returned."""

    def take(self, text: str) -> str:
        """Implements :meth:`CallReader.take` for JSON."""
        for token in self._json.take(text):
            self._read(token)
            if self.is_wrong:
                return self._json.held + token.text + text[self._json.at :]
        self.is_over = self._json.complete
        self.is_wrong = self._json.failed
        if self.is_over or self.is_wrong:
            return self._json.held + text[self._json.at :]
        return ""

    def _read(self, token: Token) -> None:
        if token.depth == 1 and token.text == "[" and token.kind is Kind.OPEN:
            self._base = 2
        elif token.depth == self._base and token.kind is Kind.OPEN:
            self.is_wrong = token.text != "{"
            self._key = self._name = self._arguments_key = ""
            self._early, self._is_named = [], False
        elif token.depth == self._base:
            self._in_call(token)
        elif token.depth > self._base:
            self._in_value(token)
        elif token.kind is Kind.CLOSE:
            self.is_wrong = not self._is_named  # an empty array
        else:
            self.is_wrong = token.kind is not Kind.BETWEEN

    def _in_call(self, token: Token) -> None:
        """Reads a token directly inside the call's brackets."""
        match token.kind:
            case Kind.CLOSE:
                self._end_call()
            case Kind.KEY | Kind.STRING:
                self._text += token.text
                if token.ends:
                    text, self._text = _decoded(self._text), ""
                    self._string(token.kind, text)
            case Kind.WORD if self._key == "name":
                self.is_wrong = True
            case Kind.WORD if self._key in _ARGUMENTS:
                self.is_wrong = token.text != "null"

    def _string(self, kind: Kind, text: str | None) -> None:
        if text is None:
            self.is_wrong = True
        elif kind is Kind.KEY:
            self._key = text
            self.is_wrong = not self._is_certain and text not in _KEYS
        elif self._key == "name":
            self.is_wrong = not text or bool(self._name)
            self._name = text
            early, self._early = self._early, []
            for piece in early:
                self._say(piece)
        elif self._key in _ARGUMENTS and not self._arguments_key and text.strip():
            self.is_wrong = not _is_object(text)
            self._arguments_key = self._key
            self._say(text.strip())

    def _in_value(self, token: Token) -> None:
        """Reads a token inside a value's brackets."""
        if self._key in _ARGUMENTS and not self._arguments_key:
            self._arguments_key = self._key
            self.is_wrong = token.text != "{"
        if self._key == self._arguments_key:
            self._say(token.text)
        self.is_wrong = self.is_wrong or self._key == "name"

    def _say(self, arguments: str) -> None:
        if not self._name:
            self._early.append(arguments)
            return
        self._give(CallDelta("" if self._is_named else self._name, arguments))
        self._is_named = True

    def _end_call(self) -> None:
        self.is_wrong = not self._name
        if self._name and not self._arguments_key:
            self._say("{}")
        self._give(CallDelta(ends=True))


def _decoded(text: str) -> str | None:
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


class NamedReader(CallReader):
    """Reads ``NAME[ARGS]{…}``, perhaps with ``[CALL_ID]…`` before the arguments.

    Mistral's newer models write calls like this after ``[TOOL_CALLS]``.
    """

    _ARGS = "[ARGS]"
    _CALL_ID = "[CALL_ID]"

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._head = ""
        self._json = JsonStream()

    def take(self, text: str) -> str:
        """Implements :meth:`CallReader.take` for this form."""
        if not self._name:
            self._head += text
            head, brace, after = self._head.partition("{")
            name = head.partition(self._ARGS)[0].partition(self._CALL_ID)[0].strip()
            is_named = bool(name) or not brace
            self.is_wrong = len(head) > HELD_CHARACTERS or "\n" in head.strip() or not is_named
            if self.is_wrong or not brace:
                return self._head if self.is_wrong else ""
            self._name, text = name, brace + after
            self._give(CallDelta(name))
        for token in self._json.take(text):
            self._give(CallDelta(arguments=token.text))
        self.is_over, self.is_wrong = self._json.complete, self._json.failed
        if self.is_over:
            self._give(CallDelta(ends=True))
        if self.is_over or self.is_wrong:
            return self._json.held + text[self._json.at :]
        return ""
