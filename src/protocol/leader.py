"""The placer's lease, and the epochs that fence off its predecessors."""

import msgspec


class Epoch(msgspec.Struct, frozen=True, order=True):
    """One term of the placer. A later term is greater: by the revision within one bucket, otherwise
    by the creation time of the bucket, which only the server's own clock knows."""

    bucket: str
    """Creation time of the lease's bucket as the server writes it, with its fraction padded to nine
    digits so that it sorts: a server that lost its data counts revisions anew."""
    revision: int
    """Revision of the lease when the term began."""


class LeaseRecord(msgspec.Struct, frozen=True):
    """``cortex_leader/placer``: the holder of the lease. It expires unless it is renewed."""

    instance: str
    gateway: str
