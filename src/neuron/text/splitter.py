"""Splits a model's answer, as it streams, into thinking, visible text and tool calls.

A state machine over text that is decoded already; the result does not depend on how the text is cut
into pieces. Held back is only what could be the beginning of a tag that matters in the state, and a
tool call until it is closed. What disappears from the answer:

- the tags ``<think>``, ``</think>`` (also a second one after thinking ended, and one with which an
  answer begins), ``<tool_call>`` and ``</tool_call>`` of a call;
- white space before ``<think>`` and after ``</think>``, one line break after ``<think>`` and one at
  the end of the thinking;
- white space before the first call of an otherwise empty answer, between calls, around the JSON of
  a call, and after the last call at the end of the answer.

Everything else comes out; a call that is no valid call comes out as text, tags included. Knows
nothing of tokens; the caller counts those that it fed while :attr:`OutputSplitter.in_reasoning`.
"""

from collections.abc import Callable
from enum import Enum, auto

from neuron.text.tool_calls import JsonEnd, parse_calls
from protocol.frames import Part, Reasoning, Text, ToolCallPart

THINK = "<think>"
THINK_END = "</think>"
CALL = "<tool_call>"
CALL_END = "</tool_call>"


class _State(Enum):
    BOUNDARY = auto()
    """Where content begins: at the start, after thinking, after a call."""
    CONTENT = auto()
    THINKING_BEGINS = auto()
    THINKING = auto()
    CALL_BEGINS = auto()
    """After the tag, before the JSON."""
    CALL = auto()
    CALL_ENDS = auto()
    """After the JSON, before the closing tag."""


