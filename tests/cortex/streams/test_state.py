"""The stream state machine: nothing lost in silence, nobody else's frames."""

from typing import Any

import msgspec
import pytest

from cortex.streams.events import Alive, Broken, Ended, Move, Parts, Repair, Started, Stranger
from cortex.streams.state import StreamState
from protocol import frames
from protocol.errors import ErrorCode, WireError
from protocol.frames import Phase, Text
from protocol.generate import FinishReason, Usage


def accepted(**changes: Any) -> frames.Accepted:
    return msgspec.structs.replace(
        frames.Accepted(
            attempt=1, instance="i1", node="n1", prompt_tokens=9, prompt_hash="h", max_tokens=50
        ),
        **changes,
    )


def delta(index: int, *tokens: int, **changes: Any) -> frames.Delta:
    made = frames.Delta(
        attempt=1,
        instance="i1",
        index=index,
        tokens=tokens,
        parts=tuple(Text(f"<{t}>") for t in tokens),
    )
    return msgspec.structs.replace(made, **changes)


def finished(count: int) -> frames.Finished:
    return frames.Finished(
        attempt=1, instance="i1", next_index=count, reason=FinishReason.STOP, usage=Usage(9, count)
    )


def keep_alive(next_index: int) -> frames.KeepAlive:
    return frames.KeepAlive(
        attempt=1, instance="i1", next_index=next_index, phase=Phase.DECODE, done=9, total=9
    )


def test_an_undisturbed_stream() -> None:
    state = StreamState()
    assert state.receive(accepted()) == Started("n1", 9, 50)
    assert state.receive(keep_alive(0)) == Alive(Phase.DECODE, 9, 9)
    assert state.receive(delta(0, 5)) == Parts((Text("<5>"),), 1, 1)
    assert state.receive(delta(1, 6, 7)) == Parts((Text("<6>"), Text("<7>")), 2, 3)
    event = state.receive(finished(3))
    assert isinstance(event, Ended)
    assert state.is_over
    assert state.receive(delta(3, 8)) is None


@pytest.mark.parametrize(
    "lossy",
    [delta(2, 7), keep_alive(2), finished(2)],
    ids=["gap", "tail seen by keep-alive", "tail seen by the end"],
)
def test_a_hole_is_asked_for_again(lossy: frames.AnyFrame) -> None:
    state = StreamState()
    state.receive(accepted())
    state.receive(delta(0, 5))
    assert state.receive(lossy) == Repair("i1", 1)
    assert state.receive(delta(1, 6)) == Parts((Text("<6>"),), 1, 2)
    assert not state.is_over


def test_frames_of_other_attempts_and_other_lives_change_nothing() -> None:
    state = StreamState()
    state.receive(accepted())
    assert state.receive(delta(0, 1, attempt=2)) == Stranger("i1", 2)
    assert state.receive(delta(0, 1, instance="i0")) == Stranger("i0", 1)
    assert state.receive(accepted(instance="i2", node="n2")) == Stranger("i2", 1)
    assert state.receive(delta(0, 1)) == Parts((Text("<1>"),), 1, 1)


def test_another_attempt_goes_on_with_the_next_token() -> None:
    state = StreamState()
    state.receive(accepted(numerics="a"))
    state.receive(delta(0, 5, 6))
    state.next_attempt(2)
    assert not state.new_tokens
    assert state.receive(accepted(attempt=2, instance="i2", node="n2", numerics="a")) is None
    again = delta(2, 7, attempt=2, instance="i2")
    assert state.receive(again) == Parts((Text("<7>"),), 1, 3)
    assert state.new_tokens
    assert state.is_exact
    assert state.tokens == [5, 6, 7]


@pytest.mark.parametrize(
    ("first", "second", "exact"), [("a", "a", True), ("a", "b", False), ("", "", False)]
)
def test_only_equal_numerics_are_exact(first: str, second: str, exact: bool) -> None:
    state = StreamState()
    state.receive(accepted(numerics=first))
    state.receive(delta(0, 5))
    state.next_attempt(2)
    state.receive(accepted(attempt=2, instance="i2", numerics=second))
    assert state.is_exact is exact


def test_other_files_are_not_exact() -> None:
    state = StreamState()
    state.receive(accepted(numerics="a", revision="r1"))
    state.receive(delta(0, 5))
    state.next_attempt(2)
    state.receive(accepted(attempt=2, instance="i2", numerics="a", revision="r2"))
    assert not state.is_exact


def test_without_a_token_the_second_attempt_is_as_good_as_a_first() -> None:
    state = StreamState()
    state.receive(accepted(numerics="a"))
    state.next_attempt(2)
    assert state.receive(accepted(attempt=2, instance="i2", numerics="b")) is None
    state.receive(delta(0, 5, attempt=2, instance="i2"))
    assert state.is_exact
    state.next_attempt(3)
    state.receive(accepted(attempt=3, instance="i3", numerics="b"))
    assert state.is_exact


def test_another_prompt_is_not_gone_on_with() -> None:
    state = StreamState()
    state.receive(accepted())
    state.receive(delta(0, 5))
    state.next_attempt(2)
    other = accepted(attempt=2, instance="i2", node="n2", prompt_hash="other")
    assert isinstance(state.receive(other), Move)
    assert not state.instance


@pytest.mark.parametrize(
    ("code", "death"), [(ErrorCode.ENGINE_FAILED, True), (ErrorCode.STREAM_LOST, False)]
)
def test_a_retryable_failure_moves_the_stream(code: ErrorCode, death: bool) -> None:
    state = StreamState()
    state.receive(accepted())
    error = WireError(code, "gone")
    failed = frames.Failed(attempt=1, instance="i1", node="n1", error=error, retryable=True)
    assert state.receive(failed) == Move(error, is_death=death)
    assert not state.is_over


def test_a_restarted_neuron_says_that_it_knows_nothing() -> None:
    state = StreamState()
    state.receive(accepted())
    error = WireError(ErrorCode.STREAM_LOST, "does not know it")
    failed = frames.Failed(attempt=1, instance="i9", node="n1", error=error, retryable=True)
    assert state.receive(failed) == Move(error, is_death=True)


def test_the_usage_keeps_what_the_first_attempt_found_in_its_cache() -> None:
    state = StreamState()
    state.receive(accepted())
    state.receive(delta(0, 5, cached_tokens=7))
    state.next_attempt(2)
    state.receive(accepted(attempt=2, instance="i2"))
    end = state.receive(msgspec.structs.replace(finished(1), attempt=2, instance="i2"))
    assert isinstance(end, Ended)
    assert end.usage == Usage(9, 1, cached_tokens=7)


def test_repetitions_change_nothing() -> None:
    state = StreamState()
    state.receive(accepted())
    state.receive(delta(0, 1))
    assert state.receive(accepted()) is None
    assert state.receive(delta(0, 1)) is None
    assert state.next_index == 1


def test_a_lost_accepted_is_asked_for() -> None:
    assert StreamState().receive(delta(0, 1)) == Repair("i1", 0)


def test_a_refusal_passes_its_reason_on() -> None:
    error = WireError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")
    failed = frames.Failed(attempt=1, instance="i1", node="n1", error=error)
    assert StreamState().receive(failed) == Broken(error)
