"""Wires everything in a gateway that concerns where models are, in one place.

It holds the views of demand and pins, the snapshots of the fleet, the lease, the placer, and the
operators' verbs.
"""

import asyncio
from collections.abc import Callable

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.identity import GatewayIdentity
from cortex.placement.demand import Demands
from cortex.placement.feasibility import Feasibility
from cortex.placement.kv_mirror import KvMirror
from cortex.placement.lease import Lease
from cortex.placement.operations import Operations
from cortex.placement.options import PlacementOptions
from cortex.placement.pins import OperatorIntent
from cortex.placement.placer import Placer, Published
from cortex.placement.snapshot import SnapshotBuilder
from cortex.storage.intent_keeper import IntentKeeper
from protocol import codec, keys
from protocol.bus import KvBucket, KvView
from protocol.bus.view import Listener


class PlacementService:
    """One gateway's share in placement. *on_change* is called when it has won or lost the lease."""

    def __init__(
        self,
        identity: GatewayIdentity,
        *,
        fleet: Fleet,
        catalogue: Catalogue,
        options: PlacementOptions,
        on_change: Callable[[], None],
        is_gateway: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """*is_gateway* says whether a process instance is that of a gateway."""
        bus = identity.bus
        self._on_change = on_change
        self.strategy = options.strategy
        self.intent = OperatorIntent()
        self.demands = Demands(timing=identity.timing)
        self.snapshots = SnapshotBuilder(fleet, catalogue, self.demands, self.intent)
        self.feasibility = Feasibility(self.snapshots, fleet, catalogue)
        self.operations = Operations(
            identity,
            fleet=fleet,
            catalogue=catalogue,
            intent=self.intent,
            snapshots=self.snapshots,
            strategy=options.strategy,
        )
        self.lease = Lease(identity, on_change=self._lease_changed)
        self._intent_keeper = IntentKeeper(
            bus,
            keys.PLACEMENT,
            self._then_place(self.intent.key_changed),
            is_kept=lambda key: not _is_placers(key),
            author=_author,
            is_gateway=is_gateway,
        )
        eviction = KvView(bus, keys.EVICTION, _unread)
        wanted = KvView(bus, keys.WANTED, self._then_place(self.demands.key_changed))
        self._views = (eviction, wanted)
        self.placer = Placer(
            identity,
            epoch=lambda: self.lease.epoch,
            fleet=fleet,
            catalogue=catalogue,
            demands=self.demands,
            snapshots=self.snapshots,
            published=Published(
                placements=KvMirror(
                    KvBucket(bus, keys.PLACEMENT), self._intent_keeper.view, _is_placers
                ),
                evictions=KvMirror(KvBucket(bus, keys.EVICTION), eviction, lambda _: True),
            ),
            options=options,
        )

    async def run(self) -> None:
        """Runs views, lease and placer until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._intent_keeper.run(), name="operators' intent")
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


def _is_placers(key: str) -> bool:
    """Whether a key of ``cortex_placement`` is the placer's, and not an operator's."""
    return key.startswith("node.")


def _author(value: bytes) -> str:
    """The process instance that wrote a pin or drained a node; raises ``UnreadableMessage``."""
    try:
        return codec.read_pin(value).instance
    except codec.UnreadableMessage:
        return codec.read_drain(value).instance


def _unread(key: str, value: bytes | None) -> None:
    """Ignores the eviction order, which is for people; the view serves the mirror for
    comparison."""
