"""The gateway without HTTP: connection, snapshot of the fleet, dispatcher, heartbeats.

This is the one place that wires them; ``app`` puts the API on top, ``serve`` runs it.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable

from cortex.dispatch.decisions import Decisions
from cortex.dispatch.dispatcher import Dispatcher
from cortex.dispatch.render_client import RenderClient
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from cortex.identity import GatewayIdentity
from cortex.placement.demand_writer import DemandWriter
from cortex.placement.options import PlacementOptions
from cortex.placement.service import PlacementService
from cortex.storage.intent_keeper import IntentKeeper
from cortex.storage.keeper import Storage
from cortex.telemetry.history import History
from cortex.telemetry.metrics import Metrics
from protocol import codec, keys, subjects
from protocol.bus import Bus, BusMessage, KvBucket, KvView
from protocol.catalogue import Profile
from protocol.fleet import GatewayHeartbeat, ModelState
from protocol.names import new_instance_id
from protocol.runtime.heap import keep_heap_small
from protocol.runtime.loop_watch import LoopWatch
from protocol.runtime.settings import SettingsError
from protocol.runtime.waiting import wait_at_most
from protocol.timing import NORMAL, Timing

IDLE_SECONDS = 0.02
"""How often changes of the fleet are processed, in batches, while no request waits for one."""
CONTRADICTION_SECONDS = 0.5
"""How long a node's heartbeats and records may contradict each other before it is asked."""
MAX_INSTANCES = 1_000
"""How many gateways are remembered, each restart as another one."""
_SERVABLE = (ModelState.READY, ModelState.ABSENT)


USUAL = PlacementOptions()


