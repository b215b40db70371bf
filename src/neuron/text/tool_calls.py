"""Tool calls as Hermes-trained models (Qwen 2.5 and 3 among them) write them: JSON in tags.

``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. Owns where the JSON value ends in a stream
of text and what makes it a call. Knows nothing of the tags around it.
"""

import re

import msgspec

_OUTSIDE = re.compile(r'[^"{}\[\]<]*')
_STRING = re.compile(r'[^"\\\x00-\x1f]*')


class Call(msgspec.Struct, frozen=True):
    """One function call."""

    name: str
    arguments: str
    """A JSON object, character by character as the model wrote it."""


class JsonEnd:
    """Finds the end of a JSON object or array that arrives piece by piece.

    Brackets in strings do not count. It is no parser: of what cannot be JSON it notices what would
    otherwise make it wait for ever, a tag outside of a string and a line break inside of one.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False
        self.complete = False
        """The value has ended."""
        self.failed = False
        """What came can never become JSON."""

    def take(self, text: str) -> int:
        """How many characters of *text* belong to the value; fewer than all when it is over."""
        at = 0
        while at < len(text) and not (self.complete or self.failed):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            plain = _STRING if self._in_string else _OUTSIDE
            match = plain.match(text, at)
            assert match is not None  # both patterns match the empty text
            at = match.end()
            if at < len(text):
                self._mark(text[at])
                if not self.failed:
                    at += 1
        return at

    def _mark(self, character: str) -> None:
        if self._in_string:
            self._in_string = character == "\\"
            self._escaped = character == "\\"
            self.failed = character < " "
        elif character == '"':
            self._in_string = True
        elif character == "{":
            self._open.append("}")
        elif character == "[":
            self._open.append("]")
        elif self._open and character == self._open[-1]:
            self._open.pop()
            self.complete = not self._open
        else:
            self.failed = True


def parse_calls(text: str) -> tuple[Call, ...] | None:
    """The calls in a JSON object, or an array of such objects; None when it is no call.

    Keys may have any order and unknown ones are ignored; ``parameters`` stands for ``arguments``;
    arguments may be missing, null or a string that holds the object.
    """
    try:
        if text.startswith("["):
            objects = msgspec.json.decode(text, type=list[dict[str, msgspec.Raw]])
        else:
            objects = [msgspec.json.decode(text, type=dict[str, msgspec.Raw])]
        calls = tuple(_call(entry) for entry in objects)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return calls or None


def _call(entry: dict[str, msgspec.Raw]) -> Call:
    """Raises :class:`msgspec.ValidationError` for what is no call."""
    name = msgspec.json.decode(entry.get("name", b"null"), type=str)
    if not name:
        raise msgspec.ValidationError("a call needs a name")
    raw = bytes(entry.get("arguments") or entry.get("parameters") or b"null")
    if raw.startswith(b'"'):
        raw = msgspec.json.decode(raw, type=str).strip().encode()
    if raw in (b"", b"null"):
        return Call(name, "{}")
    msgspec.json.decode(raw, type=dict[str, msgspec.Raw])  # nothing but an object will do
    return Call(name, raw.decode())
