"""Reads tool calls written as tags around plain text, as by Qwen3-Coder and its successors."""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import msgspec

from neuron.text.tool_calls.call_reader import HELD_CHARACTERS, CallDelta, CallReader
from neuron.text.tool_calls.json_stream import JsonStream

MAX_SCHEMA_BYTES = 256 << 10
"""The arguments of a tool with a longer schema are taken as text."""
MAX_SCHEMAS = 256
"""How many alternatives, or values, of one argument are looked at."""
MAX_STEPS = 32
"""In a reference to another part of the schema."""


class XmlReader(CallReader):
    """Reads ``<function=NAME>``, the values in ``<parameter=KEY>`` tags, and ``</function>``.

    Values are text; the tool's schema decides whether they become numbers, objects and so on. One
    line break at either end of a value belongs to the format. Qwen3-Coder and its successors write
    calls like this.
    """

    _FUNCTION = "<function="
    _PARAMETER = "<parameter="
    _PARAMETER_END = "</parameter>"
    _FUNCTION_END = "</function>"
    _CALL_END = "</tool_call>"
    _ENDS = (_FUNCTION_END, _CALL_END)

    def __init__(self, schemas: Mapping[str, "Schema"]) -> None:
        """*schemas* of the tools' arguments, by tool name."""
        super().__init__()
        self._schemas = schemas
        self._rest = ""
        """Text that has arrived but is not decided yet."""
        self._white: list[str] = []
        """White space before it, between two tags, kept apart because there may be much."""
        self._name = ""
        self._has_parameters = False
        self._value: _Value | None = None
        self._is_new_value = False

    def take(self, text: str) -> str:
        """Implements :meth:`CallReader.take` for tags."""
        if self._value is None and not self._rest and text.isspace():
            self._white.append(text)
            return ""
        self._rest = "".join((*self._white, self._rest, text))
        self._white.clear()
        while not (self.is_over or self.is_wrong) and self._step():
            pass
        rest = self._rest
        if self.is_over or self.is_wrong:
            self._rest = ""
            return rest
        if self._value is None and rest.isspace():
            self._white, self._rest = [rest], ""
        return ""

    def finish(self) -> None:
        """Implements :meth:`CallReader.finish`: only the closing tags may be missing."""
        if self._value is not None:  # the value was cut off
            self._say(self._value.add(self._rest))
        is_between = self._value is None and self._has_parameters
        if not self.is_over and is_between and self._rest.strip() in _beginnings(self._ENDS):
            self._end_call()
        super().finish()

    def _step(self) -> bool:
        if self._value is not None:
            return self._in_value(self._value)
        rest = self._rest.lstrip()
        if not self._name:
            return self._at_name(rest)
        tags = (self._PARAMETER, self._FUNCTION_END, self._CALL_END)
        tag = next((tag for tag in tags if rest.startswith(tag)), "")
        if not tag:
            self.is_wrong = not any(tag.startswith(rest) for tag in tags)
            return False
        if tag != self._PARAMETER:
            self._rest = rest.removeprefix(self._FUNCTION_END)
            self._end_call()
            return False
        key, mark, after = rest.removeprefix(tag).partition(">")
        self.is_wrong = _is_no_name(key)
        if self.is_wrong or not mark:
            return False
        schema = self._schemas.get(self._name) or Schema()
        self._value = _Value(schema.types(key.strip()))
        self._rest, self._is_new_value = after, True
        start = ", " if self._has_parameters else "{"
        self._say(f"{start}{_quoted(key.strip())}: ")
        self._has_parameters = True
        return True

    def _at_name(self, rest: str) -> bool:
        if not rest.startswith(self._FUNCTION):
            self.is_wrong = not self._FUNCTION.startswith(rest)
            return False
        name, mark, after = rest.removeprefix(self._FUNCTION).partition(">")
        self.is_wrong = _is_no_name(name)
        if self.is_wrong or not mark:
            return False
        self._name, self._rest = name.strip(), after
        self.is_wrong = not self._name
        self._give(CallDelta(self._name))
        return not self.is_wrong

    def _in_value(self, value: "_Value") -> bool:
        if self._is_new_value:
            if not self._rest:
                return False
            self._rest = self._rest.removeprefix("\n")
            self._is_new_value = False
        tags = (self._PARAMETER_END, self._PARAMETER, self._FUNCTION_END, self._CALL_END)
        found = [(self._rest.find(tag), tag) for tag in tags if tag in self._rest]
        if found:
            at, _ = min(found)
            self._say(value.add(self._rest[:at].removesuffix("\n")) + value.end())
            self._rest = self._rest[at:].removeprefix(self._PARAMETER_END)
            self._value = None
            return True
        # Hold back what could be the line break and the tag that end the value.
        at = len(self._rest)
        last = self._rest.rfind("<")
        if last >= 0 and any(tag.startswith(self._rest[last:]) for tag in tags):
            at = last
        at -= self._rest[:at].endswith("\n")
        self._say(value.add(self._rest[:at]))
        self._rest = self._rest[at:]
        return False

    def _end_call(self) -> None:
        self._say("}" if self._has_parameters else "{}")
        self._give(CallDelta(ends=True))
        self.is_over = True

    def _say(self, arguments: str) -> None:
        if arguments:
            self._give(CallDelta(arguments=arguments))


