"""The placer: the one gateway that loads and evicts. It looks, plans, and sends orders.

It acts only while it holds the lease, and every order carries the lease's epoch, so that a neuron
refuses what a predecessor still sends. It remembers nothing that a successor would need: the
records hold what is wanted and what is loaded.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.identity import GatewayIdentity
from cortex.placement import planner
from cortex.placement.demand import Demands
from cortex.placement.eviction import eviction_candidates
from cortex.placement.fit import NodeView
from cortex.placement.kv_mirror import KvMirror
from cortex.placement.node_orders import NodeOrders, Order, verb_of
from cortex.placement.options import PlacementOptions
from cortex.placement.snapshot import Key, Snapshot, SnapshotBuilder
from protocol import codec, keys
from protocol.fleet import ModelState
from protocol.leader import Epoch
from protocol.orders import LoadOrder, PullOrder, RecycleOrder, UnloadOrder, Victim
from protocol.placement import EvictionOrder, Placement
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("placer")

LOOK_SECONDS = 0.1
"""Time between two looks while something is wanted."""
IDLE_LOOK_SECONDS = 2.0
WRITE_SECONDS = 0.5
"""Time between two checks of whether the displayed records must change."""
SEEN_SECONDS = 3.0
"""An order that shows no effect in the records within this time had none."""
COOLING_SECONDS = 3.0
"""How long a node that refused a load is not asked for the same model again."""


class _Sent(NamedTuple):
    """A load order whose effect does not show in the records yet."""

    load: planner.LoadAction
    at: float


class Published(NamedTuple):
    """The records that the placer keeps in KV for people."""

    placements: KvMirror
    """Where each model is, and why."""
    evictions: KvMirror
    """Each node's eviction order."""


