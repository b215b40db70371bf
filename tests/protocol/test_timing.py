"""The times that both sides agree on do not contradict each other, however they are scaled."""

import dataclasses

import pytest

from protocol.timing import NORMAL, Timing


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heartbeat_seconds": 0.0}, ["heartbeat_seconds", "more than 0"]),
        ({"all_heard_seconds": 0.5}, ["all_heard_seconds", "heartbeat_seconds"]),
        ({"echo_seconds": 0.5}, ["echo_seconds", "heartbeat_seconds"]),
        ({"gateway_gone_seconds": 1.0}, ["gateway_gone_seconds", "2 × heartbeat_seconds"]),
        ({"node_gone_seconds": 1.5}, ["node_gone_seconds", "3 × heartbeat_seconds"]),
        ({"echo_seconds": 1.2}, ["gateway_gone_seconds", "echo_seconds"]),
        ({"lost_after_seconds": 0.9}, ["lost_after_seconds", "echo_seconds"]),
        ({"hearing_seconds": 1.2}, ["hearing_seconds", "gateway_gone_seconds"]),
        ({"settled_seconds": 1.6}, ["settled_seconds", "node_gone_seconds"]),
        ({"remember_seconds": 1.6}, ["remember_seconds", "node_gone_seconds"]),
        ({"cut_off_seconds": 1.3}, ["cut_off_seconds", "lost_after_seconds"]),
        (
            {"cut_off_seconds": 1.5, "gateway_gone_seconds": 1.5},
            ["cut_off_seconds", "gateway_gone_seconds"],
        ),
        ({"kept_seconds": 15.0}, ["kept_seconds", "cut_off_seconds"]),
        ({"keep_alive_seconds": 0.65}, ["lost_after_seconds", "2 × keep_alive_seconds"]),
        ({"probe_after_seconds": 0.5}, ["probe_after_seconds", "keep_alive_seconds"]),
        ({"probe_after_seconds": 1.3}, ["lost_after_seconds", "probe_after_seconds"]),
        ({"watch_seconds": 0.9}, ["probe_after_seconds", "watch_seconds"]),
        ({"lag_seconds": 1.3}, ["lost_after_seconds", "lag_seconds"]),
        ({"search_seconds": 1.3}, ["search_seconds", "lost_after_seconds"]),
        ({"long_search_seconds": 2.0}, ["long_search_seconds", "search_seconds"]),
        ({"live_ttl_seconds": 10}, ["live_ttl_seconds", "2 × live_every_seconds"]),
        ({"wanted_ttl_seconds": 4}, ["wanted_ttl_seconds", "2 × wanted_every_seconds"]),
        ({"lease_margin_seconds": 2.0}, ["lease_ttl_seconds", "lease_margin_seconds"]),
        ({"lease_renew_seconds": 0.9}, ["lease_margin_seconds", "2 × lease_renew_seconds"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_contradiction_is_named(changes: dict[str, float], named: list[str]) -> None:
    with pytest.raises(ValueError, match="must be more than") as raised:
        dataclasses.replace(NORMAL, **changes)  # type: ignore[arg-type]
    for words in named:
        assert words in str(raised.value)


@pytest.mark.parametrize("factor", [0.01, 0.25, 0.5, 1.0, 3.0])
def test_scaled_times_agree_too(factor: float) -> None:
    scaled = NORMAL.scaled(factor)
    assert scaled.lost_after_seconds == NORMAL.lost_after_seconds * factor
    for field in dataclasses.fields(Timing):
        if field.name.endswith("_ttl_seconds"):
            value = getattr(scaled, field.name)
            assert value == int(value) >= 1, "NATS counts whole seconds"


def test_fleets_of_mixed_versions_agree() -> None:
    """A gateway and a neuron of two versions meet on one bus: what they count with stays."""
    assert (
        Timing(
            heartbeat_seconds=0.5,
            all_heard_seconds=0.7,
            echo_seconds=0.9,
            gateway_gone_seconds=1.2,
            node_gone_seconds=1.6,
            hearing_seconds=3.0,
            settled_seconds=3.0,
            cut_off_seconds=15.0,
            remember_seconds=30.0,
            keep_alive_seconds=0.5,
            watch_seconds=0.1,
            lag_seconds=0.25,
            probe_after_seconds=0.9,
            lost_after_seconds=1.3,
            search_seconds=2.0,
            long_search_seconds=8.0,
            kept_seconds=30.0,
            live_every_seconds=5.0,
            live_ttl_seconds=15,
            wanted_every_seconds=2.0,
            wanted_ttl_seconds=6,
            lease_ttl_seconds=2,
            lease_renew_seconds=0.5,
            lease_look_seconds=0.4,
            lease_margin_seconds=0.25,
        )
        == NORMAL
    )
