"""Tokenizes a JSON value that arrives in chunks.

Strict, except for mistakes that models make so often that repairing them pays: line breaks and
other control characters inside strings, backslashes that escape nothing, a comma before a closing
bracket, and Python's ``True``, ``False`` and ``None``. The output is always a prefix of valid JSON,
whatever the input. Knows nothing about what the value means.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

MAX_DEPTH = 100

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_BEFORE_MARK = re.compile(r'[^"\\<\x00-\x1f]+')
_SPACE = re.compile(r"[ \t\r\n]+")
_WORD = re.compile(r"[A-Za-z0-9+\-.]+")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_WORDS = {
    "true": "true",
    "false": "false",
    "null": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}
_MAX_WORD = 400
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_UNICODE_ESCAPE_SIZE = 6
"""A backslash, a ``u``, and four hexadecimal digits."""
_HEX = frozenset("0123456789abcdefABCDEF")


class Kind(Enum):
    """The kind of a token."""

    OPEN = auto()
    CLOSE = auto()
    BETWEEN = auto()
    """A colon, a comma, or white space."""
    KEY = auto()
    """A part of a key; each quote is a token of its own."""
    STRING = auto()
    """A part of a string."""
    WORD = auto()
    """A complete number or literal."""


class Token(NamedTuple):
    """One token of the JSON value."""

    kind: Kind
    text: str
    depth: int
    """Number of open brackets, including the one that this token opens or closes."""
    ends: bool = False
    """Whether it is a string's or key's closing quote."""


class _Want(Enum):
    """Which token may come next."""

    VALUE = auto()
    FIRST_VALUE = auto()
    """A value, or the end of the array."""
    KEY = auto()
    FIRST_KEY = auto()
    """A key, or the end of the object."""
    COLON = auto()
    COMMA = auto()
    """A comma, or the end of the object or array."""


class JsonStream:
    """Reads one object or array."""

    def __init__(self, end_mark: str = "") -> None:
        """*end_mark* is what follows the value; it begins with ``<``. Inside a string that spans a
        line break it means that the closing quote is missing."""
        self._end_mark = end_mark
        self._has_break = False
        """Whether the current string contains a line break."""
        self._mark_text = ""
        """Text in a string that could become the end mark."""
        self.at = 0
        """Number of characters read of the text given last."""
        self.complete = False
        """Whether the value has ended."""
        self.failed = False
        """Whether the input can no longer become JSON."""
        self._open: list[str] = []
        self._want = _Want.VALUE
        self._string: Kind | None = None
        self._escape = ""
        """An unfinished escape sequence: the backslash and what follows so far."""
        self._word = ""
        self._comma: list[str] = []
        """A comma and the space after it, held back because the bracket may close next."""

    @property
    def held(self) -> str:
        """Input that has been read but is in no token yet, verbatim."""
        return "".join((*self._comma, self._word, self._escape, self._mark_text))

    def take(self, text: str, at: int = 0) -> Iterator[Token]:
        """Yields the tokens in *text* from index *at* on.

        Stops at the end of the value or where it fails; :attr:`at` is that index.
        """
        self.at = at
        while self.at < len(text) and not (self.complete or self.failed):
            found, self.at = self._next(text, self.at)
            yield from found

    def _next(self, text: str, at: int) -> tuple[list[Token], int]:
        if self._string is not None:
            return self._in_string(text, at)
        word = _WORD.match(text, at)
        if word and not self._comma:
            self._word += word[0]
            self.failed = len(self._word) > _MAX_WORD or self._want in (
                _Want.KEY,
                _Want.FIRST_KEY,
                _Want.COLON,
                _Want.COMMA,
            )
            return [], word.end()
        if self._word:
            return self._end_word(), at
        space = _SPACE.match(text, at)
        if space:
            if self._comma:
                self._comma.append(space[0])
                return [], space.end()
            return [self._token(Kind.BETWEEN, space[0])], space.end()
        if self._comma and text[at] not in "}]":
            comma, self._comma = "".join(self._comma), []
            return [self._token(Kind.BETWEEN, comma)], at
        found = self._mark(text[at])
        return found, at if self.failed else at + 1

    def _end_word(self) -> list[Token]:
        word, self._word = self._word, ""
        text = _WORDS.get(word) or (word if _NUMBER.fullmatch(word) else "")
        if not text or self._want not in (_Want.VALUE, _Want.FIRST_VALUE):
            self.failed, self._word = True, word
            return []
        self._want = _Want.COMMA
        return [self._token(Kind.WORD, text)]

    def _mark(self, character: str) -> list[Token]:
        want = self._want
        values = (_Want.VALUE, _Want.FIRST_VALUE)
        if character in "{[" and want in values and len(self._open) < MAX_DEPTH:
            self._open.append("}" if character == "{" else "]")
            self._want = _Want.FIRST_KEY if character == "{" else _Want.FIRST_VALUE
            return [self._token(Kind.OPEN, character)]
        if character in "}]" and self._open and self._open[-1] == character and self._may_close:
            token = self._token(Kind.CLOSE, character)
            self._open.pop()
            self._comma = []
            self._want = _Want.COMMA
            self.complete = not self._open
            return [token]
        if character == '"' and want in (*values, _Want.KEY, _Want.FIRST_KEY) and self._open:
            self._string = Kind.STRING if want in values else Kind.KEY
            self._has_break = False
            return [self._token(self._string, '"')]
        if character == ":" and want is _Want.COLON:
            self._want = _Want.VALUE
            return [self._token(Kind.BETWEEN, ":")]
        if character == "," and want is _Want.COMMA and self._open:
            self._comma = [","]
            self._want = _Want.KEY if self._open[-1] == "}" else _Want.VALUE
            return []
        self.failed = True
        return []

    @property
    def _may_close(self) -> bool:
        firsts = (_Want.COMMA, _Want.FIRST_KEY, _Want.FIRST_VALUE)
        return self._want in firsts or bool(self._comma)

    def _in_string(self, text: str, at: int) -> tuple[list[Token], int]:
        kind = self._string
        assert kind is not None
        if self._escape:
            return self._in_escape(text, at)
        if self._has_break and self._end_mark and (self._mark_text or text[at] == "<"):
            return self._in_mark(text, at)
        plain = (_BEFORE_MARK if self._has_break else _PLAIN).match(text, at)
        if plain:
            return [self._token(kind, plain[0])], plain.end()
        character = text[at]
        if character == "\\":
            self._escape = "\\"
            return [], at + 1
        if character == '"':
            self._string = None
            self._want = _Want.COLON if kind is Kind.KEY else _Want.COMMA
            return [self._token(kind, '"', ends=True)], at + 1
        self._has_break = self._has_break or character == "\n"
        mended = _ESCAPES.get(character, f"\\u{ord(character):04x}")
        return [self._token(kind, mended)], at + 1

    def _in_mark(self, text: str, at: int) -> tuple[list[Token], int]:
        kind, longer = self._string, self._mark_text + text[at]
        assert kind is not None
        if self._end_mark.startswith(longer):
            self._mark_text = longer
            self.failed = longer == self._end_mark
            return [], at + 1
        told, self._mark_text = self._mark_text, ""
        if told:
            return [self._token(kind, told)], at
        return [self._token(kind, text[at])], at + 1  # another "<"

    def _in_escape(self, text: str, at: int) -> tuple[list[Token], int]:
        kind, character = self._string, text[at]
        assert kind is not None
        if self._escape == "\\":
            if character == "u":
                self._escape = "\\u"
                return [], at + 1
            self._escape = ""
            if character in '"\\/bfnrt':
                return [self._token(kind, "\\" + character)], at + 1
            if character == "'":
                return [self._token(kind, "'")], at + 1
            return [self._token(kind, "\\\\")], at  # the backslash escapes nothing
        if character not in _HEX:
            told = "\\" + self._escape
            self._escape = ""
            return [self._token(kind, told)], at
        self._escape += character
        if len(self._escape) < _UNICODE_ESCAPE_SIZE:
            return [], at + 1
        told, self._escape = self._escape, ""
        return [self._token(kind, told)], at + 1

    def _token(self, kind: Kind, text: str, *, ends: bool = False) -> Token:
        return Token(kind, text, len(self._open), ends)
