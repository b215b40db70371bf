"""What comes out of a stream: events for the client's side, and actions for the bus.

``state`` produces them; ``receiver`` carries out the actions; the dialects render the events.
"""

from typing import NamedTuple

from protocol.errors import WireError
from protocol.frames import AnswerPart, Phase
from protocol.generate import FinishReason, Timings, Usage


class Started(NamedTuple):
    """A neuron accepted the request; sent once per request."""

    node: str
    prompt_tokens: int
    max_tokens: int


class Parts(NamedTuple):
    """New parts of the answer."""

    parts: tuple[AnswerPart, ...]
    tokens: int
    """The number of tokens in them."""
    next_index: int
    """The number of tokens that the answer has with them."""


class Alive(NamedTuple):
    """Nothing is new, but the neuron is at work."""

    phase: Phase
    done: int
    total: int


class Ended(NamedTuple):
    """The answer is complete; nothing follows."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_text: str = ""
    """The stop text that ended it; empty if none did."""


class Broken(NamedTuple):
    """The stream ends here with an error."""

    error: WireError


Event = Started | Parts | Alive | Ended | Broken


class Stranger(NamedTuple):
    """A neuron that is not (or no longer) the one we listen to works on this job."""

    instance: str
    attempt: int


class Repair(NamedTuple):
    """Frames are missing: request those from this token on."""

    instance: str
    start: int


class Move(NamedTuple):
    """The attempt ended before the answer did: another attempt must continue it."""

    error: WireError
    is_death: bool = False
    """Whether its neuron or engine died, rather than declined."""


Action = Stranger | Repair | Move
