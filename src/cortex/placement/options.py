"""What may differ between the gateways of a fleet in how they place models."""

from typing import NamedTuple

from cortex.placement.eviction import Strategy

PLACE_SECONDS = 120.0
"""How long a request waits until its model's load begins, unless ``load_wait_seconds`` says."""


class PlacementOptions(NamedTuple):
    """What may differ between gateways; it should not between those of one fleet."""

    strategy: Strategy = Strategy.LRU
    """Who goes first when memory is needed."""
    defrag_after_cycles: int = 0
    """Loads on a node after which its older engines are started anew; 0 = never."""
    place_seconds: float = PLACE_SECONDS
    """How long a request waits for a place for its model."""
    admitted: frozenset[str] = frozenset()
    """Only these nodes are used; empty = all."""
