"""Splits a model's answer, as it arrives, into thinking, text and tool calls.

A state machine over characters: REASONING → CONTENT → TOOL → CONTENT. Only the longest suffix that
could begin a tag is held back, so that what comes out never depends on how the text was cut into
tokens. Whitespace next to tags belongs to the tags: it is dropped at the edges of the thinking,
before a call and after it. Nothing else is ever lost: a call that cannot be read comes back as
text, tags included.

The format is the one of Qwen and Hermes: ``<think>…</think>``, and
``<tool_call>{"name": …, "arguments": {…}}</tool_call>``.
"""

from collections.abc import Callable
from enum import Enum, auto

import msgspec

from protocol.frames import Part, Reasoning, Text, ToolCallPart

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
_SPACE = " \t\r\n"

_Members = dict[str, msgspec.Raw]
_read_calls = msgspec.json.Decoder(_Members | list[_Members])


class _State(Enum):
    START = auto()
    """Nothing but whitespace so far: ``<think>`` may still come."""
    REASONING = auto()
    CONTENT = auto()
    TOOL = auto()


class OutputSplitter:
    """One answer."""

    def __init__(
        self, *, starts_in_thinking: bool, tools_offered: bool, new_call_id: Callable[[], str]
    ) -> None:
        self._state = _State.REASONING if starts_in_thinking else _State.START
        self._tools = tools_offered
        self._new_call_id = new_call_id
        self._pending = ""
        """Arrived, not decided."""
        self._space = ""
        """Whitespace that is only passed on when something follows it."""
        self._trims = starts_in_thinking
        """Whether whitespace is dropped until the next other character."""
        self._parts: list[Part] = []
        self.calls = 0
        """Complete tool calls so far."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the model is thinking at the end of what has been fed."""
        return self._state is _State.REASONING

    def feed(self, text: str) -> tuple[Part, ...]:
        """Takes the next piece; returns what became certain."""
        self._pending += text
        while self._advance():
            pass
        return self._taken()

    def finish(self) -> tuple[Part, ...]:
        """The answer is over: what was held back is decided now."""
        rest, self._pending = self._pending, ""
        if self._state is _State.TOOL:
            if not self._call(rest):
                self._emit(Text, CALL + rest)
        else:
            self._emit(Reasoning if self.in_reasoning else Text, rest)
        if not self.in_reasoning and not self.calls and self._space:
            self._parts.append(Text(self._space))
        self._space = ""
        return self._taken()

    def _taken(self) -> tuple[Part, ...]:
        parts, self._parts = tuple(self._parts), []
        return parts

    # -- states --------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """One transition, or as much text as is certain; False when more must arrive."""
        match self._state:
            case _State.START:
                return self._start()
            case _State.REASONING:
                return self._reasoning()
            case _State.CONTENT:
                return self._content()
            case _State.TOOL:
                return self._tool()

    def _start(self) -> bool:
        visible = self._pending.lstrip(_SPACE)
        if visible.startswith(THINK):
            self._enter(_State.REASONING, visible.removeprefix(THINK), trims=True)
            return True
        if THINK.startswith(visible):
            return False
        self._state = _State.CONTENT
        return True

    def _reasoning(self) -> bool:
        tag = self._text_until(Reasoning, (THINK_END, CALL) if self._tools else (THINK_END,))
        if tag is None:
            return False
        self._enter(_State.TOOL if tag == CALL else _State.CONTENT, self._pending, trims=True)
        return True

    def _content(self) -> bool:
        tag = self._text_until(Text, (CALL, THINK_END) if self._tools else (THINK_END,))
        if tag == CALL:
            self._state = _State.TOOL  # the whitespace before it is dropped if it is a call
        return tag is not None  # a stray </think> is dropped

    def _tool(self) -> bool:
        body, tag, rest = self._pending.partition(CALL_END)
        if not tag:
            return False
        if self._call(body):
            self._enter(_State.CONTENT, rest, trims=True)
        else:
            self._emit(Text, CALL + body + CALL_END)
            self._state, self._pending = _State.CONTENT, rest
        return True

    def _enter(self, state: _State, rest: str, *, trims: bool) -> None:
        self._state, self._pending, self._trims = state, rest, trims
        self._space = ""

    # -- pieces --------------------------------------------------------------------------------

    def _text_until(self, kind: type[Text] | type[Reasoning], tags: tuple[str, ...]) -> str | None:
        """Emits text up to the first of *tags* and returns that, with the rest in ``_pending``;
        None when there is none, with what could begin one held back."""
        found = [(at, tag) for tag in tags if (at := self._pending.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            text, self._pending = self._pending[:at], self._pending[at + len(tag) :]
        else:
            tag = None
            held = max(_overlap(self._pending, tag) for tag in tags)
            cut = len(self._pending) - held
            text, self._pending = self._pending[:cut], self._pending[cut:]
        self._emit(kind, text)
        return tag

    def _emit(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        if self._trims:
            text = text.lstrip(_SPACE)
        if not text:
            return
        self._trims = False
        waits = kind is Reasoning or self._tools
        body = text.rstrip(_SPACE) if waits else text
        if body:
            self._parts.append(kind(self._space + body))
            self._space = text[len(body) :]
        else:
            self._space += text

    def _call(self, body: str) -> bool:
        """Emits the calls in the text between the tags; False when it cannot be read."""
        calls = _parsed(body)
        for name, arguments in calls or ():
            self._parts.append(ToolCallPart(self.calls, self._new_call_id(), name, arguments))
            self.calls += 1
        return bool(calls)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest suffix of *text* that is a proper prefix of *tag*."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def _parsed(body: str) -> list[tuple[str, str]] | None:
    """Names and arguments (JSON text as the model wrote it); None when it is no call."""
    try:
        found = _read_calls.decode(body.strip(_SPACE))
        members = found if isinstance(found, list) else [found]
        return [(_name(member), _arguments(member)) for member in members]
    except (msgspec.MsgspecError, KeyError, UnicodeError, RecursionError):
        return None


def _name(member: _Members) -> str:
    name: str = msgspec.json.decode(member["name"], type=str)
    if not name:
        raise KeyError("name")
    return name


def _arguments(member: _Members) -> str:
    """Some models say ``parameters``, some write the object as a string, some write nothing."""
    raw = bytes(member.get("arguments", member.get("parameters", msgspec.Raw(b"{}")))).strip()
    if raw.startswith(b'"'):
        raw = msgspec.json.decode(raw, type=str).strip().encode()
    if raw in (b"", b"null"):
        return "{}"
    msgspec.json.decode(raw, type=_Members)
    return raw.decode()
