"""What comes out of a stream: events for the client's side, and actions for the bus.

``state`` makes them; ``receiver`` carries the actions out; the dialects render the events.
"""

from typing import NamedTuple

from protocol.errors import WireError
from protocol.frames import AnswerPart, Phase
from protocol.generate import FinishReason, Timings, Usage


class Started(NamedTuple):
    """A neuron has the request; once for each request."""

    node: str
    prompt_tokens: int
    max_tokens: int


class Parts(NamedTuple):
    """New pieces of the answer."""

    parts: tuple[AnswerPart, ...]
    tokens: int
    """How many tokens they took."""
    next_index: int
    """How many tokens the answer has with them."""


class Alive(NamedTuple):
    """Nothing new, but the neuron is at work."""

    phase: Phase
    done: int
    total: int


class Ended(NamedTuple):
    """The answer is complete."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_text: str = ""
    """The stop text that ended it, if one did."""


class Broken(NamedTuple):
    """The stream ends here with an error."""

    error: WireError


Event = Started | Parts | Alive | Ended | Broken


class Stranger(NamedTuple):
    """A neuron that is not (or no longer) the one we listen to works on this job."""

    instance: str
    attempt: int


class Repair(NamedTuple):
    """Frames are missing: ask for those from this token on."""

    instance: str
    start: int


class Move(NamedTuple):
    """This attempt has ended and the answer has not: another one has to go on."""

    error: WireError
    is_death: bool = False
    """Its neuron or engine is gone, rather than unwilling."""


Action = Stranger | Repair | Move
