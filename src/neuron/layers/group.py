"""The ranks that share one model, and how they communicate while they compute.

Tensor parallelism as in Megatron-LM (arXiv 1909.08053): each rank holds a share of every matrix,
and partial sums are added up over the group. A group of one is the usual case and costs nothing.
Must not know models; ``engine/ranks/rendezvous.py`` forms the group.
"""

import torch
from torch import distributed
from torch.distributed.distributed_c10d import Store

from neuron.layers.share import Share, even_share, kv_share

SUMMED = (torch.float32, torch.bfloat16, torch.float16)
_ORDERLESS = 2
"""Largest number of ranks whose sum does not depend on the order."""


class Group:
    """One rank's view of the group."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        """*store* holds the texts that the ranks exchange."""
        self.rank = rank
        self.size = size
        self.is_exact = False
        """Whether sums must be bit-identical whatever else is summed with them."""
        self._store = store

    @property
    def is_alone(self) -> bool:
        """Whether this is the only rank."""
        return self.size == 1

    def share(self, whole: int) -> Share:
        """This rank's part of *whole* equal things. Of a vocabulary the last ranks may have fewer,
        or none; everything else is divided evenly (``models/sharding.py``)."""
        return even_share(whole, self.rank, self.size)

    def heads(self, kv_heads: int) -> Share:
        """This rank's part of the key/value heads; several ranks have the same one where there are
        fewer heads than ranks."""
        return kv_share(kv_heads, self.rank, self.size)

    def least(self, value: int) -> int:
        """The smallest of the values that the ranks pass."""
        return self._agreed(value, distributed.ReduceOp.MIN)

    def total(self, value: int) -> int:
        """The sum of the values that the ranks pass."""
        return self._agreed(value, distributed.ReduceOp.SUM)

    def words(self, name: str, own: str) -> list[str]:
        """The texts that the ranks pass under *name*, which must be used only once."""
        if self._store is None:
            return [own]
        self._store.set(f"{name}/{self.rank}", own)
        return [self._store.get(f"{name}/{rank}").decode() for rank in range(self.size)]

    def _agreed(self, value: int, how: distributed.ReduceOp.RedOpType) -> int:
        if self.is_alone:
            return value
        on_gpu = distributed.get_backend() == distributed.Backend.NCCL
        told = torch.tensor([value], device="cuda" if on_gpu else "cpu")
        distributed.all_reduce(told, how)
        return int(told)


ALONE = Group()


class AllReduce:
    """Sums a tensor over the group, in place.

    Uses NCCL on GPUs, where it can be captured in a graph, and gloo on a CPU. gloo's order of
    additions depends on a number's position in the tensor, so an exact group of more than two ranks
    gathers and adds in the order of the ranks.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Sums *x* (float32, bfloat16 or float16, any shape) and returns it.

        Raises ValueError for a strided *x*: it would have to be copied, and is nearly always a
        mistake in how the model is built.
        """
        if self._group.is_alone:
            return x
        if not x.is_contiguous():
            raise ValueError(
                f"all-reduce of a strided tensor: shape {list(x.shape)}, strides "
                f"{list(x.stride())}. Pass a contiguous tensor."
            )
        if x.dtype not in SUMMED:
            raise ValueError(
                f"all-reduce of {x.dtype}; the supported dtypes are "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in SUMMED)}."
            )
        if self._group.is_exact and self._group.size > _ORDERLESS:
            return self._in_order(x)
        distributed.all_reduce(x)
        return x

    def _in_order(self, x: torch.Tensor) -> torch.Tensor:
        summands = [torch.empty_like(x) for _ in range(self._group.size)]
        distributed.all_gather(summands, x)
        x.copy_(summands[0])
        for summand in summands[1:]:
            x += summand
        return x


def gather_columns(x: torch.Tensor, share: Share, group: Group) -> torch.Tensor:
    """Gathers every rank's columns *x* ``[rows, share.size]`` into ``[rows, whole]`` on rank 0.

    The other ranks get their own columns back.
    """
    if group.is_alone:
        return x
    widest = -(-share.whole // group.size)
    x = torch.nn.functional.pad(x, (0, widest - share.size)).contiguous()
    parts = [torch.empty_like(x) for _ in range(group.size)] if group.rank == 0 else None
    distributed.gather(x, parts)
    return x if parts is None else torch.cat(parts, -1)[:, : share.whole]
