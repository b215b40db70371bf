"""Tool calls as models write them, read while they are written.

A reader is fed with what comes after the mark that opens a call, and gives the name and the
arguments piece by piece. What a model writes is not always a call, so the first pieces are held
back until the call is complete or too long to wait for: as long as nothing has been given, all of
it can still come out as the text that it is. After that nothing can be taken back: what does not
fit any more comes out as arguments, as it was written, and whoever runs the tool will say so.
"""

from abc import ABC, abstractmethod

import msgspec

from neuron.text.json_stream import JsonStream, Kind, Token

HELD_CHARACTERS = 256
"""Arguments longer than this stream."""
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "function", "id", *_ARGUMENTS)


class CallDelta(msgspec.Struct, frozen=True):
    """What has become certain of a call."""

    name: str = ""
    """With the first piece of a call."""
    arguments: str = ""
    """A piece of a JSON object."""
    ends: bool = False
    """The call is complete."""


class CallReader(ABC):
    """Reads the call behind one mark."""

    def __init__(self) -> None:
        self.has_begun = False
        """Something has been given: it cannot become text any more."""
        self.is_over = False
        """All that belongs to the call has been read."""
        self.is_wrong = False
        """It is no call."""
        self._pieces: list[CallDelta] = []
        self._held = 0

    @abstractmethod
    def take(self, text: str) -> str:
        """Reads on; returns what does not belong to the call, once it is over or wrong."""

    def finish(self) -> None:
        """The answer has ended: what is not complete by now never will be."""
        self.is_wrong = not self.is_over

    def given(self, *, all_of_it: bool = False) -> list[CallDelta]:
        """What is certain and was not given before; nothing while it may be text, unless
        *all_of_it* is wanted because it certainly is a call."""
        if not (all_of_it or self.has_begun or self._held > HELD_CHARACTERS):
            return []
        pieces, self._pieces = self._pieces, []
        self.has_begun = self.has_begun or bool(pieces)
        return pieces

    def _give(self, piece: CallDelta) -> None:
        self._pieces.append(piece)
        self._held += len(piece.arguments)


class JsonReader(CallReader):
    """``{"name": …, "arguments": {…}}``, or an array of such objects.

    The keys may have any order and unknown ones are ignored; ``parameters`` stands for
    ``arguments``; these may be missing, null, or a string that holds the object.
    """

    def __init__(self, end_mark: str = "", *, is_certain: bool = True) -> None:
        """*end_mark*: what follows. Without *is_certain* any JSON may come, and one that begins
        with another key than calls have is none."""
        super().__init__()
        self._json = JsonStream(end_mark)
        self._is_certain = is_certain
        self._base = 1
        """Depth of a call's own brackets."""
        self._key = ""
        self._name = ""
        self._text = ""
        """Of the string or key that is being read, with its quotes."""
        self._early: list[str] = []
        """Arguments that came before the name."""
        self._arguments_key = ""
        """Where the arguments were; others that come after them do not count."""
        self._is_named = False
        """The call's first piece has been given."""

    def take(self, text: str) -> str:
        """See :meth:`CallReader.take`."""
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
        """Directly inside of the call's brackets."""
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
        """Inside of a value's brackets."""
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
    """``NAME[ARGS]{…}``, perhaps with ``[CALL_ID]…`` before the arguments; as Mistral's newer
    models write calls behind ``[TOOL_CALLS]``."""

    _ARGS = "[ARGS]"
    _CALL_ID = "[CALL_ID]"

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._head = ""
        self._json = JsonStream()

    def take(self, text: str) -> str:
        """See :meth:`CallReader.take`."""
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
