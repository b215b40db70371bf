"""The commands that rank 0 of a group sends to the other ranks; see ``engine.ranks.lines``."""

import msgspec

ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
"""What a rank's process must have in it, so that the group talks over loopback only."""


UNTRIED = 5
"""Exit status of ``check.py``: the ranks work together, and no model was tried."""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """The first command: where the ranks meet, on this machine."""

    port: int
    size: int


class SequenceTokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The tokens of one sequence in a step."""

    sequence: int
    tokens: list[int]
    start: int
    """Tokens of it that the cache already holds."""
    blocks: list[int]
    """Its block table; on a line, without its first *known* ones."""
    known: int = 0
    """So many blocks the other end has from the step before; 0 where nothing is left out."""


class Compute(msgspec.Struct, frozen=True, tag="compute", gc=False):
    """Run a batch through the layers."""

    step: int
    pieces: list[SequenceTokens]
    copies: list[tuple[int, int]] = []
    """Blocks of the cache to copy first, (source, target) each."""


class Project(msgspec.Struct, frozen=True, tag="project", gc=False):
    """Apply the head to these rows of the step's batch."""

    step: int
    rows: list[int]


Command = Join | Compute | Project
