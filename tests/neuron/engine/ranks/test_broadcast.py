"""Commands arrive at the other ranks as they were, though less than that is sent."""

import random
import socket
from collections.abc import Iterator

import msgspec
import pytest

from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.ipc.channel import ChannelClosed, FrameError, encode_frame
from neuron.ipc.rank_commands import Compute, Join, Project, SequenceTokens

Line = tuple[socket.socket, socket.socket]


@pytest.fixture(name="line")
def pair() -> Iterator[Line]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def waiting_bytes(line: Line) -> int:
    return len(line[1].recv(1 << 20, socket.MSG_PEEK))


@pytest.mark.parametrize("seed", range(20))
def test_random_steps(line: Line, seed: int) -> None:
    """Tables that grow, are given back and taken anew, and sequences that sit a step out."""
    chance = random.Random(seed)
    leader, follower = RankBroadcast([line[0]]), FollowerEnd(line[1])
    tables: dict[int, list[int]] = {}
    for step in range(1, 60):
        for sequence in range(6):
            if sequence not in tables or chance.random() < 0.1:
                tables[sequence] = [chance.randrange(999) for _ in range(chance.randrange(1, 9))]
            elif chance.random() < 0.3:
                tables[sequence] += [chance.randrange(999)]
        who = chance.sample(sorted(tables), chance.randrange(1, 7))
        batch = Compute(
            step, [SequenceTokens(s, [s], step, tables[s]) for s in who], [(step, s) for s in who]
        )
        leader.tell(batch)
        leader.tell(Project(step, [0]))
        assert follower.next() == batch
        assert follower.next() == Project(step, [0])


def test_what_is_known_is_not_sent_again(line: Line) -> None:
    leader, follower = RankBroadcast([line[0]]), FollowerEnd(line[1])
    table = list(range(1000, 3048))  # 32k tokens
    leader.tell(Compute(1, [SequenceTokens(7, [1], 0, table)]))
    assert waiting_bytes(line) > 6000
    follower.next()
    table.append(5)
    leader.tell(Compute(2, [SequenceTokens(7, [1], 1, table)]))
    assert waiting_bytes(line) < 100
    assert follower.next() == Compute(2, [SequenceTokens(7, [1], 1, table)])


def test_a_command_that_builds_on_a_lost_one_is_noticed(line: Line) -> None:
    follower = FollowerEnd(line[1])
    lost = Compute(2, [SequenceTokens(7, [1], 17, [3], known=2)])
    line[0].sendall(encode_frame(msgspec.msgpack.Encoder(), lost))
    with pytest.raises(FrameError, match="2 blocks of sequence 7, but 0 are known"):
        follower.next()


def test_a_line_that_ends(line: Line) -> None:
    leader, follower = RankBroadcast([line[0]]), FollowerEnd(line[1])
    line[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelClosed):
        follower.next()
    line[1].close()
    with pytest.raises(ChannelClosed):
        leader.tell(Join(1, 2))
