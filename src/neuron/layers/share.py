"""The part of something that one rank of a group holds; no torch.

Owns how things are divided over the ranks, so that a load can be planned before there is a group.
"""

from typing import NamedTuple


class Share(NamedTuple):
    """The part of a *whole* that a rank has: *size* things of it, from *begin* on."""

    begin: int
    size: int
    whole: int


def even_share(whole: int, rank: int, ranks: int) -> Share:
    """Divides *whole* equal things over *ranks*. Of a vocabulary the last ranks may have fewer, or
    none; everything else is divided evenly (``models/sharding.py``)."""
    most = -(-whole // ranks)
    begin = min(rank * most, whole)
    return Share(begin, min(most, whole - begin), whole)


def kv_share(kv_heads: int, rank: int, ranks: int) -> Share:
    """Divides the key/value heads; several ranks have the same one where there are fewer heads than
    ranks."""
    if ranks <= kv_heads:
        return even_share(kv_heads, rank, ranks)
    return Share(rank * kv_heads // ranks, 1, kv_heads)