class OutputSplitter:
    """Splits one answer."""

    def __init__(
        self, *, starts_in_thinking: bool, tools_offered: bool, new_call_id: Callable[[], str]
    ) -> None:
        """*starts_in_thinking*: the prompt ends inside of ``<think>``. Where no tools were offered,
        tool tags are ordinary text. *new_call_id* names each call.
        """
        self.calls = 0
        """How many tool calls the answer holds so far."""
        self._new_call_id = new_call_id
        self._call_tags = (CALL,) if tools_offered else ()
        self._state = _State.THINKING_BEGINS if starts_in_thinking else _State.BOUNDARY
        self._thought = starts_in_thinking
        """Thinking has begun, so a further ``</think>`` in the content is a stray one."""
        self._may_open = True
        """``<think>`` may still come: nothing but white space has."""
        self._trim = False
        """At a boundary: white space is dropped even when text follows."""
        self._held = ""
        """Text that came but is not decided yet."""
        self._gap = ""
        """White space before ``<tool_call>``, for the case that it opens no call."""
        self._from_thinking = False
        """``<tool_call>`` came in the middle of thinking."""
        self._json = JsonEnd()
        self._call: list[str] = []
        """A call's text after its tag: white space, then the pieces of its JSON."""
        self._parts: list[Part] = []

    @property
    def in_reasoning(self) -> bool:
        """Whether the text fed last is thinking (as far as can be told yet)."""
        return self._state in (_State.THINKING_BEGINS, _State.THINKING)

    def feed(self, text: str) -> tuple[Part, ...]:
        """Takes the next piece of the answer; returns the parts that became certain."""
        self._held += text
        self._run()
        return self._taken()

    def finish(self) -> tuple[Part, ...]:
        """The answer is over: returns what was held back."""
        if self._state is _State.CALL_ENDS and self._close_call():
            self._held = ""  # at most a piece of the closing tag
        if self._state in (_State.CALL_BEGINS, _State.CALL, _State.CALL_ENDS):
            self._give_up_call()
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
        }
        while steps[self._state]():
            pass

    def _at_boundary(self) -> bool:
        white, rest = _split_white(self._held)
        tags = (*self._call_tags, *((THINK,) if self._may_open else ()))
        if self._thought or self._may_open:
            tags = (*tags, THINK_END)
        tag = next((tag for tag in tags if rest.startswith(tag)), "")
        if not tag and _may_become(rest, tags):
            return False
        self._may_open = False
        self._held = rest.removeprefix(tag)
        if tag == THINK:
            self._thought = True
            self._state = _State.THINKING_BEGINS
        elif tag == THINK_END:
            self._thought = self._trim = True
        elif tag == CALL:
            self._open_call(gap="" if self._trim else white, from_thinking=False)
        else:
            self._say("" if self._trim else white)
            self._state = _State.CONTENT
        return True

    def _in_content(self) -> bool:
        tags = (*self._call_tags, *((THINK_END,) if self._thought else ()))
        before, tag, self._held = _cut(self._held, tags)
        self._say(before)
        if tag == CALL:
            self._open_call(gap="", from_thinking=False)
        return bool(tag)

    def _at_thinking(self) -> bool:
        if self._may_open:  # a model may repeat the tag with which its prompt ended
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
        before, tag, rest = _cut(self._held, (THINK_END, *self._call_tags))
        text = before.removesuffix("\n")
        line_break = before[len(text) :]
        self._think(text)
        self._held = rest if tag else line_break + rest
        if tag == THINK_END:
            self._trim = True
            self._state = _State.BOUNDARY
        elif tag == CALL:
            self._open_call(gap=line_break, from_thinking=True)
        return bool(tag)

    def _open_call(self, *, gap: str, from_thinking: bool) -> None:
        self._gap, self._from_thinking = gap, from_thinking
        self._json, self._call = JsonEnd(), []
        self._state = _State.CALL_BEGINS

    def _at_call(self) -> bool:
        white, rest = _split_white(self._held)
        if not rest:
            return False
        if rest[0] in "{[":
            self._call.append(white)
            self._held = rest
            self._state = _State.CALL
        else:
            self._give_up_call()
        return True

    def _in_call(self) -> bool:
        size = self._json.take(self._held)
        self._call.append(self._held[:size])
        self._held = self._held[size:]
        if self._json.complete:
            self._state = _State.CALL_ENDS
        elif self._json.failed:
            self._give_up_call()
        return self._state is not _State.CALL

    def _after_call(self) -> bool:
        _, rest = _split_white(self._held)
        if rest.startswith((CALL_END, CALL)):  # a second call closes the first one, too
            if self._close_call():
                self._held = rest.removeprefix(CALL_END)
            else:
                self._give_up_call()
            return True
        if _may_become(rest, (CALL_END, CALL)):
            return False
        self._give_up_call()
        return True

    def _close_call(self) -> bool:
        """Emits the calls that the collected JSON holds; False when it is none."""
        calls = parse_calls("".join(self._call[1:]))
        if calls is None:
            return False
        for call in calls:
            part = ToolCallPart(self.calls, self._new_call_id(), call.name, call.arguments)
            self._parts.append(part)
            self.calls += 1
        self._trim = False
        self._state = _State.BOUNDARY
        return True

    def _give_up_call(self) -> None:
        """What began as a call comes out as it was written; what is held is looked at again."""
        if self._from_thinking and self._state is _State.CALL_BEGINS:
            # the model thinks about the tag rather than using it
            self._think(self._gap + CALL)
            self._state = _State.THINKING
            return
        self._say(("" if self._from_thinking else self._gap) + CALL + "".join(self._call))
        self._state = _State.CONTENT

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Text(text))

    def _think(self, text: str) -> None:
        if text:
            self._parts.append(Reasoning(text))

    def _taken(self) -> tuple[Part, ...]:
        """The parts so far, neighbours of the same kind joined."""
        taken: list[Part] = []
        for part in self._parts:
            last = taken[-1] if taken else None
            if isinstance(part, Text) and isinstance(last, Text):
                taken[-1] = Text(last.text + part.text)
            elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
                taken[-1] = Reasoning(last.text + part.text)
            else:
                taken.append(part)
        self._parts.clear()
        return tuple(taken)


def _split_white(text: str) -> tuple[str, str]:
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


def _may_become(text: str, tags: tuple[str, ...]) -> bool:
    """Whether *text* is the beginning of a tag, or empty."""
    return any(tag.startswith(text) for tag in tags) or not text


def _cut(text: str, tags: tuple[str, ...]) -> tuple[str, str, str]:
    """Text before the first of *tags*, that tag, and what follows.

    Without a tag: what is certain to be before one, "", and the longest end of *text* with which a
    tag could begin.
    """
    found = [(text.find(tag), tag) for tag in tags if tag in text]
    if found:
        at, tag = min(found)
        return text[:at], tag, text[at + len(tag) :]
    # only the last "<" can begin a tag: no tag holds a second one
    at = text.rfind("<")
    if at >= 0 and any(tag.startswith(text[at:]) for tag in tags):
        return text[:at], "", text[at:]
    return text, "", ""
