"""Where a model fits: devices, restrictions, and never more victims than needed."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cortex.placement.eviction import Strategy, eviction_candidates, rank_victims
from cortex.placement.fit import (
    DeviceView,
    Fit,
    FitResult,
    MayEvict,
    Need,
    NodeView,
    ResidentView,
    could_be_had,
    may_displace,
    place,
)

GIB = 1 << 30


def need(gib: float, **more: object) -> Need:
    return Need("new", round(gib * GIB), **more)  # type: ignore[arg-type]


def resident(model: str, gib: float, *devices: int, **more: object) -> ResidentView:
    more.setdefault("idle_seconds", 100.0)
    return ResidentView(model, devices or (0,), round(gib * GIB), **more)  # type: ignore[arg-type]


def node(
    name: str, *gibs: float, residents: tuple[ResidentView, ...] = (), **more: object
) -> NodeView:
    """With devices of so many GiB; what is free is what the residents leave."""
    devices = []
    for index, gib in enumerate(gibs):
        held = sum(r.bytes_each for r in residents if index in r.devices)
        devices.append(DeviceView(round(gib * GIB), round(gib * GIB) - held))
    return NodeView(name, tuple(devices), residents, **more)  # type: ignore[arg-type]


def asked(wanted: Need, *nodes: NodeView, may_evict: MayEvict = lambda _, __: True) -> FitResult:
    def may_go(node: NodeView, resident: ResidentView) -> bool:
        return may_displace(wanted, resident) and may_evict(node, resident)

    return place(wanted, nodes, lambda rs: rank_victims(rs, Strategy.LRU), may_go)


def best(wanted: Need, *nodes: NodeView) -> tuple[str, tuple[int, ...], list[str]]:
    fit = asked(wanted, *nodes).fits[0]
    return fit.node, fit.devices, [victim.model for victim in fit.victims]


def test_the_smallest_device_that_is_large_enough() -> None:
    assert best(need(10), node("big", 80), node("small", 12, 24), node("tiny", 8)) == (
        "small",
        (0,),
        [],
    )


def test_no_eviction_where_it_can_be_spared() -> None:
    full = node("full", 12, residents=(resident("old", 8),))
    assert best(need(10), full, node("big", 80)) == ("big", (0,), [])
    assert best(need(10), full) == ("full", (0,), ["old"])


def test_files_that_lie_there_decide_between_equals() -> None:
    far, near = node("far", 12), node("near", 24, files=frozenset({"new"}))
    assert best(need(10), far, near)[0] == "near"


def test_the_longest_idle_goes_first_and_no_more_than_needed() -> None:
    crowd = (
        resident("fresh", 4, idle_seconds=5.0),
        resident("stale", 4, idle_seconds=500.0),
        resident("older", 4, idle_seconds=50.0),
    )
    assert best(need(4), node("n", 12, residents=crowd)) == ("n", (0,), ["stale"])
    assert best(need(6), node("n", 12, residents=crowd)) == ("n", (0,), ["stale", "older"])


def test_a_large_victim_spares_the_small_one_before_it() -> None:
    crowd = (resident("small", 1, idle_seconds=500.0), resident("large", 9, idle_seconds=5.0))
    assert best(need(8), node("n", 10, residents=crowd)) == ("n", (0,), ["large"])


def test_several_devices_each_take_their_share() -> None:
    split = need(10, devices=2)
    assert best(split, node("n", 12, 24, 12)) == ("n", (0, 2), [])
    one_full = node("n", 12, 12, residents=(resident("old", 8, 1),))
    assert best(split, one_full) == ("n", (0, 1), ["old"])
    both_full = node("n", 12, 12, residents=(resident("wide", 8, 0, 1),))
    assert best(split, both_full) == ("n", (0, 1), ["wide"])


def test_why_not() -> None:
    pinned = resident("pet", 8, is_pinned=True)
    answer = asked(
        need(10, nodes=frozenset({"a", "b", "c"})),
        node("a", 8, 8),
        node("b", 12, residents=(pinned,)),
        node("c", 12, is_draining=True),
        node("d", 80),
    )
    assert answer.fits == ()
    assert [(m.node, m.why, m.is_for_ever) for m in answer.misfits] == [
        (
            "a",
            "it needs 1 device of 10 GiB, and 0 here are that large "
            "(memory for models: 8 GiB, 8 GiB)",
            True,
        ),
        (
            "b",
            "it needs 10 GiB and 4 GiB can be made free; pet 8 GiB cannot be evicted now",
            False,
        ),
        ("c", "the node is draining", False),
        ("d", "the model is restricted to a, b, c", False),
    ]


def test_nothing_goes_for_a_model_that_does_not_work() -> None:
    full = node("n", 12, residents=(resident("old", 8),))._replace(broken=frozenset({"new"}))
    answer = asked(need(10), full)
    assert answer.fits == ()
    assert "its last load here failed, so no other model goes for it" in answer.misfits[0].why
    assert best(need(4), full) == ("n", (0,), []), "where there is room it may try again"


def test_devices_that_are_not_for_models_are_no_devices() -> None:
    """Whatever it takes, known or not."""
    host = node("host", 24, 24, 0)
    for size in (10, 0):
        assert 2 not in asked(need(size, devices=2), host).fits[0].devices
    (misfit,) = asked(need(0, devices=3), host).misfits
    assert misfit.why == (
        "it needs 3 devices, and 2 here are for models (memory for models: 24 GiB, 24 GiB)"
    )


def test_ranks_on_a_cpu_take_one_device() -> None:
    host = node("host", 24, ranks_share=True)
    for size in (10, 0):
        assert asked(need(size, devices=4), host).fits[0].devices == (0,)
    assert not asked(need(25, devices=4), host).fits


def test_small_devices_are_left_alone() -> None:
    wanted = need(4, min_device_bytes=20 * GIB)
    assert best(wanted, node("small", 12), node("big", 24))[0] == "big"


def test_equal_classes_swap_both_ways_and_higher_ones_are_immune() -> None:
    def swaps(own: int, its: int) -> bool:
        return may_displace(need(1, residency=own), resident("old", 1, residency=its))

    assert swaps(100, 100)
    assert swaps(200, 100)
    assert not swaps(100, 200)


def test_what_is_pinned_on_its_way_or_the_last_stays() -> None:
    for immune in ({"is_pinned": True}, {"is_ready": False}, {"min_replicas": 1}):
        assert not may_displace(need(1), resident("old", 1, **immune))
    assert not may_displace(need(1), resident("new", 1)), "a model does not make room for itself"


def test_the_order_says_why() -> None:
    crowd = (
        resident("pet", 1, is_pinned=True),
        resident("busy", 1, running=2, waiting=1, idle_seconds=0.0),
        resident("high", 1, residency=200, idle_seconds=900.0),
        resident("low", 1, residency=50, idle_seconds=3.0),
        resident("done", 1, residency=300, idle_seconds=61.0, idle_allowed_seconds=60.0),
        resident("new", 1, is_ready=False),
    )
    by_class = [(turn.model, turn.why) for turn in eviction_candidates(crowd, Strategy.PRIORITY)]
    assert by_class == [
        ("done", "idle for more than 60 s"),
        ("low", "priority: residency class 50"),
        ("high", "priority: residency class 200"),
        ("busy", "in use"),
        ("new", "loading or unloading"),
        ("pet", "pinned"),
    ]
    by_age = [turn.model for turn in eviction_candidates(crowd, Strategy.LRU)]
    assert by_age == ["done", "high", "low", "busy", "new", "pet"]
    assert [turn.never for turn in eviction_candidates(crowd, Strategy.LRU)] == [False] * 4 + [
        True
    ] * 2


residents = st.lists(
    st.builds(
        ResidentView,
        model=st.uuids().map(str),
        devices=st.sampled_from([(0,), (1,), (0, 1)]),
        bytes_each=st.integers(1, 6),
        residency=st.sampled_from([50, 100, 200]),
        is_pinned=st.booleans(),
        is_ready=st.booleans(),
        running=st.integers(0, 2),
        idle_seconds=st.floats(0, 100),
        min_replicas=st.sampled_from([0, 1]),
    ),
    max_size=5,
)


@given(residents, st.integers(1, 12), st.sampled_from([1, 2]))
def test_a_fit_fits_and_no_victim_could_stay(
    crowd: list[ResidentView], size: int, devices: int
) -> None:
    free = [12 - sum(r.bytes_each for r in crowd if i in r.devices) for i in (0, 1)]
    crowded = NodeView("n", tuple(DeviceView(12, left) for left in free), tuple(crowd))
    wanted = Need("new", size, devices)
    answer = asked(wanted, crowded)
    movable = [r for r in crowd if may_displace(wanted, r)]
    possible = any(
        all(free[i] + sum(r.bytes_each for r in movable if i in r.devices) >= size for i in ways)
        for ways in itertools.combinations((0, 1), devices)
    )
    assert bool(answer.fits) == possible
    if answer.fits:
        _check(answer.fits[0], free, size, movable)


def _check(fit: Fit, free: list[int], size: int, movable: list[ResidentView]) -> None:
    assert set(fit.victims) <= set(movable)

    def left(victims: tuple[ResidentView, ...]) -> list[int]:
        return [
            free[i] + sum(v.bytes_each for v in victims if i in v.devices) - size
            for i in fit.devices
        ]

    assert min(left(fit.victims)) >= 0
    assert sum(left(fit.victims)) == fit.left_bytes
    for victim in fit.victims:
        spared = tuple(v for v in fit.victims if v is not victim)
        assert min(left(spared)) < 0, "one too many"


def test_what_comes_or_goes_is_worth_waiting_for() -> None:
    leaving = resident("new", 8, is_ready=False)
    assert could_be_had(need(8), [node("n", 12, residents=(leaving,))]).fits
    loading = resident("other", 8, is_ready=False, replicas=0)
    assert could_be_had(need(8), [node("n", 12, residents=(loading,))]).fits
    busy = resident("other", 8, running=3)
    assert could_be_had(need(8), [node("n", 12, residents=(busy,))]).fits
    for kept in ({"is_pinned": True}, {"residency": 200}, {"min_replicas": 1}):
        stays = resident("other", 8, **kept)
        assert not could_be_had(need(8), [node("n", 12, residents=(stays,))]).fits
