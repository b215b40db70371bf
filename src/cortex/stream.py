"""One answer stream as a pure state machine: frames in, events out.

It fences off frames of other attempts and other lives of a neuron, and never passes over a hole:
NATS core may drop messages, so a frame whose index is not the next one ends the stream with an
error instead of silently changing the text. It knows neither the bus nor HTTP.
"""

from typing import NamedTuple

from protocol import frames
from protocol.errors import ErrorCode, WireError
from protocol.frames import Part, Phase
from protocol.generate import FinishReason, Timings, Usage


class Started(NamedTuple):
    """A neuron has the request."""

    node: str
    prompt_tokens: int
    max_tokens: int


class Parts(NamedTuple):
    """New pieces of the answer."""

    parts: tuple[Part, ...]
    tokens: int
    """How many tokens they took."""


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


class Broken(NamedTuple):
    """The stream ends here with an error."""

    error: WireError


Event = Started | Parts | Alive | Ended | Broken


class Stranger(NamedTuple):
    """A neuron that is not (or no longer) the one we listen to works on this job."""

    instance: str


class StreamState:
    """What is known of one job's stream."""

    def __init__(self, attempt: int = 1) -> None:
        self.attempt = attempt
        self.instance = ""
        """The neuron's process that we listen to; empty before Accepted."""
        self.node = ""
        self.next_index = 0
        self.is_over = False

    def receive(self, frame: frames.AnyFrame) -> Event | Stranger | None:
        """Takes one frame; None when it changes nothing."""
        if self.is_over or frame.attempt != self.attempt:
            return None
        if self.instance and frame.instance != self.instance:
            return Stranger(frame.instance)
        match frame:
            case frames.Accepted():
                return self._accepted(frame)
            case frames.Failed():
                return self._break(frame.error)
            case _ if not self.instance:
                return self._lost("its first frame was lost")
            case frames.Delta():
                return self._delta(frame)
            case frames.KeepAlive():
                if frame.next_index > self.next_index:
                    return self._lost(f"tokens up to {frame.next_index} were lost")
                return Alive(frame.phase, frame.done, frame.total)
            case frames.Finished():
                if frame.next_index != self.next_index:
                    return self._lost(f"{frame.next_index - self.next_index} last tokens were lost")
                self.is_over = True
                return Ended(frame.reason, frame.usage, frame.timings)
            case frames.Busy():
                return None

    def silence(self, seconds: float) -> Event:
        """The neuron has sent nothing for too long."""
        return self._lost(f"no sign of life for {seconds:.1f} s")

    def _accepted(self, frame: frames.Accepted) -> Event | None:
        if self.instance:
            return None  # delivered twice to the same neuron
        self.instance, self.node = frame.instance, frame.node
        return Started(frame.node, frame.prompt_tokens, frame.max_tokens)

    def _delta(self, frame: frames.Delta) -> Event | None:
        if frame.index > self.next_index:
            return self._lost(f"tokens {self.next_index} to {frame.index - 1} were lost")
        if frame.index < self.next_index:
            return None  # a repetition
        self.next_index += len(frame.tokens)
        return Parts(frame.parts, len(frame.tokens))

    def _lost(self, why: str) -> Broken:
        return self._break(
            WireError(
                ErrorCode.STREAM_LOST,
                f"The answer broke off after {self.next_index} tokens: node "
                f"{self.node or '(unknown)'}, {why}. Send the request again.",
                retry_after_seconds=1,
            )
        )

    def _break(self, error: WireError) -> Broken:
        self.is_over = True
        return Broken(error)
