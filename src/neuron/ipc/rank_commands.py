"""The commands that rank 0 sends to the other ranks; see ``engine.ranks.lines``."""

import msgspec

ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
"""Environment of a rank's process, so that the group communicates over loopback only."""


UNTRIED = 5
"""Exit status of ``tp_check_rank.py``: the ranks work together, but no model was tried."""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """The first command: where on this machine the ranks connect."""

    port: int
    size: int


class SequenceTokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The tokens of one sequence in a step."""

    sequence: int
    tokens: list[int]
    start: int
    """Tokens of the sequence that the KV cache already holds."""
    blocks: list[int]
    """Its block table; on a line, without the first *known* blocks."""
    known: int = 0
    """Leading blocks that the other end knows from the step before; 0 = none is omitted."""


class Compute(msgspec.Struct, frozen=True, tag="compute", gc=False):
    """Run a batch through the layers."""

    step: int
    pieces: list[SequenceTokens]
    copies: list[tuple[int, int]] = []
    """KV cache blocks to copy first, as (source, target)."""


class Project(msgspec.Struct, frozen=True, tag="project", gc=False):
    """Apply the head to these rows of the step's batch."""

    step: int
    rows: list[int]


Command = Join | Compute | Project
