"""How the ranks of a group find each other: over loopback, at a port that was free a moment ago.

Rank 0 listens before anybody is told the port, so two groups on one host cannot meet. Everything
stays on the loopback interface (``ENVIRONMENT``); who can reach that can
join, as with every other port of it.
"""

import socket
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from neuron.engine.ranks.lines import FollowerEnd, RankBroadcast
from neuron.ipc.rank_commands import Join
from neuron.layers.group import Group

LOOPBACK = "127.0.0.1"
_TIMEOUT = timedelta(seconds=600)
"""How long a rank waits for another one by itself: longer than any load. It is the service that
notices sooner, because it knows what the group is doing."""


def lead(leader: RankBroadcast, device: torch.device) -> Group:
    """Rank 0's way into the group; alone, there is none."""
    if leader.size == 1:
        return Group()
    listener = socket.create_server((LOOPBACK, 0), backlog=leader.size)
    port = listener.getsockname()[1]
    store = TCPStore(
        LOOPBACK,
        port,
        leader.size,
        is_master=True,
        timeout=_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    leader.tell(Join(port, leader.size))
    return _joined(store, 0, leader.size, device)


def follow(line: FollowerEnd, rank: int, device: torch.device) -> Group:
    """Another rank's way into it."""
    join = line.next()
    assert isinstance(join, Join), join
    store = TCPStore(LOOPBACK, join.port, join.size, timeout=_TIMEOUT)
    return _joined(store, rank, join.size, device)


def _joined(store: Store, rank: int, size: int, device: torch.device) -> Group:
    is_gpu = device.type == "cuda"
    distributed.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=device if is_gpu else None,  # else NCCL takes the GPU that has the rank's number
    )
    return Group(rank, size, store=store)