class Gateway:
    """One running gateway, without its API."""

    def __init__(
        self,
        bus: Bus,
        profiles: tuple[Profile, ...] | None = None,
        options: PlacementOptions = USUAL,
        timing: Timing = NORMAL,
    ) -> None:
        """Takes the *profiles* of this gateway's ``models.toml``, None when it has none, and the
        fleet's *timing*."""
        self._timing = timing
        self.instance = new_instance_id()
        self.id = f"gw-{self.instance}"
        identity = GatewayIdentity(bus, self.id, self.instance, timing)
        self.started_at = time.time()
        self.bus = bus
        self.fleet = Fleet(admitted=options.admitted, timing=timing)
        self.history = History()
        self.metrics = Metrics(self.history)
        self.catalogue = Catalogue()
        self._gateways: dict[str, float] = {self.id: time.monotonic()}
        self._instances = OrderedDict[str, None]()
        self.storage = Storage(bus, models=self._placed_models, rank=self._rank)
        self.placement = PlacementService(
            identity,
            fleet=self.fleet,
            catalogue=self.catalogue,
            options=options,
            on_change=self._lease_changed,
            is_gateway=self._is_gateway,
        )
        self.decisions = Decisions(
            self.fleet,
            self.catalogue,
            feasible=self.placement.feasibility.of,
            on_wanted=self._wanted,
        )
        self.dispatcher = Dispatcher(
            identity,
            self.fleet,
            self.decisions,
            self.storage,
            place_seconds=options.place_seconds,
        )
        self.prompts = RenderClient(bus, self.fleet, self.catalogue, self.decisions)
        self._view = KvView(bus, keys.NODES, self.fleet.key_changed)
        self._profiles = profiles
        self.on_end: list[Callable[[], Awaitable[None]]] = []
        """What to do when it ends."""
        self.read_again: Callable[[], None] = _nothing_to_read
        """Reads ``models.toml`` again; raises ``SettingsError``."""
        self._profiles_keeper = self._make_profiles_keeper()
        self._catalogue_wanted = asyncio.Event()
        self._catalogue_wanted.set()
        self._demand = DemandWriter(identity, self.dispatcher.wanted, options.place_seconds)
        self._pulse_wanted = asyncio.Event()
        self._export_metrics()

    def _make_profiles_keeper(self) -> IntentKeeper:
        return IntentKeeper(
            self.bus,
            keys.CATALOGUE,
            self.catalogue.key_changed,
            is_kept=lambda _: True,
            author=lambda value: codec.read_catalogue_record(value).instance,
            is_gateway=self._is_gateway,
        )

    def _lease_changed(self) -> None:
        """Announces a new epoch to the neurons before any order of the old one can arrive."""
        self._pulse_wanted.set()

    def _wanted(self) -> None:
        self._demand.wake()

    @property
    def why_not_ready(self) -> str:
        """Why no request could be served now; empty when one could."""
        if not self.bus.is_connected:
            return "no connection to NATS"
        if why := self.storage.why_not:
            return f"NATS cannot store requests: {why}"
        if not self._view.filled.is_set():
            return "still reading the fleet's state"
        records = (r for node in self.fleet.alive() for r in self.fleet.records_of(node))
        if not any(r.state in _SERVABLE and not r.error for r in records):
            return "no model is ready yet, and none could be loaded on request"
        return ""

    async def run(self) -> None:
        """Runs until cancelled; raises when NATS is gone for good."""
        await self.bus.subscribe(subjects.NODE_HEARTBEATS, self._node_heartbeat)
        await self.bus.subscribe(subjects.GATEWAY_HEARTBEATS, self._gateway_heartbeat)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.storage.run(), name="storage")
            tasks.create_task(self._view.run(), name="view")
            tasks.create_task(self._profiles_keeper.run(), name="catalogue")
            tasks.create_task(self._ask_the_contradictory(), name="contradictions")
            tasks.create_task(self._write_catalogue(), name="write catalogue")
            tasks.create_task(self._demand.run(), name="demand")
            tasks.create_task(self.placement.run(), name="placement")
            tasks.create_task(self.dispatcher.run(), name="dispatcher")
            tasks.create_task(self._pulse(), name="heartbeat")
            tasks.create_task(self._follow_fleet(), name="follow fleet")
            tasks.create_task(self._watch_connection(), name="connection")
            tasks.create_task(LoopWatch(self.metrics.loop_held).run(), name="loop watch")
            tasks.create_task(keep_heap_small(), name="heap")

    def reload(self, profiles: tuple[Profile, ...] | None) -> None:
        """Takes the profiles of a ``models.toml`` that was read again."""
        self._profiles = profiles
        self._catalogue_wanted.set()

    async def _write_catalogue(self) -> None:
        """Writes what the file says, where the catalogue differs; of several gateways with
        different files, the one that read its own last wins."""
        bucket = KvBucket(self.bus, keys.CATALOGUE)
        await self._profiles_keeper.view.filled.wait()
        while True:
            await self._catalogue_wanted.wait()
            self._catalogue_wanted.clear()
            if self._profiles is None:
                continue
            new, gone = self.catalogue.changes(self._profiles, self.instance)
            written = [await bucket.put(keys.catalogue(r.profile.id), codec.encode(r)) for r in new]
            removed = [await bucket.delete(keys.catalogue(model)) for model in gone]
            if not all(written + removed):
                self._catalogue_wanted.set()
                await asyncio.sleep(1.0)

    async def _follow_fleet(self) -> None:
        """Advances the queues, and creates the lanes of new models before their neurons pull from
        them."""
        provisioned = -1
        while True:
            now = time.monotonic()
            for gateway, heard_at in list(self._gateways.items()):
                if gateway != self.id and now - heard_at > self._timing.node_gone_seconds:
                    del self._gateways[gateway]
            self.dispatcher.update_room(len(self._gateways))
            if self.fleet.version != provisioned:
                provisioned = self.fleet.version
                for model in self._placed_models():
                    if not await self.dispatcher.provision(model):
                        provisioned = -1
            await self.fleet.wait_for_change(1.0)
            if not self.dispatcher.waiting:
                # heartbeats of a large fleet arrive by the hundreds
                await asyncio.sleep(IDLE_SECONDS)

    async def _ask_the_contradictory(self) -> None:
        """Asks nodes whose heartbeats do not agree with their records what is true, as their
        records may be lost, and NATS may not be able to store others."""
        while True:
            await asyncio.sleep(CONTRADICTION_SECONDS)
            for node in self.fleet.contradictory(CONTRADICTION_SECONDS):
                answer = await self.bus.request(subjects.node_verb(node, "describe"), timeout=0.5)
                with contextlib.suppress(codec.UnreadableMessage):
                    if answer is not None:
                        self.fleet.described(codec.read_describe(answer))

    def _placed_models(self) -> list[str]:
        return [model for model in self.fleet.models() if self.fleet.placed(model)]

    def _rank(self) -> int:
        return sorted(self._gateways).index(self.id)

    def _is_gateway(self, instance: str) -> bool:
        """Whether a process instance is a gateway's, this one's or one that was heard."""
        return instance == self.instance or instance in self._instances

    async def _pulse(self) -> None:
        while True:
            self._pulse_wanted.clear()
            if self.bus.is_connected:
                beat = GatewayHeartbeat(self.id, self.instance, self.placement.lease.epoch)
                await self.bus.publish(subjects.gateway_heartbeat(self.id), codec.encode(beat))
            await wait_at_most(self._pulse_wanted, self._timing.heartbeat_seconds)

    async def _watch_connection(self) -> None:
        await self.bus.closed.wait()
        raise ConnectionError("NATS closed the connection for good")

    def _node_heartbeat(self, message: BusMessage) -> None:
        with contextlib.suppress(codec.UnreadableMessage):
            self.fleet.heard(codec.read_node_heartbeat(message.data))

    def _gateway_heartbeat(self, message: BusMessage) -> None:
        with contextlib.suppress(codec.UnreadableMessage):
            heartbeat = codec.read_gateway_heartbeat(message.data)
            self._gateways[heartbeat.gateway] = time.monotonic()
            self._instances[heartbeat.instance] = None
            self._instances.move_to_end(heartbeat.instance)
            if len(self._instances) > MAX_INSTANCES:
                self._instances.popitem(last=False)
            if heartbeat.gateway == self.id:
                self.dispatcher.echo()

    def _export_metrics(self) -> None:
        gauge = self.metrics.gauge
        gauge(
            "cortex_requests_in_flight",
            "Requests that were handed over and are not finished.",
            self._in_flight,
        )
        gauge(
            "cortex_requests_waiting",
            "Requests that wait for their turn.",
            lambda: self.dispatcher.waiting,
        )
        gauge("cortex_nodes_alive", "Living nodes.", lambda: len(list(self.fleet.alive())))
        gauge("cortex_bus_connected", "1 while connected to NATS.", lambda: self.bus.is_connected)
        self.metrics.counter(
            "cortex_placer_orders",
            "Orders of this gateway, as the placer, that nodes have accepted.",
            "order",
            lambda: self.placement.placer.ordered,
        )
        gauge("cortex_bus_reconnects", "Reconnects since the start.", lambda: self.bus.reconnects)

    def _in_flight(self) -> float:
        return self.dispatcher.in_flight


def _nothing_to_read() -> None:
    raise SettingsError("This gateway has no models.toml. Start it with --models FILE.")


@contextlib.asynccontextmanager
async def running_gateway(
    bus: Bus,
    profiles: tuple[Profile, ...] | None = None,
    options: PlacementOptions = USUAL,
    timing: Timing = NORMAL,
) -> AsyncIterator[Gateway]:
    """Runs a gateway for the length of the block; its failure cancels the block."""
    gateway = Gateway(bus, profiles, options, timing)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(gateway.run(), name="gateway")
        try:
            yield gateway
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await gateway.placement.lease.release()
            task.cancel()
            for end in gateway.on_end:
                await end()
