"""From records, heartbeats, profiles, pins and demand to what the planner sees."""

from typing import Any

import msgspec

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.placement.demand import Demands
from cortex.placement.fit import EXTRA_IDLE_SECONDS, DeviceView, could_be_had
from cortex.placement.pins import OperatorIntent
from cortex.placement.planner import Want
from cortex.placement.snapshot import Snapshot, SnapshotBuilder
from protocol import codec, keys
from protocol.catalogue import CatalogueRecord, Profile
from protocol.errors import ErrorCode, WireError
from protocol.fleet import (
    Device,
    DeviceKind,
    DeviceUsage,
    Estimate,
    ModelLoad,
    ModelRecord,
    ModelState,
    NodeHeartbeat,
    NodeInfo,
    NodeLive,
)
from protocol.placement import Drain, Pin, Wanted
from protocol.timing import NORMAL

GPU = Device(DeviceKind.CUDA, 0, "GPU", 100, budget_bytes=90)
CPU = Device(DeviceKind.CPU, 0, "CPU", 500)


class Eye:
    """A survey and everything that it sees."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fleet = Fleet(clock=self.clock)
        self.catalogue = Catalogue()
        self.demands = Demands(clock=self.clock)
        self.intent = OperatorIntent()
        self.snapshots = SnapshotBuilder(
            self.fleet, self.catalogue, self.demands, self.intent, clock=self.clock
        )

    def clock(self) -> float:
        return self.now

    def node(self, name: str, *records: ModelRecord, loads: int = 0, **load: ModelLoad) -> None:
        info = NodeInfo(name, name, "0", "host", (GPU, CPU))
        self.fleet.key_changed(keys.node_info(name), codec.encode(info))
        self.beat(name, loads=loads, **load)
        for record in records:
            made = msgspec.structs.replace(record, node=name, instance=name)
            self.fleet.key_changed(keys.node_model(name, record.model), codec.encode(made))

    def beat(self, name: str, *, loads: int = 0, **load: ModelLoad) -> None:
        self.fleet.heard(NodeHeartbeat(name, name, load, loads=loads))

    def profile(self, profile: Profile) -> None:
        value = codec.encode(CatalogueRecord("i", profile))
        self.catalogue.key_changed(keys.catalogue(profile.id), value)

    def wants(self, model: str, gateway: str, count: int, seconds: float) -> None:
        wanted = Wanted("i", model, gateway, count, seconds, 30.0)
        self.demands.key_changed(keys.wanted(model, gateway), codec.encode(wanted))

    def look(self) -> Snapshot:
        return self.snapshots.look()


def record(model: str, state: ModelState = ModelState.READY, **more: Any) -> ModelRecord:
    made = ModelRecord("", "", model, state, has_files=True, estimate=Estimate(40))
    if state in (ModelState.READY, ModelState.LOADING, ModelState.DRAINING):
        made = msgspec.structs.replace(made, devices=(0,), reserved_bytes=40, slots=4)
    return msgspec.structs.replace(made, **more)


def test_a_load_that_nobody_misses_a_model_for_does_not_count() -> None:
    eye = Eye()
    eye.node("n", record("a", ModelState.ABSENT), record("b", ModelState.ABSENT))
    eye.look()
    eye.snapshots.load_is_free("n", "a")
    eye.node("n", record("a", load_seconds=7.0), record("b", load_seconds=3.0))
    (node,) = eye.look().nodes
    assert node.recent_load_seconds == 3.0
    eye.node("n", record("a", ModelState.ABSENT))
    eye.look()
    eye.node("n", record("a", load_seconds=7.0))
    (node,) = eye.look().nodes
    assert node.recent_load_seconds == 10.0, "once only"


def test_a_load_that_failed_does_not_make_the_next_one_free() -> None:
    eye = Eye()
    eye.node("n", record("a", ModelState.ABSENT))
    eye.look()
    eye.snapshots.load_is_free("n", "a")
    eye.node("n", record("a", ModelState.FAILED))
    eye.look()
    eye.node("n", record("a", load_seconds=7.0))
    (node,) = eye.look().nodes
    assert node.recent_load_seconds == 7.0


def test_the_books_of_a_node() -> None:
    eye = Eye()
    busy = ModelLoad(running=2, queued=1, free_slots=1)
    eye.node("n", record("a"), record("b", ModelState.ABSENT, is_warm=True), a=busy)
    usage = (DeviceUsage(DeviceKind.CUDA, 0, 0, others_bytes=15), DeviceUsage(DeviceKind.CPU, 0, 0))
    eye.fleet.key_changed(keys.node_live("n"), codec.encode(NodeLive("n", "n", usage)))
    (node,) = eye.look().nodes
    assert node.devices == (DeviceView(90, 45), DeviceView(0, 0)), "85 usable, 40 reserved"
    (resident,) = node.residents
    assert (resident.model, resident.devices, resident.bytes_each) == ("a", (0,), 40)
    assert (resident.running, resident.is_ready, resident.is_pinned) == (3, True, False)
    assert node.files == {"a", "b"}
    assert node.warm == {"b"}
    assert node.sizes == {"a": 40, "b": 40}
    assert node.busyness == 0.75


def test_a_node_that_is_silent_or_another_life_is_not_seen() -> None:
    eye = Eye()
    eye.node("n", record("a"))
    eye.fleet.heard(NodeHeartbeat("n", "another life"))
    assert eye.look().nodes[0].residents == ()
    eye.now += 2.0
    assert eye.look().nodes == ()


def test_what_cannot_be_loaded_is_refused_by_its_node() -> None:
    eye = Eye()
    wrong = WireError(ErrorCode.MODEL_UNAVAILABLE, "it is damaged")
    eye.node("n", record("a", ModelState.FAILED, error=wrong), record("b", ModelState.ABSENT))
    eye.node("m", record("c", ModelState.ABSENT))
    seen = {node.name: node.refused for node in eye.look().nodes}
    assert seen["n"]["a"] == "it is damaged"
    assert "b" not in seen["n"]
    assert set(seen["n"]) == {"a", "c"}
    assert set(seen["m"]) == {"a", "b"}, "it does not offer them"
    restarting = record("d", ModelState.LOADING, error=wrong)
    eye.node("n", restarting)
    assert "d" not in {node.name: node.refused for node in eye.look().nodes}["n"]


def test_a_node_that_has_not_said_what_it_is_may_yet_do() -> None:
    eye = Eye()
    eye.beat("n")
    said = msgspec.structs.replace(record("a", ModelState.ABSENT), node="n", instance="n")
    eye.fleet.key_changed(keys.node_model("n", "a"), codec.encode(said))
    eye.now += NORMAL.all_heard_seconds
    eye.beat("n")
    answer = could_be_had(eye.snapshots.need("a"), eye.look().nodes)
    assert [misfit.is_for_ever for misfit in answer.misfits] == [False]
    assert eye.fleet.is_unsettled
    eye.node("n")
    assert could_be_had(eye.snapshots.need("a"), eye.look().nodes).fits
    assert not eye.fleet.is_unsettled


def test_loads_lately_and_since_when_a_model_is_ready() -> None:
    eye = Eye()
    eye.node("n", record("old", load_seconds=9.0))
    assert eye.look().nodes[0].recent_load_seconds == 0.0, "it may have been there for long"
    eye.now += 1.0
    eye.node("n", record("new", load_seconds=3.0))
    node = eye.look().nodes[0]
    assert node.recent_load_seconds == 3.0
    eye.now += 10.0
    eye.beat("n")
    ready = {r.model: r.ready_seconds for r in eye.look().nodes[0].residents}
    assert ready == {"old": 11.0, "new": 10.0}
    eye.now += 51.0
    eye.beat("n")
    assert eye.look().nodes[0].recent_load_seconds == 0.0


def test_demand_is_added_up_over_gateways_and_grows_older() -> None:
    eye = Eye()
    eye.node("n", record("a", ModelState.ABSENT, load_seconds=7.0))
    eye.wants("a", "gw-1", 2, 3.0)
    eye.now += 1.0
    eye.wants("a", "gw-2", 1, 0.5)
    eye.beat("n")
    (want,) = eye.look().wants
    assert want.need.model == "a"
    assert (want.waited_seconds, want.bound_seconds, want.load_seconds) == (4.0, 30.0, 7.0)
    assert (want.replicas, want.max_replicas) == (0, 1)
    eye.now += 5.5
    eye.beat("n")
    assert eye.look().wants[0].waited_seconds == 6.0, "gw-1 has fallen silent"
    eye.demands.key_changed(keys.wanted("a", "gw-2"), None)
    assert eye.look().wants == ()


def test_what_is_on_its_way_is_not_wanted_again() -> None:
    for state in (ModelState.LOADING, ModelState.FETCHING):
        eye = Eye()
        eye.node("n", record("a", state))
        eye.wants("a", "gw-1", 2, 3.0)
        snapshot = eye.look()
        assert snapshot.wants == ()
        assert snapshot.taken == set(), "what it takes is in the books"
        assert snapshot.nodes[0].loading == (state is ModelState.LOADING)
        eye.node("n", record("a", state, reserved_bytes=0))
        snapshot = eye.look()
        assert snapshot.taken == ({"n"} if state is ModelState.LOADING else set())


def why(wants: tuple[Want, ...]) -> list[tuple[str, list[str], str]]:
    return [(w.need.model, sorted(w.need.nodes), w.why) for w in wants]


def test_pins_and_minimum_replicas_are_wanted_until_they_are_met() -> None:
    eye = Eye()
    absent = [record(model, ModelState.ABSENT) for model in "abc"]
    eye.node("n", *absent)
    eye.node("m", *absent)
    eye.profile(Profile("a", pinned_on=("n", "gone")))
    eye.profile(Profile("b", min_replicas=2, max_replicas=2))
    pin = codec.encode(Pin("i", "c", ("m",)))
    eye.intent.key_changed(keys.pin("c"), pin)
    first = eye.look().wants
    assert why(first) == [
        ("a", ["n"], "pinned"),
        ("b", [], "0 of at least 2 replicas"),
        ("c", ["m"], "pinned"),
    ]
    eye.now += 1.5
    eye.beat("n")
    eye.beat("m")
    assert {want.waited_seconds for want in eye.look().wants} == {1.5}
    eye.node("n", record("a"), record("b"))
    eye.node("m", record("c", ModelState.LOADING))
    assert why(eye.look().wants) == [("b", [], "1 of at least 2 replicas")]
    seen = {r.model: r for node in eye.look().nodes for r in node.residents}
    assert seen["a"].is_pinned
    assert seen["b"].is_last
    assert seen["c"].is_pinned
    eye.intent.key_changed(keys.pin("c"), None)
    assert not {r.model: r for n in eye.look().nodes for r in n.residents}["c"].is_pinned


def test_a_drained_node_takes_nothing_and_its_pins_rest() -> None:
    eye = Eye()
    eye.node("n", record("a", ModelState.ABSENT))
    eye.profile(Profile("a", pinned_on=("n",)))
    drain = codec.encode(Drain("i", "n"))
    eye.intent.key_changed(keys.drain("n"), drain)
    snapshot = eye.look()
    assert snapshot.nodes[0].is_draining
    assert snapshot.wants == ()
    eye.intent.key_changed(keys.drain("n"), None)
    assert not eye.look().nodes[0].is_draining
    eye.fleet.heard(NodeHeartbeat("n", "n", draining=True))
    assert eye.look().nodes[0].is_draining, "it says so itself"


def test_a_replica_beyond_the_first_goes_after_a_while() -> None:
    eye = Eye()
    eye.node("n", record("a"))
    assert eye.look().nodes[0].residents[0].idle_limit_seconds == 0.0
    eye.node("m", record("a"))
    limits = {r.idle_limit_seconds for node in eye.look().nodes for r in node.residents}
    assert limits == {EXTRA_IDLE_SECONDS}
    eye.profile(Profile("a", idle_seconds=60.0, min_replicas=2, max_replicas=2))
    limits = {r.idle_limit_seconds for node in eye.look().nodes for r in node.residents}
    assert limits == {60.0}


def test_what_an_operator_has_asked_for_stays() -> None:
    """On two nodes, so that the death of one costs no load on the other."""
    eye = Eye()
    for name in ("n", "m"):
        asked_for = msgspec.structs.replace(record("a"), asked_for=True)
        eye.node(name, asked_for)
    eye.node("o", record("a"))
    snapshot = eye.look()
    limits = {node.name: node.residents[0].idle_limit_seconds for node in snapshot.nodes}
    assert limits == {"n": 0.0, "m": 0.0, "o": EXTRA_IDLE_SECONDS}


def test_an_old_engine_is_known_by_the_loads_since() -> None:
    eye = Eye()
    eye.node("n", record("a", loads=3), loads=60)
    assert eye.look().nodes[0].residents[0].loads_since == 57
