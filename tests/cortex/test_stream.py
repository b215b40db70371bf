"""The stream state machine: nothing lost in silence, nobody else's frames."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.stream import Alive, Broken, Ended, Parts, Started, Stranger, StreamState
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
    assert state.receive(delta(0, 5)) == Parts((Text("<5>"),), 1)
    assert state.receive(delta(1, 6, 7)) == Parts((Text("<6>"), Text("<7>")), 2)
    event = state.receive(finished(3))
    assert isinstance(event, Ended)
    assert state.is_over
    assert state.receive(delta(3, 8)) is None


@pytest.mark.parametrize(
    "lossy",
    [delta(2, 7), keep_alive(2), finished(2)],
    ids=["gap", "tail seen by keep-alive", "tail seen by the end"],
)
def test_a_hole_ends_the_stream_with_an_error(lossy: frames.AnyFrame) -> None:
    state = StreamState()
    state.receive(accepted())
    state.receive(delta(0, 5))
    event = state.receive(lossy)
    assert isinstance(event, Broken)
    assert event.error.code is ErrorCode.STREAM_LOST
    assert "after 1 tokens" in event.error.message
    assert state.is_over


def test_frames_of_other_attempts_and_other_lives_change_nothing() -> None:
    state = StreamState()
    state.receive(accepted())
    assert state.receive(delta(0, 1, attempt=2)) is None
    assert state.receive(delta(0, 1, instance="i0")) == Stranger("i0")
    assert state.receive(accepted(instance="i2", node="n2")) == Stranger("i2")
    assert state.receive(delta(0, 1)) == Parts((Text("<1>"),), 1)


def test_repetitions_change_nothing() -> None:
    state = StreamState()
    state.receive(accepted())
    state.receive(delta(0, 1))
    assert state.receive(accepted()) is None
    assert state.receive(delta(0, 1)) is None
    assert state.next_index == 1


def test_a_lost_accepted_is_noticed() -> None:
    event = StreamState().receive(delta(0, 1))
    assert isinstance(event, Broken)
    assert "first frame" in event.error.message


def test_a_refusal_passes_its_reason_on() -> None:
    error = WireError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")
    failed = frames.Failed(attempt=1, instance="i1", node="n1", error=error)
    assert StreamState().receive(failed) == Broken(error)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=12),
    st.data(),
)
def test_any_loss_and_repetition_gives_a_prefix_then_an_error_or_everything(
    steps: list[list[int]], data: st.DataObject
) -> None:
    """Whatever core NATS does to the frames, the client sees a true prefix."""
    sent: list[frames.AnyFrame] = []
    index = 0
    for tokens in steps:
        sent += [delta(index, *tokens), keep_alive(index + len(tokens))]
        index += len(tokens)
    sent.append(finished(index))
    arrived: list[frames.AnyFrame] = []
    for frame in sent:
        arrived += [frame] * data.draw(st.sampled_from([0, 1, 1, 1, 2]))
    whole = [t for tokens in steps for t in tokens]
    state = StreamState()
    state.receive(accepted())
    seen: list[str] = []
    last: object = None
    for frame in arrived:
        event = state.receive(frame)
        if isinstance(event, Parts):
            seen += [p.text for p in event.parts if isinstance(p, Text)]
        last = event or last
    expected = [f"<{t}>" for t in whole]
    assert seen == expected[: len(seen)]
    if isinstance(last, Ended):
        assert seen == expected