class Schema:
    """The types of a tool's arguments, from its JSON schema, which is read when a call needs it.

    Schemas are from strangers, and are read between two tokens: however often one refers to itself,
    and whatever it contains, that takes milliseconds.
    """

    def __init__(self, raw: bytes = b"{}") -> None:
        self._raw = raw
        self._known: dict[str, frozenset[str]] = {}

    def types(self, key: str) -> frozenset[str]:
        """The JSON types that an argument may have; empty = unknown."""
        properties = self._root.get("properties")
        if not isinstance(properties, dict) or key not in properties:
            return frozenset()
        if key not in self._known:  # a model may write the same argument again and again
            self._known[key] = frozenset(self._types(properties[key]))
        return self._known[key]

    @functools.cached_property
    def _root(self) -> dict[str, object]:
        if len(self._raw) > MAX_SCHEMA_BYTES:
            return {}
        with contextlib.suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            return msgspec.json.decode(self._raw, type=dict[str, object])
        return {}

    def _types(self, schema: object) -> set[str]:
        """Collects the types of a schema and of all that it may be instead, each looked at once."""
        found: set[str] = set()
        seen: set[int] = set()
        left = [schema]
        while left and len(seen) < MAX_SCHEMAS:
            one = left.pop()
            if not isinstance(one, dict) or id(one) in seen:
                continue
            seen.add(id(one))
            named = one.get("type")
            names = named if isinstance(named, list) else [named]
            types = {name for name in names[:MAX_SCHEMAS] if isinstance(name, str)}
            values = one.get("enum")
            if not types and isinstance(values, list):
                types = {_type_of(value) for value in values[:MAX_SCHEMAS]}
            found |= types
            for key in ("anyOf", "oneOf", "allOf"):
                inner = one.get(key)
                left += inner[:MAX_SCHEMAS] if isinstance(inner, list) else []
            left.append(self._referred(one.get("$ref")))
        return found

    def _referred(self, reference: object) -> object:
        if not (isinstance(reference, str) and reference.startswith("#/")):
            return None
        target: object = self._root
        for step in reference.removeprefix("#/").split("/", MAX_STEPS)[:MAX_STEPS]:
            target = target.get(step) if isinstance(target, dict) else None
        return target


def _type_of(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case None:
            return "null"
    return "string" if isinstance(value, str) else "object"


class _Value:
    """Converts one argument from text to JSON: strings as they arrive, others at their end."""

    def __init__(self, types: frozenset[str]) -> None:
        self._types = types
        self._streams = types <= {"string"}
        self._has_begun = False
        self._text: list[str] = []
        self._json = None if self._streams or "string" in types else _OneValue()

    def add(self, text: str) -> str:
        """Takes more text; returns the JSON that is certain."""
        if not text:
            return ""
        if not self._streams:
            self._text.append(text)
            if self._json is not None:
                self._json.add(text)
            return ""
        start = "" if self._has_begun else '"'
        self._has_begun = True
        return start + _quoted(text)[1:-1]

    def end(self) -> str:
        """Returns the rest of the JSON."""
        if self._streams:
            return '"' if self._has_begun else '""'
        text = "".join(self._text)
        if "null" in self._types and text.strip().lower() in ("null", "none"):
            return "null"
        return (self._json.end() if self._json is not None else "") or _quoted(text)


class _OneValue:
    """Reads text as one JSON value, repaired if necessary, while it arrives.

    The value is looked for in brackets, because a stream reads an object or array. White space
    around it is dropped.
    """

    def __init__(self) -> None:
        self._stream = JsonStream()
        self._white: list[str] = []
        """What may be the white space after the value."""
        self._mended: list[str] = []
        self._has_text = False
        self._is_one = True
        self._read("[")
        self._mended.clear()

    def add(self, text: str) -> None:
        """Takes more text."""
        text = text if self._has_text else text.lstrip()
        inner = text.rstrip()
        if inner:
            self._read("".join((*self._white, inner)))
            self._white.clear()
            self._has_text = True
        if self._has_text:
            self._white.append(text[len(inner) :])

    def end(self) -> str:
        """Returns the value; empty if it is not one."""
        self._read("]")
        return "".join(self._mended) if self._is_one and self._stream.complete else ""

    def _read(self, text: str) -> None:
        if self._stream.complete or not self._is_one:
            return
        read = []
        for token in self._stream.take(text):
            if self._stream.complete:
                break
            self._is_one = self._is_one and not (token.depth == 1 and "," in token.text)
            read.append(token.text)
        self._mended.append("".join(read))
        self._is_one = self._is_one and not self._stream.failed


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _is_no_name(text: str) -> bool:
    """Whether *text*, or what it would become, cannot be a name in a tag."""
    return len(text) > HELD_CHARACTERS or "\n" in text or "<" in text


def _beginnings(tags: Sequence[str]) -> set[str]:
    """Every proper beginning of one of *tags*, the empty one included."""
    return {tag[:size] for tag in tags for size in range(len(tag))}
