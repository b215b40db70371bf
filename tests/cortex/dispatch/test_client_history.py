"""Nobody misses what a client that waits has just used, unless it may be several people."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cortex.dispatch.client_history import ClientHistory


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.history = ClientHistory(lambda: self.now)

    def uses(self, tenant: str, *models: str) -> None:
        """One after the other, a second each."""
        for model in models:
            self.history.began(tenant, model)
            self.now += 1.0
            self.history.ended(tenant, model)

    def released(self, model: str, *tenants: str) -> dict[str, float]:
        return self.history.released_by(tenants, model)


def test_who_waits_for_one_model_releases_those_it_used_before() -> None:
    world = World()
    world.uses("me", "a", "b")
    world.history.began("me", "c")
    world.now += 5.0
    assert world.released("c", "me") == {"a": 6.0, "b": 5.0}


def test_not_what_somebody_else_used_later() -> None:
    world = World()
    world.uses("me", "a", "b")
    world.uses("you", "a")
    world.history.began("me", "c")
    assert world.released("c", "me") == {"b": 1.0}
    world.history.began("you", "c")
    assert world.released("c", "me", "you") == {"a": 0.0, "b": 1.0}, "all of them wait"


def test_several_requests_for_one_model_are_one_wish() -> None:
    world = World()
    world.uses("me", "a")
    for _ in range(3):
        world.history.began("me", "b")
    assert world.released("b", "me") == {"a": 0.0}


def test_who_does_something_else_as_well_may_be_several_people() -> None:
    world = World()
    world.history.began("us", "a")
    world.history.began("us", "b")
    assert world.released("b", "us") == {}, "a is in use"
    world.history.ended("us", "a")
    assert world.released("b", "us") == {}, "whoever used a may use it again"
    world.history.ended("us", "b")
    world.history.began("us", "c")
    assert world.released("c", "us") == {"a": 0.0, "b": 0.0}, "a new beginning"


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abc")), max_size=40))
def test_nothing_is_kept_of_those_that_have_left(uses: list[tuple[str, str]]) -> None:
    history = ClientHistory(lambda: 0.0)
    for tenant, model in uses:
        history.began(tenant, model)
    for tenant, model in uses:
        history.ended(tenant, model)
    assert not history._busy
    for tenant, model in itertools.product("xyz", "abc"):
        history.began(tenant, model)
        assert history.released_by([tenant], model).keys() <= set("abc") - {model}
        history.ended(tenant, model)
