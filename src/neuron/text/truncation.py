"""Finds how few of a conversation's oldest turns must be left out to make it fit.

Begins at the end of the conversation, so that what it renders is never much longer than what fits,
however long the conversation is. Knows neither templates nor tokenizers: it is given what renders.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from typing import Protocol, TypeVar

import msgspec

from neuron.text.tokenizer import prompt_hash
from protocol.generate import GenerateRequest, Role

MAX_HASHES = 64
"""How many further turns are left out to find the prompt that an earlier attempt had."""


class Rendered(Protocol):
    """A rendering; see ``prompt.Rendering``."""

    @property
    def tokens(self) -> list[int]:
        """The prompt's token ids."""
        ...


R = TypeVar("R", bound=Rendered)


class Conversation:
    """A request whose oldest turns may be left out; a turn begins with a user's message."""

    def __init__(self, request: GenerateRequest, max_messages: int) -> None:
        """*max_messages*: more are never rendered."""
        self._request = request
        messages = request.messages
        self._start = next((n for n, m in enumerate(messages) if m.role is not Role.SYSTEM), 0)
        turns = [n for n, m in enumerate(messages) if m.role is Role.USER and n > self._start]
        room = max_messages - self._start
        self._turns = [number for number in turns if len(messages) - number <= room]
        sizes = accumulate(len(message.content) for message in reversed(messages))
        self._chars = list(sizes)[::-1]

    def __len__(self) -> int:
        """Number of ways to shorten it; the last leaves only the last turn."""
        return len(self._turns)

    def chars(self, number: int) -> int:
        """Characters from the first kept turn on."""
        return self._chars[self._turns[number]]

    def without(self, number: int) -> GenerateRequest:
        """The request from its turn *number* on, after the messages that introduce it."""
        messages = self._request.messages
        kept = (*messages[: self._start], *messages[self._turns[number] :])
        return msgspec.structs.replace(self._request, messages=kept)


def shortest_cut(
    conversation: Conversation,
    attempt: Callable[[int], R | None],
    room: int,
    wanted_hash: str = "",
) -> R | None:
    """Renders *conversation* without its oldest turns, leaving out as few as possible.

    *attempt* renders it from a turn on; None stands for "certainly too long". The result has fewer
    than *room* tokens. With *wanted_hash*, which an earlier attempt had, further turns are left out
    until the prompt is that one. Returns None when even the last turn alone is too long.
    """
    too_long, fits, found = _bracket(len(conversation), attempt, room)
    if found is None:
        return None
    guesses = False
    while fits - too_long > 1:
        guesses = not guesses
        number = (too_long + fits) // 2
        if guesses:  # by the tokens that its characters took so far
            chars = conversation.chars(fits) * room // max(1, len(found.tokens))
            reached = bisect_left(range(fits), -chars, key=lambda n: -conversation.chars(n))
            number = min(max(reached, too_long + 1), fits - 1)
        tried = attempt(number)
        if tried is not None and len(tried.tokens) < room:
            fits, found = number, tried
        else:
            too_long = number
    if wanted_hash:
        for number in range(fits, min(len(conversation), fits + MAX_HASHES)):
            tried = found if number == fits else attempt(number)
            if tried is not None and prompt_hash(tried.tokens) == wanted_hash:
                return tried
    return found


def _bracket(size: int, attempt: Callable[[int], R | None], room: int) -> tuple[int, int, R | None]:
    """Keeps one turn, two, four, …: returns the first number of turns left out that is too few (-1:
    none is), the last that is enough, and the latter's rendering."""
    fits, found = size, None
    while fits > 0:
        number = max(0, size - max(1, 2 * (size - fits)))
        tried = attempt(number)
        if tried is None or len(tried.tokens) >= room:
            return number, fits, found
        fits, found = number, tried
    return -1, fits, found
