"""Who places: the lease of one gateway and the epochs that fence off its predecessors."""

import msgspec


class Epoch(msgspec.Struct, frozen=True, order=True):
    """A term of the placer. A later one is greater: by the revision within one bucket, else by when
    the bucket was made, which only the server's own clock says."""

    bucket: str
    """When the lease's bucket was made, as the server spells it, its fraction padded to nine digits
    so that it sorts: a server that has forgotten everything counts its revisions anew."""
    revision: int
    """Of the lease, when it was taken."""


class LeaseRecord(msgspec.Struct, frozen=True):
    """``cortex_leader/placer``: who places. It expires unless it is renewed."""

    instance: str
    gateway: str
