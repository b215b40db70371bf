"""Connections are counted by address, and whoever rests makes way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.runtime.http.crowd import Crowd, HttpLimits
from protocol.runtime.listen import address_group, is_loopback_address

PEERS = (
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "10.0.0.2",
    "::ffff:10.0.0.1",
    "2001:db8::1",
    "2001:db8::2",
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("come", "work", "rest", "go")), st.integers(0, 50), st.sampled_from(PEERS)
    ),
    max_size=120,
)


@given(STEPS)
def test_the_bounds_hold(steps: list[tuple[str, int, str]]) -> None:
    limits = HttpLimits(connections=8, per_address=3)
    crowd: Crowd[int] = Crowd(limits)
    peers: dict[int, str] = {}
    resting: list[int] = []
    for number, (step, which, peer) in enumerate(steps):
        some = list(peers)[which % len(peers)] if peers else -1
        if step == "come":
            if crowd.too_many(peer):
                group = address_group(peer)
                theirs = [one for one in peers if address_group(peers[one]) == group]
                has_its_share = bool(group) and len(theirs) >= limits.per_address
                assert has_its_share or len(peers) == limits.connections
                leaves = crowd.makes_way(peer)
                could = [one for one in resting if one in theirs or not has_its_share]
                assert (leaves is None) == (not could)
                if leaves is None:
                    continue
                assert leaves in could
                same = [one for one in resting if _same(peers[one], peers[leaves])]
                assert leaves == same[0], "the one that has rested longest"
                crowd.remove(leaves)
                resting.remove(leaves)
                del peers[leaves]
            crowd.add(number, peer)
            peers[number] = peer
            resting.append(number)
        elif some >= 0:
            resting = [one for one in resting if one != some]
            if step == "rest":
                crowd.works(some)
                crowd.rests(some)
                resting.append(some)
            elif step == "work":
                crowd.works(some)
            else:
                crowd.remove(some)
                del peers[some]
        assert len(crowd) == len(peers) <= limits.connections
        assert sorted(crowd.resting()) == sorted(resting)
        assert sum(not is_loopback_address(p) and _same(p, "10.0.0.1") for p in peers.values()) <= 3


def _same(one: str, other: str) -> bool:
    return address_group(one) == address_group(other)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, is_same: bool) -> None:
    assert _same(one, other) is is_same


def test_a_proxy_on_this_machine_has_no_share_of_its_own() -> None:
    crowd: Crowd[int] = Crowd(HttpLimits(connections=100, per_address=2))
    for number in range(100):
        assert not crowd.too_many("127.0.0.1")
        crowd.add(number, "127.0.0.1")
    assert crowd.too_many("10.0.0.1")
    assert crowd.makes_way("10.0.0.1") == 0
