"""As few turns as possible are left out, and little more than what fits is ever rendered."""

import math

from hypothesis import given
from hypothesis import strategies as st

from neuron.text.tokenizer import prompt_hash
from neuron.text.truncation import Conversation, shortest_cut
from protocol.generate import GenerateRequest, Message, Role

ROLES = (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL)
messages = st.lists(st.tuples(st.sampled_from(ROLES), st.integers(0, 60)), max_size=40)


class Rendering:
    """One token for each character, and two for each message."""

    def __init__(self, request: GenerateRequest) -> None:
        self.tokens = [n for m in request.messages for n in (1, 2, *range(len(m.content)))]


def request_of(shape: list[tuple[Role, int]]) -> GenerateRequest:
    return GenerateRequest("m", tuple(Message(role, "x" * size) for role, size in shape))


@given(messages, st.integers(1, 400))
def test_it_finds_what_trying_all_would_find(shape: list[tuple[Role, int]], room: int) -> None:
    conversation = Conversation(request_of(shape), 10_000)
    found = shortest_cut(conversation, lambda n: Rendering(conversation.without(n)), room)
    fitting = (Rendering(conversation.without(n)) for n in range(len(conversation)))
    expected = next((r.tokens for r in fitting if len(r.tokens) < room), None)
    assert (found.tokens if found else None) == expected


@given(messages, st.integers(1, 400), st.integers(0, 40))
def test_a_later_attempt_finds_the_same(
    shape: list[tuple[Role, int]], room: int, more: int
) -> None:
    conversation = Conversation(request_of(shape), 10_000)

    def attempt(number: int) -> Rendering:
        return Rendering(conversation.without(number))

    first = shortest_cut(conversation, attempt, room)
    if first is not None:
        again = shortest_cut(conversation, attempt, room + more, prompt_hash(first.tokens))
        assert again is not None
        assert again.tokens == first.tokens


@given(st.integers(1, 30_000), st.integers(1, 200), st.integers(100, 20_000))
def test_little_is_rendered(turns: int, size: int, room: int) -> None:
    request = request_of([(Role.SYSTEM, 5)] + [(Role.USER, size)] * turns)
    conversation = Conversation(request, 16_384)
    rendered: list[int] = []

    def attempt(number: int) -> Rendering:
        found = Rendering(conversation.without(number))
        rendered.append(len(found.tokens))
        return found

    shortest_cut(conversation, attempt, room)
    assert max(rendered, default=0) <= 2 * room + 2 * size + 50
    assert len(rendered) <= 2 * math.log2(turns + 1) + 8


@given(messages, st.integers(1, 12))
def test_more_messages_than_are_rendered_are_left_out(
    shape: list[tuple[Role, int]], most: int
) -> None:
    conversation = Conversation(request_of(shape), most)
    for number in range(len(conversation)):
        kept = conversation.without(number).messages
        assert len(kept) <= most
        assert kept == () or any(m.role is Role.USER for m in kept)
