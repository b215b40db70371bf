"""One answer stream as a pure state machine: frames in, events and actions out.

Core NATS may drop and delay frames, a thawed sender may repeat them, and an answer may come from
several neurons one after the other. What comes out is every token once and in order: missing frames
are requested again, frames of other attempts and other lives of a neuron are fenced off, and an
answer that cannot continue where it is moves. It knows neither the bus nor HTTP.
"""

import msgspec

from cortex.streams.events import (
    Action,
    Alive,
    Broken,
    Ended,
    Event,
    Move,
    Parts,
    Repair,
    Started,
    Stranger,
)
from cortex.streams.lifecycle import STREAM, Lifecycle, StreamPhase, StreamStep
from protocol import frames
from protocol.errors import ErrorCode, WireError
from protocol.frames import Phase

# -- events: what the client's side is told --------------------------------------------------------


# -- actions: what has to be done on the bus -------------------------------------------------------


class StreamState:
    """Everything that is known about one job's stream."""

    def __init__(self, attempt: int = 1) -> None:
        self.attempt = attempt
        self.instance = ""
        """The process of the neuron that we listen to; empty before this attempt was accepted."""
        self.node = ""
        self.tokens: list[int] = []
        """The tokens of the answer so far."""
        self.first: frames.Accepted | None = None
        """The acceptance of the first attempt that a neuron accepted."""
        self.is_exact = True
        """Whether all attempts compute the same to the bit, as far as their nodes tell."""
        self._life = Lifecycle(STREAM, StreamPhase.WAITING)
        self.was_held = False
        """Whether the present attempt's engine has not seen the job yet, as far as is known."""
        self._attempt_began_at = 0
        self._cached_tokens = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing that arrives changes the stream any more."""
        return self._life.phase is StreamPhase.OVER

    def give_up(self) -> None:
        """Ends the stream for a reason that no neuron gave."""
        self._life.step(StreamStep.GIVEN_UP)

    @property
    def next_index(self) -> int:
        """The number of tokens that have arrived."""
        return len(self.tokens)

    @property
    def new_tokens(self) -> int:
        """The number of tokens that the present attempt has added."""
        return len(self.tokens) - self._attempt_began_at

    def next_attempt(self, attempt: int) -> None:
        """Begins the next attempt: only its frames count from now on."""
        self._life.step(StreamStep.NEXT_ATTEMPT)
        self.attempt = attempt
        self.instance = self.node = ""
        self.was_held = False
        self._attempt_began_at = len(self.tokens)

    def receive(self, frame: frames.AnyFrame) -> Event | Action | None:
        """Takes one frame and returns what follows from it; None when it changes nothing."""
        if self.is_over:
            return None
        if frame.attempt != self.attempt:
            return Stranger(frame.instance, frame.attempt)
        if self._life.phase is StreamPhase.WAITING:
            return self._before_accepted(frame)
        if frame.instance != self.instance:
            if isinstance(frame, frames.Failed) and frame.node == self.node:
                self._life.step(StreamStep.LOST)  # its process is another one now
                return Move(frame.error, is_death=True)
            return Stranger(frame.instance, frame.attempt)
        match frame:
            case frames.Delta():
                return self._delta(frame)
            case frames.KeepAlive():
                self.was_held = frame.phase is Phase.HELD
                if frame.next_index > self.next_index:
                    return self._repair(self.instance)
                self._life.step(StreamStep.SIGN_OF_LIFE)
                return Alive(frame.phase, frame.done, frame.total)
            case frames.Finished():
                if frame.next_index > self.next_index:
                    return self._repair(self.instance)
                return self._finished(frame)
            case frames.Accepted():
                return None  # it came twice
            case _:
                return self._refused(frame)

    def _before_accepted(self, frame: frames.AnyFrame) -> Event | Action | None:
        match frame:
            case frames.Accepted():
                return self._accepted(frame)
            case frames.Failed() | frames.Busy():
                return self._refused(frame)
            case _:
                return self._repair(frame.instance)  # Accepted is missing

    def _repair(self, instance: str) -> Repair:
        self._life.step(StreamStep.GAP)
        return Repair(instance, self.next_index)

    def _accepted(self, frame: frames.Accepted) -> Event | Action | None:
        first, self.first = self.first, self.first or frame
        if first is not None and frame.prompt_hash != first.prompt_hash:
            why = f"Node {frame.node} renders another prompt than {first.node} did."
            self._life.step(StreamStep.OTHER_PROMPT)
            return Move(WireError(ErrorCode.MODEL_UNAVAILABLE, why))
        self._life.step(StreamStep.ACCEPTED)
        self.instance, self.node = frame.instance, frame.node
        if first is None:
            return Started(frame.node, frame.prompt_tokens, frame.max_tokens)
        if not self.tokens:
            self.first = frame  # no token of an earlier attempt was ever seen
        elif not frame.numerics or _class_of(frame) != _class_of(first):
            self.is_exact = False
        return None

    def _delta(self, frame: frames.Delta) -> Event | Action | None:
        known = len(self.tokens)
        if frame.index != known:
            return self._repair(self.instance) if frame.index > known else None  # or it came twice
        if not known:
            self._cached_tokens = frame.cached_tokens
        self._life.step(StreamStep.TOKENS)
        new = len(frame.tokens)
        self.tokens += frame.tokens
        return Parts(frame.parts, new, known + new)

    def _finished(self, frame: frames.Finished) -> Ended:
        self._life.step(StreamStep.FINISHED)
        usage = msgspec.structs.replace(frame.usage, cached_tokens=self._cached_tokens)
        return Ended(frame.reason, usage, frame.timings, frame.stop_text)

    def _refused(self, frame: frames.Failed | frames.Busy) -> Event | Action:
        if isinstance(frame, frames.Busy):
            self._life.step(StreamStep.LOST)
            busy = f"Node {frame.node} has no free slot."
            return Move(WireError(ErrorCode.OVERLOADED, busy))
        if frame.retryable:
            self._life.step(StreamStep.LOST)
            return Move(frame.error, is_death=frame.error.code is ErrorCode.ENGINE_FAILED)
        self._life.step(StreamStep.FAILED)
        return Broken(frame.error)


def _class_of(accepted: frames.Accepted) -> tuple[str, str]:
    """Equal for attempts that compute the same to the bit: same files, computed the same way."""
    return accepted.revision, accepted.numerics
