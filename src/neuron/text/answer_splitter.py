"""Splits a model's answer, as it streams, into thinking, visible text and tool calls.

A state machine over decoded text; its result does not depend on how the text is divided into
chunks. It holds back only what could become a tag that matters in its state, and a tool call while
that may still turn out to be plain text. Removed from the answer are:

- the tags ``<think>`` and ``</think>`` (also a second ``</think>`` after thinking ended, and one at
  the start of an answer), and the tags around a call;
- white space before ``<think>`` and after ``</think>``, one line break after ``<think>`` and one at
  the end of the thinking;
- white space before the first call of an otherwise empty answer, between calls, around the JSON of
  a call, and after the last call at the end of the answer.

Everything else is passed on; an invalid call comes out as text, tags included. Knows nothing about
tokens; the caller counts those that it fed while :attr:`AnswerSplitter.in_reasoning`.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto

from neuron.text.joining import joined
from neuron.text.tool_calls.call_reader import CallReader
from neuron.text.tool_calls.call_style import (
    CALL,
    CALL_END,
    FUNCTION,
    PYTHON_TAG,
    THINK,
    THINK_END,
    TOOL_CALLS,
    CallStyle,
)
from neuron.text.tool_calls.json_calls import JsonReader, NamedReader
from neuron.text.tool_calls.xml_calls import Schema, XmlReader
from protocol.frames import AnswerPart, Reasoning, Text, ToolCallPart

MOST_AT_ONCE = 4096
"""Characters that are looked at together. What follows a tag is copied at each tag, so that a long
text with many of them must come in pieces."""


class _State(Enum):
    BOUNDARY = auto()
    """Where content may begin: at the start, after thinking, after a call."""
    CONTENT = auto()
    THINKING_BEGINS = auto()
    THINKING = auto()
    CALL_BEGINS = auto()
    """After the mark, until the form of the call is known."""
    CALL = auto()
    CALL_ENDS = auto()
    """After the call, until what closes it."""
    BROKEN_CALL = auto()
    """The call became unparsable after part of it was sent; the rest passes through verbatim."""


class AnswerSplitter:
    """Splits one answer into its parts."""

    def __init__(
        self,
        *,
        starts_in_thinking: bool,
        tools: Mapping[str, Schema] | None,
        new_call_id: Callable[[], str],
        style: CallStyle = CallStyle.HERMES,
    ) -> None:
        """*starts_in_thinking*: the prompt ends inside ``<think>``. *tools*, by name: without any,
        the marks of calls are ordinary text. *new_call_id* returns an id for each call.
        """
        self.calls = 0
        """Number of tool calls that have begun to come out."""
        self.ended_calls = 0
        """Number of tool calls that are complete."""
        self._new_call_id = new_call_id
        self._style = style
        self._tools = tools or {}
        self._marks = style.marks if tools else ()
        self._state = _State.THINKING_BEGINS if starts_in_thinking else _State.BOUNDARY
        self._thought = starts_in_thinking
        """Thinking has begun, so another ``</think>`` in the content is a stray tag."""
        self._may_open = True
        """``<think>`` may still come, as there was only white space so far."""
        self._trim = False
        """At a boundary: drop white space even when text follows."""
        self._held = ""
        """Text that has arrived but is not decided yet."""
        self._white: list[str] = []
        """White space before it, kept apart because there may be much, and each step reads all of
        the former."""
        self._gap = ""
        """White space before the mark, needed if the mark does not open a call."""
        self._mark = ""
        self._from_thinking = False
        """Whether the mark came in the middle of thinking."""
        self._reader: CallReader = JsonReader()
        self._raw: list[str] = []
        """A call's text after its mark, while it may still come out as text."""
        self._parts: list[AnswerPart] = []

    @property
    def in_reasoning(self) -> bool:
        """Whether the text fed last is thinking (as far as is known yet)."""
        return self._state in (_State.THINKING_BEGINS, _State.THINKING)

    def feed(self, text: str) -> tuple[AnswerPart, ...]:
        """Takes the next chunk of the answer; returns the parts that became certain."""
        for start in range(0, len(text), MOST_AT_ONCE):
            self._take(text[start : start + MOST_AT_ONCE])
        return self._taken()

    def _take(self, text: str) -> None:
        if not self._held and self._waits_for_text and text.isspace():
            self._white.append(text)
            return
        self._held = "".join((*self._white, self._held, text))
        self._white.clear()
        self._run()
        if self._waits_for_text and self._held.isspace():
            self._white, self._held = [self._held], ""

    @property
    def _waits_for_text(self) -> bool:
        """Whether white space alone decides nothing."""
        waits = (_State.BOUNDARY, _State.CALL_BEGINS, _State.CALL_ENDS)
        return self._state in waits or (self._state is _State.THINKING_BEGINS and self._may_open)

    def finish(self) -> tuple[AnswerPart, ...]:
        """Ends the answer; returns what was held back."""
        self._held = "".join((*self._white, self._held))
        self._white.clear()
        if self._state is _State.CALL:
            self._reader.finish()
            if self._reader.is_over or self._reader.has_begun:
                self._state = _State.CALL_ENDS
        if self._state is _State.CALL_ENDS:
            self._close_call()
            self._held = ""  # at most a part of the closing tag
        if self._state in (_State.CALL_BEGINS, _State.CALL):
            self._give_up_call("")
            self._run()
        match self._state:
            case _State.THINKING_BEGINS:
                self._think(self._held.removeprefix("\n"))
            case _State.THINKING:
                self._think(self._held)
            case _State.BOUNDARY:
                _, rest = _split_white(self._held)
                dropped = self._trim or (self.calls and not rest)
                self._say(rest if dropped else self._held)
            case _State.BROKEN_CALL:
                self._argue(self._held)
            case _:
                self._say(self._held)
        self._held = ""
        return self._taken()

    def _run(self) -> None:
        """Decides all that can be decided: each step consumes text or changes the state."""
        steps = {
            _State.BOUNDARY: self._at_boundary,
            _State.CONTENT: self._in_content,
            _State.THINKING_BEGINS: self._at_thinking,
            _State.THINKING: self._in_thinking,
            _State.CALL_BEGINS: self._at_call,
            _State.CALL: self._in_call,
            _State.CALL_ENDS: self._after_call,
            _State.BROKEN_CALL: self._in_broken_call,
        }
        while steps[self._state]():
            pass

    # -- text and thinking ---------------------------------------------------------------------

    def _at_boundary(self) -> bool:
        white, rest = _split_white(self._held)
        tags = (*self._marks, *((THINK,) if self._may_open else ()))
        if self._thought or self._may_open:
            tags = (*tags, THINK_END)
        tag = next((tag for tag in tags if rest.startswith(tag)), "")
        if not tag and _may_become(rest, tags):
            return False
        self._may_open = False
        gap = "" if self._trim else white
        if not tag and rest[0] == "{" and self._is_bare:
            self._held = rest
            self._open_call("", gap=gap, from_thinking=False)
            return True
        self._held = rest.removeprefix(tag)
        if tag == THINK:
            self._thought = True
            self._state = _State.THINKING_BEGINS
        elif tag == THINK_END:
            self._thought = self._trim = True
        elif tag:
            self._open_call(tag, gap=gap, from_thinking=False)
        else:
            self._say(gap)
            self._state = _State.CONTENT
        return True

    @property
    def _is_bare(self) -> bool:
        """Whether calls come without a mark."""
        return bool(self._marks) and self._style is CallStyle.LLAMA

    def _in_content(self) -> bool:
        tags = (*self._marks, *((THINK_END,) if self._thought else ()))
        before, tag, self._held = _cut(self._held, tags)
        self._say(before)
        if tag and tag != THINK_END:
            self._open_call(tag, gap="", from_thinking=False)
        return bool(tag)

    def _at_thinking(self) -> bool:
        if self._may_open:  # a model may repeat the tag that ended its prompt
            _, rest = _split_white(self._held)
            if not rest.startswith(THINK) and _may_become(rest, (THINK,)):
                return False
            self._may_open = False
            if rest.startswith(THINK):
                self._held = rest.removeprefix(THINK)
        if not self._held:
            return False
        self._held = self._held.removeprefix("\n")
        self._state = _State.THINKING
        return True

    def _in_thinking(self) -> bool:
        before, tag, rest = _cut(self._held, (THINK_END, *self._marks))
        text = before.removesuffix("\n")
        line_break = before[len(text) :]
        self._think(text)
        self._held = rest if tag else line_break + rest
        if tag == THINK_END:
            self._trim = True
            self._state = _State.BOUNDARY
        elif tag:
            self._open_call(tag, gap=line_break, from_thinking=True)
        return bool(tag)

    # -- calls ---------------------------------------------------------------------------------

    def _open_call(self, mark: str, *, gap: str, from_thinking: bool) -> None:
        self._mark, self._gap, self._from_thinking = mark, gap, from_thinking
        self._raw = []
        self._state = _State.CALL_BEGINS

    def _at_call(self) -> bool:
        """Chooses a reader by what follows the mark."""
        white, rest = _split_white(self._held)
        if self._mark == FUNCTION:
            self._held = FUNCTION + self._held
            self._mark = ""
            self._begin_call(XmlReader(self._tools))
        elif not rest:
            return False
        elif rest[0] in "{[":
            self._raw, self._held = [white], rest
            end = CALL_END if self._mark == CALL else ""
            self._begin_call(JsonReader(end, is_certain=bool(self._mark)))
        elif self._mark == CALL and rest.startswith(FUNCTION):
            self._begin_call(XmlReader(self._tools))
        elif self._mark == CALL and FUNCTION.startswith(rest):
            return False
        elif self._mark == TOOL_CALLS:
            self._begin_call(NamedReader())
        else:
            self._give_up_call(self._held)
        return True

    def _begin_call(self, reader: CallReader) -> None:
        self._reader = reader
        self._state = _State.CALL

    def _in_call(self) -> bool:
        if not self._held:
            return False
        text, self._held = self._held, ""
        reader = self._reader
        if not reader.has_begun:
            self._raw.append(text)
        rest = reader.take(text)
        self._give(all_of_it=False)
        if reader.is_wrong and reader.has_begun:
            self._held, self._state = rest, _State.BROKEN_CALL
        elif reader.is_wrong:
            self._give_up_call(rest)
        elif reader.is_over:
            self._held, self._state = rest, _State.CALL_ENDS
            if not reader.has_begun:
                raw = "".join(self._raw)
                self._raw = [raw[: len(raw) - len(rest)]]
        return self._state is not _State.CALL

    def _after_call(self) -> bool:
        """Ends a call at its closing tag, or at the next call's mark."""
        _, rest = _split_white(self._held)
        ends = (CALL_END, CALL, *((FUNCTION,) if isinstance(self._reader, XmlReader) else ()))
        if self._mark == PYTHON_TAG or self._is_bare:
            ends = (";", PYTHON_TAG)
        elif self._mark == TOOL_CALLS:
            ends = (TOOL_CALLS,)
        end = next((end for end in ends if rest.startswith(end)), "")
        if not end and _may_become(rest, ends):
            return False
        if end or self._reader.has_begun:
            self._close_call()
            self._held = rest.removeprefix(end) if end in (CALL_END, ";") else self._held
        else:
            self._give_up_call(self._held)
        return True

    def _in_broken_call(self) -> bool:
        ends = tuple(mark for mark in (CALL_END, TOOL_CALLS) if mark != self._mark)
        before, end, self._held = _cut(self._held, ends)
        self._argue(before)
        if end:
            self._trim, self._state = False, _State.BOUNDARY
        return bool(end)

    def _close_call(self) -> None:
        self._give(all_of_it=True)
        self._trim = False
        self._state = _State.BOUNDARY

    def _give(self, *, all_of_it: bool) -> None:
        """Passes on what is certain of the call."""
        for piece in self._reader.given(all_of_it=all_of_it):
            if piece.name:
                part = ToolCallPart(self.calls, self._new_call_id(), piece.name, piece.arguments)
                self._parts.append(part)
                self.calls += 1
            else:
                self._argue(piece.arguments)
            self.ended_calls += piece.ends

    def _give_up_call(self, rest: str) -> None:
        """Gives back as text what looked like a call; the undecided *rest* is read again."""
        if self._from_thinking and self._state is _State.CALL_BEGINS:
            # the model is thinking about the tag rather than using it
            self._think(self._gap + self._mark)
            self._state = _State.THINKING
            self._held = rest or self._held
            return
        raw = "".join(self._raw)
        written = raw[: len(raw) - len(rest)] if self._state is _State.CALL else raw
        self._say(("" if self._from_thinking else self._gap) + self._mark + written)
        self._held = rest or self._held
        self._state = _State.CONTENT

    # -- output --------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Text(text))

    def _think(self, text: str) -> None:
        if text:
            self._parts.append(Reasoning(text))

    def _argue(self, text: str) -> None:
        if text:
            self._parts.append(ToolCallPart(self.calls - 1, arguments=text))

    def _taken(self) -> tuple[AnswerPart, ...]:
        """Returns the parts so far, with neighbours of the same kind joined."""
        parts, self._parts = self._parts, []
        return joined(parts)


def _split_white(text: str) -> tuple[str, str]:
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


def _may_become(text: str, tags: tuple[str, ...]) -> bool:
    """Whether *text* is the beginning of a tag, or empty."""
    return any(tag.startswith(text) for tag in tags) or not text


def _cut(text: str, tags: tuple[str, ...]) -> tuple[str, str, str]:
    """Returns the text before the first of *tags*, that tag, and what follows.

    Without a tag: the text that certainly precedes one, "", and the longest suffix of *text* that
    could begin a tag.
    """
    found = [(text.find(tag), tag) for tag in tags if tag in text]
    if found:
        at, tag = min(found)
        return text[:at], tag, text[at + len(tag) :]
    # only the last bracket can begin a tag: no tag contains a second one
    at = max(text.rfind("<"), text.rfind("["))
    if at >= 0 and any(tag.startswith(text[at:]) for tag in tags):
        return text[:at], "", text[at:]
    return text, "", ""
