"""What a gateway makes of records and heartbeats that contradict each other, or are foreign."""

from cortex.fleet.state import Fleet
from protocol import codec, keys
from protocol.fleet import (
    Describe,
    Device,
    DeviceKind,
    ModelLoad,
    ModelRecord,
    ModelState,
    NodeHeartbeat,
    NodeInfo,
    NodeLive,
)
from protocol.job import PROTOCOL

CPU = (Device(DeviceKind.CPU, 0, "EPYC", 1 << 30),)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def info(node: str = "n1", **changes: int) -> NodeInfo:
    return NodeInfo(node, "one", "0.1.0", "host", CPU, **changes)


def ready(model: str = "m", state: ModelState = ModelState.READY) -> ModelRecord:
    return ModelRecord("n1", "one", model, state)


def fleet_with(*records: ModelRecord, clock: Clock, beat: NodeHeartbeat) -> Fleet:
    fleet = Fleet(clock)
    fleet.key_changed(keys.node_info("n1"), codec.encode(info()))
    for record in records:
        fleet.key_changed(keys.node_model("n1", record.model), codec.encode(record))
    fleet.heard(beat)
    return fleet


def test_a_node_whose_record_is_lost_is_asked_and_believed() -> None:
    clock = Clock()
    beat = NodeHeartbeat("n1", "one", {"m": ModelLoad()})
    fleet = fleet_with(ready(), clock=clock, beat=beat)
    assert fleet.contradictory(0.0) == []
    fleet.key_changed(keys.node_model("n1", "m"), None)
    fleet.heard(beat)
    assert fleet.contradictory(0.5) == [], "it may be under way"
    clock.now += 0.6
    fleet.heard(beat)
    assert fleet.contradictory(0.5) == ["n1"]
    assert fleet.ready("m") == []
    fleet.described(Describe(info(), NodeLive("n1", "one"), (ready(),)))
    fleet.heard(beat)
    assert fleet.contradictory(0.0) == []
    assert [placed.record.node for placed in fleet.ready("m")] == ["n1"]


def test_a_record_of_a_model_that_the_heartbeat_does_not_know_is_a_contradiction() -> None:
    clock = Clock()
    beat = NodeHeartbeat("n1", "one", {})
    fleet = fleet_with(ready(), clock=clock, beat=beat)
    clock.now += 1.0
    fleet.heard(beat)
    assert fleet.contradictory(0.5) == ["n1"]


def test_a_model_that_drains_is_none() -> None:
    clock = Clock()
    beat = NodeHeartbeat("n1", "one", {"m": ModelLoad(running=1)})
    fleet = fleet_with(ready(state=ModelState.DRAINING), clock=clock, beat=beat)
    clock.now += 1.0
    fleet.heard(beat)
    assert fleet.contradictory(0.5) == []


def test_what_another_life_of_the_node_says_does_not_count() -> None:
    clock = Clock()
    beat = NodeHeartbeat("n1", "two", {"m": ModelLoad()})
    fleet = fleet_with(clock=clock, beat=beat)
    fleet.described(Describe(info(), NodeLive("n1", "one"), (ready(),)))
    assert fleet.records("m") == []


def test_a_node_of_another_protocol_is_not_used_and_told() -> None:
    for low, high, older in (
        (PROTOCOL + 1, PROTOCOL + 2, "this gateway"),
        (PROTOCOL - 1, PROTOCOL - 1, "the node"),
    ):
        fleet = fleet_with(
            ready(), clock=Clock(), beat=NodeHeartbeat("n1", "one", {"m": ModelLoad()})
        )
        assert fleet.models() == ["m"]
        newer = info(protocol_min=low, protocol_max=high)
        fleet.key_changed(keys.node_info("n1"), codec.encode(newer))
        assert fleet.models() == []
        assert fleet.ready("m") == []
        assert list(fleet.alive()) == []
        assert f"Upgrade {older}." in fleet.unusable["n1"]


def test_a_node_that_speaks_several_protocols_is_used() -> None:
    fleet = fleet_with(ready(), clock=Clock(), beat=NodeHeartbeat("n1", "one", {"m": ModelLoad()}))
    both = info(protocol_min=PROTOCOL - 1, protocol_max=PROTOCOL + 1)
    fleet.key_changed(keys.node_info("n1"), codec.encode(both))
    assert fleet.models() == ["m"]
    assert fleet.unusable == {}
