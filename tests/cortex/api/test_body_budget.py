"""Bodies that are arriving share a budget: it holds, and everybody gets on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.api import body_budget
from cortex.api.body_budget import BodyBudget, UnfinishedBody

LIMIT = 1000
SMALL = 50


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "SMALL_BYTES", SMALL)


def finish(budget: BodyBudget, body: UnfinishedBody) -> bytes:
    whole = bytes(body.data)
    budget.discard(body)
    return whole


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 3)),
        st.tuples(st.just("add"), st.integers(0, 20), st.integers(0, 300)),
        st.tuples(st.sampled_from(("finish", "fix", "discard")), st.integers(0, 20)),
    ),
    max_size=80,
)


@given(STEPS)
def test_the_limit_holds_and_what_is_kept_is_whole(steps: list[tuple[object, ...]]) -> None:
    budget, sent = BodyBudget(LIMIT), {}
    told: list[UnfinishedBody] = []
    bodies: list[UnfinishedBody] = []
    fixed: set[UnfinishedBody] = set()
    for step in steps:
        if step[0] == "begin":
            body = budget.begin(f"address {step[1]}")
            body.on_giving_way = lambda one=body: told.append(one)  # type: ignore[misc]
            bodies.append(body)
            sent[body] = b""
            continue
        if not bodies:
            continue
        body = bodies[int(str(step[1])) % len(bodies)]
        is_open = not (body.gave_way or body.is_fixed)
        if step[0] == "add" and is_open:
            chunk = bytes([len(sent) % 256]) * int(str(step[2]))
            budget.add(body, chunk)
            sent[body] += chunk
        elif step[0] == "fix" and is_open:
            body.is_fixed = True
            fixed.add(body)
        elif step[0] == "finish" and is_open:
            assert finish(budget, body) == sent[body]
            bodies.remove(body)
        elif step[0] == "discard":
            budget.discard(body)
            bodies.remove(body)
        held = [body for body in bodies if not body.gave_way]
        assert budget.held_bytes == sum(len(sent[body]) for body in held) <= LIMIT
        assert all(bytes(body.data) == sent[body] for body in held)
        assert not any(body.gave_way for body in fixed)
        assert all(not body.data for body in bodies if body.gave_way), "its memory is free"
        assert {body for body in sent if body.gave_way} == set(told)
    for body in bodies:
        budget.discard(body)
    assert budget.held_bytes == 0


def filled(budget: BodyBudget, address: str, count: int, size: int) -> list[UnfinishedBody]:
    bodies = [budget.begin(address) for _ in range(count)]
    for _ in range(size // 10):
        for body in bodies:
            if not body.gave_way:
                budget.add(body, b" " * 10)
    return bodies


@given(st.integers(1, LIMIT // SMALL - 1), st.integers(60, 900))
def test_the_oldest_body_of_an_address_gets_to_its_end(count: int, size: int) -> None:
    budget = BodyBudget(LIMIT)
    bodies = filled(budget, "a", count, size)
    assert len(finish(budget, bodies[0])) == size // 10 * 10


@given(st.integers(1, 60), st.integers(60, 900), st.integers(1, 4))
def test_one_address_does_not_take_it_all(count: int, size: int, guests: int) -> None:
    budget = BodyBudget(LIMIT)
    filled(budget, "hog", count, size)
    share = LIMIT // (guests + 1) // 10 * 10
    for guest in range(guests):
        (body,) = filled(budget, f"guest {guest}", 1, share)
        assert not body.gave_way
        assert len(body.data) == share


@given(st.integers(1, 60), st.integers(11, SMALL))
def test_a_small_body_gets_through_as_long_as_there_is_a_large_one(count: int, size: int) -> None:
    budget = BodyBudget(LIMIT)
    filled(budget, "a", count, LIMIT - 10)
    for address in ("a", "b"):
        body = budget.begin(address)
        budget.add(body, b" " * size)
        assert finish(budget, body) == b" " * size


def test_among_small_ones_the_youngest_of_the_largest_address_gives_way() -> None:
    budget = BodyBudget(LIMIT)
    crowd = filled(budget, "a", 25, 40)
    guest = budget.begin("b")
    budget.add(guest, b" " * 40)
    assert [body.gave_way for body in crowd] == [False] * 24 + [True]
    assert not guest.gave_way
