"""Decides who is evicted first when a node needs memory. Pure.

``lru``: the model that has been idle longest. ``priority``: the lowest residency class, and within
a class the model that has been idle longest. Either way, a model that exceeds its idle limit goes
before all others, and one that is in use goes after them.
"""

from collections.abc import Iterable
from enum import StrEnum

from cortex.placement.fit import ResidentView
from protocol.placement import EvictionCandidate


class Strategy(StrEnum):
    """The strategies of ``[eviction] strategy``."""

    LRU = "lru"
    PRIORITY = "priority"


def rank_victims(residents: Iterable[ResidentView], strategy: Strategy) -> list[ResidentView]:
    """Sorts residents for eviction, first to go first; those that may not be evicted come last."""

    def rank(resident: ResidentView) -> tuple[bool, bool, bool, int, float, str]:
        by_class = resident.residency if strategy is Strategy.PRIORITY else 0
        return (
            is_immune(resident),
            resident.is_busy,
            not resident.is_expired,
            by_class,
            -resident.idle_seconds,
            resident.model,
        )

    return sorted(residents, key=rank)


def is_immune(resident: ResidentView) -> bool:
    """Whether it may not be evicted, whatever needs the memory."""
    return resident.is_pinned or resident.is_last or not resident.is_ready


def eviction_candidates(
    residents: Iterable[ResidentView], strategy: Strategy
) -> list[EvictionCandidate]:
    """Lists the eviction order with its reasons."""
    return [
        EvictionCandidate(resident.model, _why(resident, strategy), is_immune(resident))
        for resident in rank_victims(residents, strategy)
    ]


def _why(resident: ResidentView, strategy: Strategy) -> str:
    """Explains a resident's rank, without numbers that change over time: the order is written only
    when it changes."""
    if resident.is_pinned:
        return "pinned"
    if not resident.is_ready:
        return "loading or unloading"
    if resident.is_last:
        return "needed for min_replicas"
    if resident.is_busy:
        return "in use"
    if resident.is_expired:
        return f"idle for more than {resident.idle_limit_seconds:.0f} s"
    if strategy is Strategy.PRIORITY:
        return f"priority: residency class {resident.residency}"
    return "lru"
