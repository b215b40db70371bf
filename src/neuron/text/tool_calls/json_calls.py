"""Reads tool calls written as JSON: as an object, in an array, or after the tool's name."""

import msgspec

from neuron.text.tool_calls.call_reader import HELD_CHARACTERS, CallDelta, CallReader
from neuron.text.tool_calls.json_stream import JsonStream, Kind, Token

_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "function", "id", *_ARGUMENTS)


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
        self._text: list[str] = []
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
                self._text.append(token.text)
                if token.ends:
                    text = _decoded("".join(self._text))
                    self._text.clear()
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
            if early:
                self._say("".join(early))
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
