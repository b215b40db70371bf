"""Everything of a gateway that has to do with where models are: the one place that wires it.

The views of what is wanted and pinned, the survey of the fleet, the lease, the placer, and the
verbs of operators.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from cortex.dispatch.wait_budget import PLACE_SECONDS
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.placement.demand import Demands
from cortex.placement.eviction import Strategy
from cortex.placement.feasibility import Prospects
from cortex.placement.kv_mirror import Mirror
from cortex.placement.lease import Lease
from cortex.placement.operations import Control
from cortex.placement.pins import Standing
from cortex.placement.placer import Placer
from cortex.placement.snapshot import Survey
from protocol import keys
from protocol.bus import Bus, KvBucket, KvView
from protocol.bus.view import Listener
from protocol.timing import Timing


class Options(NamedTuple):
    """What may differ between gateways; it should not between those of one fleet."""

    strategy: Strategy = Strategy.LRU
    """Who goes first when memory is needed."""
    defrag_after_cycles: int = 0
    """Loads on a node after which its older engines are started anew; 0 = never."""
    place_seconds: float = PLACE_SECONDS
    """How long a request waits for a place for its model."""
    admitted: frozenset[str] = frozenset()
    """Only these nodes are used; empty = all."""


class Placing:
    """One gateway's. *on_change* is called when it has won or lost the lease."""

    def __init__(
        self,
        bus: Bus,
        gateway: str,
        instance: str,
        *,
        fleet: Fleet,
        catalogue: Catalogue,
        options: Options,
        timing: Timing,
        on_change: Callable[[], None],
    ) -> None:
        self._on_change = on_change
        self.strategy = options.strategy
        self.standing = Standing()
        self.demands = Demands(timing=timing)
        self.survey = Survey(fleet, catalogue, self.demands, self.standing)
        self.prospects = Prospects(self.survey, fleet, catalogue)
        self.control = Control(
            bus,
            instance,
            fleet=fleet,
            catalogue=catalogue,
            standing=self.standing,
            survey=self.survey,
            strategy=options.strategy,
        )
        self.lease = Lease(bus, gateway, instance, on_change=self._lease_changed, timing=timing)
        placement = KvView(bus, keys.PLACEMENT, self._then_place(self.standing.key_changed))
        eviction = KvView(bus, keys.EVICTION, _unread)
        wanted = KvView(bus, keys.WANTED, self._then_place(self.demands.key_changed))
        self._views = (placement, eviction, wanted)
        self.placer = Placer(
            bus,
            instance,
            epoch=lambda: self.lease.epoch,
            fleet=fleet,
            catalogue=catalogue,
            demands=self.demands,
            survey=self.survey,
            placements=Mirror(
                KvBucket(bus, keys.PLACEMENT), placement, lambda key: key.startswith("node.")
            ),
            evictions=Mirror(KvBucket(bus, keys.EVICTION), eviction, lambda _: True),
            strategy=options.strategy,
            defrag_after=options.defrag_after_cycles,
        )

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for view in self._views:
                tasks.create_task(view.run(), name="view of placement")
            tasks.create_task(self.lease.run(), name="lease")
            tasks.create_task(self.placer.run(), name="placer")

    def _lease_changed(self) -> None:
        self._on_change()
        self.placer.wake()

    def _then_place(self, listener: Listener) -> Listener:
        def changed(key: str, value: bytes | None) -> None:
            listener(key, value)
            self.placer.wake()

        return changed


def _unread(key: str, value: bytes | None) -> None:
    """The order of eviction is for people; the view is what the mirror compares with."""
