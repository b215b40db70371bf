"""How the ranks of a group find each other: over loopback, at a port that the system chose.

Rank 0 listens before any rank is told the port, so two groups on one host cannot mix. Everything
stays on the loopback interface (``ENVIRONMENT``); whoever can reach that interface can join, as
with any other port on it.
"""

import socket
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.ipc.rank_commands import Join
from neuron.layers.group import Group

LOOPBACK = "127.0.0.1"
_TIMEOUT = timedelta(seconds=600)
"""How long a rank waits for another one by itself; longer than any load. The service notices
sooner, because it knows what the group is doing."""


def lead(leader: RankBroadcast, device: torch.device) -> Group:
    """Makes rank 0's group; a single rank gets a group of one."""
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
    """Joins the group as a rank other than 0."""
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
        # Without it, NCCL takes the GPU whose number is the rank.
        device_id=device if is_gpu else None,
    )
    return Group(rank, size, store=store)
