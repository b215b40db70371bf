"""The settings by which gateways may differ in how they place models."""

from typing import NamedTuple

from cortex.placement.eviction import Strategy

PLACE_SECONDS = 120.0
"""How long a request waits for its model's load to begin, unless ``load_wait_seconds`` says
otherwise."""


class PlacementOptions(NamedTuple):
    """How a gateway places models; all gateways of one fleet should agree."""

    strategy: Strategy = Strategy.LRU
    """Decides who is evicted first when memory is needed."""
    defrag_after_cycles: int = 0
    """Loads on a node after which its older engines are restarted; 0 means never."""
    place_seconds: float = PLACE_SECONDS
    """How long a request waits for room for its model."""
    admitted: frozenset[str] = frozenset()
    """The only nodes that are used; empty means all."""