class Placer:
    """Places models while its gateway holds the lease; *epoch* is None while another gateway
    does."""

    def __init__(
        self,
        identity: GatewayIdentity,
        *,
        epoch: Callable[[], Epoch | None],
        fleet: Fleet,
        catalogue: Catalogue,
        demands: Demands,
        snapshots: SnapshotBuilder,
        published: Published,
        options: PlacementOptions,
    ) -> None:
        self._bus = identity.bus
        self._instance = identity.instance
        self._orders = NodeOrders(identity.bus)
        self._epoch = epoch
        self._fleet = fleet
        self._catalogue = catalogue
        self._demands = demands
        self._snapshots = snapshots
        self._published = published
        self._strategy = options.strategy
        self._defrag_after = options.defrag_after_cycles
        self._sent: dict[Key, _Sent] = {}
        self._told: dict[Key, float] = {}
        self._cooling: dict[Key, tuple[float, str]] = {}
        self._whys: dict[Key, Placement] = {}
        self._woken = asyncio.Event()
        self._written = float("-inf")
        self.ordered = dict.fromkeys(("load", "evict", "recycle"), 0)
        """Orders that nodes have accepted since the start, by kind; load victims are evictions."""

    def wake(self) -> None:
        """Looks again at once, as something has changed."""
        self._woken.set()

    async def run(self) -> None:
        """Places until it is cancelled."""
        while True:
            self._woken.clear()
            epoch = self._epoch()
            if epoch is None or not self._bus.is_connected:
                self._sent.clear()
            else:
                try:
                    await self._act(epoch)
                except Exception:
                    log.exception("placing")
            pause = LOOK_SECONDS if self._demands or self._sent else IDLE_LOOK_SECONDS
            await wait_at_most(self._woken, pause)

    async def _act(self, epoch: Epoch) -> None:
        snapshot = self._snapshots.look(self._refused())
        self._settle(snapshot)
        taken = snapshot.taken | {
            node for node, model in self._sent if not self._shows(node, model)
        }
        coming = {model for _, model in self._sent}
        wants = [want for want in snapshot.wants if want.need.model not in coming]
        made = planner.plan(wants, snapshot.nodes, taken, self._strategy, self._defrag_after)
        work = [
            *(self._load(load, epoch) for load in made.loads),
            *(self._unload(unload, epoch) for unload in made.unloads),
            *(self._pull(pull, epoch) for pull in made.pulls),
            *(self._recycle(recycle, epoch) for recycle in made.recycles),
        ]
        await asyncio.gather(*work)
        if work or time.monotonic() - self._written > WRITE_SECONDS:
            self._written = time.monotonic()
            await self._write(snapshot, epoch)

    # -- orders --------------------------------------------------------------------------------

    async def _load(self, load: planner.LoadAction, epoch: Epoch) -> None:
        profile = self._catalogue.listed(load.model)
        order = LoadOrder(
            load.model,
            profile.source if profile else "",
            profile,
            load.devices,
            tuple(Victim(model, self._snapshots.drain_seconds(model)) for model in load.victims),
            epoch,
            load.why,
        )
        goes = f"; evicting {', '.join(load.victims)}" if load.victims else ""
        log.info(
            "epoch %d: loading %s on %s: %s%s",
            epoch.revision,
            load.model,
            load.node,
            load.why,
            goes,
        )
        self._sent[load.node, load.model] = _Sent(load, time.monotonic())
        self._whys[load.node, load.model] = Placement(
            self._instance, epoch, load.node, load.model, load.devices, load.victims, load.why
        )
        if await self._order(load.node, order):
            if load.is_free:
                self._snapshots.load_is_free(load.node, load.model)
            self.ordered["load"] += 1
            self.ordered["evict"] += len(load.victims)
        else:
            self._sent.pop((load.node, load.model), None)

    async def _unload(self, unload: planner.UnloadAction, epoch: Epoch) -> None:
        if self._is_told(unload.node, unload.model):
            return
        log.info(
            "epoch %d: unloading %s from %s: %s",
            epoch.revision,
            unload.model,
            unload.node,
            unload.why,
        )
        order = UnloadOrder(
            unload.model, self._snapshots.drain_seconds(unload.model), epoch, unload.why
        )
        if await self._order(unload.node, order):
            self.ordered["evict"] += 1

    async def _pull(self, pull: planner.PullAction, epoch: Epoch) -> None:
        if self._is_told(pull.node, pull.model):
            return
        log.info("epoch %d: fetching %s on %s: %s", epoch.revision, pull.model, pull.node, pull.why)
        profile = self._catalogue.listed(pull.model)
        order = PullOrder(pull.model, profile.source if profile else "", profile, epoch)
        await self._order(pull.node, order)

    async def _recycle(self, recycle: planner.RecycleAction, epoch: Epoch) -> None:
        if self._is_told(recycle.node, recycle.model):
            return
        log.info("restarting the engine of %s on %s: %s", recycle.model, recycle.node, recycle.why)
        began = next(
            (
                placed.record.loads
                for placed in self._fleet.placed(recycle.model)
                if placed.record.node == recycle.node
            ),
            0,
        )
        order = RecycleOrder(recycle.model, began + recycle.loads, epoch)
        if await self._order(recycle.node, order):
            self.ordered["recycle"] += 1
        else:  # it is in use by now: ask again soon
            self._told.pop((recycle.node, recycle.model), None)

    def _is_told(self, node: str, model: str) -> bool:
        """Whether an order to the node has just gone out and cannot have shown its effect yet."""
        now = time.monotonic()
        self._told = {key: at for key, at in self._told.items() if now - at < SEEN_SECONDS}
        if (node, model) in self._told:
            return True
        self._told[node, model] = now
        return False

    async def _order(self, node: str, order: Order) -> bool:
        """Sends an order; True when the node accepted it."""
        if self._epoch() is None:
            return False  # the lease expired while this was being prepared
        error = await self._orders.send(node, order)
        if error is None:
            return True
        log.warning(
            "node %s refused %s of %s: %s", node, verb_of(order), order.model, error.message
        )
        if isinstance(order, LoadOrder):
            self._cool(node, order.model, error.message)
        return False

    # -- outcomes of orders ---------------------------------------------------------------------

    def _settle(self, snapshot: Snapshot) -> None:
        """Forgets orders whose effect shows in the records, or never came."""
        now = time.monotonic()
        for (node, model), sent in list(self._sent.items()):
            state = self._state(node, model)
            if state in (ModelState.READY, ModelState.FAILED):
                del self._sent[node, model]
            elif state is None and now - sent.at > SEEN_SECONDS:
                del self._sent[node, model]
                self._cool(node, model, "it abandoned a load of this model a moment ago")

    def _shows(self, node: str, model: str) -> bool:
        """Whether the node's record tells of a model that it was told to load."""
        return self._state(node, model) is not None

    def _state(self, node: str, model: str) -> ModelState | None:
        """A model's state on a node; None when it is not there, nor on its way."""
        records = (placed.record for placed in self._fleet.placed(model))
        return next((record.state for record in records if record.node == node), None)

    def _cool(self, node: str, model: str, why: str) -> None:
        self._cooling[node, model] = (time.monotonic() + COOLING_SECONDS, why)

    def _refused(self) -> dict[Key, str]:
        now = time.monotonic()
        self._cooling = {key: c for key, c in self._cooling.items() if c[0] > now}
        return {key: why for key, (_, why) in self._cooling.items()}

    # -- records for people ---------------------------------------------------------------------

    async def _write(self, snapshot: Snapshot, epoch: Epoch) -> None:
        """Writes what should be where and who would be evicted first, where that changed."""
        here = {(node.name, r.model): r for node in snapshot.nodes for r in node.residents}
        self._whys = {key: p for key, p in self._whys.items() if key in here or key in self._sent}
        shown = {
            keys.placement(*key): codec.encode(
                self._whys.get(key)
                or Placement(self._instance, epoch, *key, resident.devices, why="found there")
            )
            for key, resident in here.items()
        }
        await self._published.placements.show(shown)
        orders = {keys.eviction(n.name): self._eviction_order(n, epoch) for n in snapshot.nodes}
        await self._published.evictions.show(orders)

    def _eviction_order(self, node: NodeView, epoch: Epoch) -> bytes:
        order = tuple(eviction_candidates(node.residents, self._strategy))
        return codec.encode(EvictionOrder(self._instance, epoch, node.name, order))
