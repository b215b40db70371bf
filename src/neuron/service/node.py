"""The neuron service: wires connection, records, heartbeats and residents; the table of contents.

Owns what the node says of itself and hears from others. What becomes of an order is decided by
``ResidentManager``. Must not know engines.
"""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from typing import TypeVar

from neuron import __version__
from neuron.config import NeuronConfig, cache_folder, engine_environment, visible_devices
from neuron.engine_process.client import EngineProcess, PreparedProcess
from neuron.engine_process.fork_server import ForkServer
from neuron.engine_process.launch import (
    Launch,
    LaunchText,
    start_python,
    start_text_python,
)
from neuron.files import sources
from neuron.files.kernel_findings import KernelFindings
from neuron.files.warm_tier import WarmTier
from neuron.hardware.discovery import Hardware
from neuron.service.engine_protocol import StartEngine
from neuron.service.identity import Identity
from neuron.service.jobs.gateway_liveness import GatewayLiveness
from neuron.service.jobs.registry import Jobs
from neuron.service.jobs.worker import WorkerContext
from neuron.service.rendering import RenderService
from neuron.service.residents.announcer import Announcer
from neuron.service.residents.manager import ResidentManager
from neuron.service.residents.memory_meter import MemoryMeter
from neuron.service.residents.offers import Offers
from neuron.service.residents.records import RecordWriter
from neuron.service.residents.resident import ResidentContext
from neuron.service.texts.shelf import Shelf
from neuron.sizing.ledger import with_budgets
from protocol import codec, keys, subjects
from protocol.bus import Bus, BusMessage, KvView
from protocol.bus.micro import serve_verbs
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import Describe, NodeHeartbeat, NodeInfo, NodeLive
from protocol.job import PROTOCOL
from protocol.names import InvalidName, new_instance_id, untoken
from protocol.orders import OrderReply
from protocol.runtime.heap import keep_heap_small
from protocol.runtime.loop_watch import LoopWatch
from protocol.runtime.settings import SettingsError
from protocol.runtime.waiting import wait_at_most
from protocol.timing import NORMAL, Timing

log = logging.getLogger("neuron")

T = TypeVar("T")
LEAST_SECONDS = 0.05
"""Between two heartbeats, when a model has become ready or idle."""
MEMORY_SHARE = 0.9
"""Share of a device's memory that models may take, unless ``memory_mb`` says."""
NAME_SECONDS = 0.5
"""How long a namesake may take to answer; NATS says at once when there is none."""


class Node:
    """One running neuron on its host."""

    def __init__(
        self,
        bus: Bus,
        config: NeuronConfig,
        start_engine: StartEngine | None = None,
        timing: Timing = NORMAL,
    ) -> None:
        """*timing*: the fleet's. Raises ``SettingsError`` for models that cannot be told apart."""
        self._timing = timing
        self.name = config.name
        self.instance = new_instance_id()
        self._bus = bus
        self._config = config
        self._identity = Identity(bus, self.name, self.instance, timing)
        self._gateways = GatewayLiveness(timing=timing)
        self._jobs = Jobs(self._identity)
        self._announcer = Announcer(bus, self.name)
        self._hardware = Hardware(visible_devices=visible_devices())
        self._devices = with_budgets(
            self._hardware.discover(),
            config.device,
            config.memory_mb,
            MEMORY_SHARE,
            config.host_cache_mb << 20,
        )
        self._warm = WarmTier(config.host_cache_mb << 20)
        self._beat_wanted = asyncio.Event()
        self.loop_watch = LoopWatch(self._loop_held)
        self.loop_held_seconds = 0.0
        """For how long anything has held the event loop, in all."""
        self._records = RecordWriter(
            self._identity, self._announcer, lambda model: model in self._warm.held
        )
        self._offers = Offers(config, self._devices)
        self._default_models = _told_apart(config.default_models)
        self._fork_server = ForkServer(engine_environment()) if config.standby else None
        if start_engine is not None:
            self._fork_server = None
        self._shelf = Shelf(self._text_launch())
        self.residents = ResidentManager(
            self._resident_context(start_engine),
            self._offers,
            MemoryMeter(self._hardware, self._devices, self._warm, self._helpers),
            self._warm,
        )
        self._texts = RenderService(self.name, bus, self._shelf, self._offers.get, self._context_of)
        self._catalogue_view = KvView(bus, keys.CATALOGUE, self._profile_changed)

    def _resident_context(self, start_engine: StartEngine | None) -> ResidentContext:
        prepare = None
        if start_engine is None:
            launch: Launch = functools.partial(start_python, environment=engine_environment())
            if self._fork_server is not None:
                launch = self._fork_server.launch
                prepare = functools.partial(PreparedProcess.begin, launch=launch)
            start_engine = functools.partial(EngineProcess.start, launch=launch)
        workers = WorkerContext(self._identity, self._gateways, self._jobs, self._beat_wanted.set)
        findings = KernelFindings(cache_folder() / "kernels.json")
        return ResidentContext(
            self._config,
            workers,
            self._records,
            start_engine,
            findings,
            self._shelf,
            prepare,
        )

    def _text_launch(self) -> LaunchText:
        if self._fork_server is not None:
            return self._fork_server.launch_text
        return functools.partial(start_text_python, environment=engine_environment())

    def _helpers(self) -> tuple[int, ...]:
        """The process that others are forked from, all of those, and text processes."""
        forked = self._fork_server.pids if self._fork_server is not None else ()
        return (*forked, *self._shelf.pids)

    async def run(self) -> None:
        """Serves the fleet until cancelled. Raises ``SettingsError`` when another neuron has its
        name, and ``ConnectionError`` when NATS is gone for good."""
        try:
            await self._check_name()
            await self._serve()
        finally:
            self._hardware.close()
            await self._shelf.close()
            await self._warm.close()

    async def _serve(self) -> None:
        self._announcer.set(keys.node_info(self.name), codec.encode(self._info()))
        await self._bus.subscribe(subjects.all_job_control(self.name), self._jobs.steered)
        await self._bus.subscribe(subjects.ALL_LOCATES, self._jobs.found)
        await self._bus.subscribe(subjects.all_claims(self.name), self._jobs.taken)
        await self._bus.subscribe(subjects.node_verb(self.name, "render"), self._texts.asked)
        await self._bus.subscribe(subjects.GATEWAY_HEARTBEATS, self._gateway_heartbeat)
        await self._bus.subscribe(subjects.node_heartbeat(self.name), self._own_heartbeat)
        self._bus.on_reconnect(self._reconnected)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._announcer.run(), name="announcer")
            tasks.create_task(self._pulse(), name="heartbeat")
            tasks.create_task(self._refresh_live(), name="live record")
            tasks.create_task(self._watch_connection(), name="connection")
            tasks.create_task(self.loop_watch.run(), name="loop watch")
            tasks.create_task(keep_heap_small(), name="heap")
            if self._fork_server is not None:
                tasks.create_task(self._fork_server.run(), name="fork server")
            tasks.create_task(self._catalogue_view.run(), name="catalogue")
            residents = self.residents.run(self._default_models, self._catalogue_view.filled)
            tasks.create_task(residents, name="residents")
            await self._serve_verbs()

    async def _check_name(self) -> None:
        """Raises ``SettingsError`` for a name that is taken: two neurons with one name would
        overwrite each other's records."""
        subject = subjects.node_verb(self.name, "describe")
        answer = await self._bus.request(subject, timeout=NAME_SECONDS)
        if answer is None:
            return
        holder = codec.read_describe(answer).info
        raise SettingsError(
            f"a neuron named {self.name} runs already, on {holder.host}. Give this one another "
            'name: name = "…" in neuron.toml, or --name.'
        )

    async def drain(self) -> None:
        """Takes no more jobs, lets the running ones finish, and says good-bye."""
        self.residents.is_draining = True
        await self._beat()
        await self.residents.drain(self._config.drain_seconds)

    async def leave(self) -> None:
        """Removes its records after :meth:`run` ended: the fleet must not remember a node that left
        in order."""
        self._records.keep_only(())
        self._announcer.remove(keys.node_live(self.name))
        self._announcer.remove(keys.node_info(self.name))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._announcer.flush()

    # -- what it says --------------------------------------------------------------------------

    def _info(self) -> NodeInfo:
        return NodeInfo(
            node=self.name,
            instance=self.instance,
            version=__version__,
            host=socket.gethostname(),
            devices=self._devices,
        )

    async def _pulse(self) -> None:
        while True:
            if self._bus.is_connected:
                await self._beat()
            self._gateways.forget_old()
            self._jobs.expire()
            await asyncio.sleep(LEAST_SECONDS)
            await wait_at_most(self._beat_wanted, self._timing.heartbeat_seconds - LEAST_SECONDS)
            self._beat_wanted.clear()

    async def _beat(self) -> None:
        loads = {resident.id: load for resident in self.residents if (load := resident.load)}
        beat = NodeHeartbeat(
            self.name,
            self.instance,
            loads,
            draining=self.residents.is_draining,
            loads=self.residents.reservations.loads,
        )
        await self._bus.publish(subjects.node_heartbeat(self.name), codec.encode(beat))

    async def _refresh_live(self) -> None:
        while True:
            await self.residents.reservations.measure()
            self._announcer.set(
                keys.node_live(self.name),
                codec.encode(self._live()),
                ttl_seconds=self._timing.live_ttl_seconds,
            )
            await asyncio.sleep(self._timing.live_every_seconds)

    def _live(self) -> NodeLive:
        usage = self.residents.reservations.usage
        return NodeLive(self.name, self.instance, usage, draining=self.residents.is_draining)

    async def _serve_verbs(self) -> None:
        async def describe(_: bytes) -> bytes:
            return codec.encode(Describe(self._info(), self._live(), self._records.records))

        async def load(data: bytes) -> bytes:
            return _replied(codec.read_load_order, data, self.residents.load)

        async def unload(data: bytes) -> bytes:
            return _replied(codec.read_unload_order, data, self.residents.unload)

        async def pull(data: bytes) -> bytes:
            return _replied(codec.read_pull_order, data, self.residents.pull)

        async def recycle(data: bytes) -> bytes:
            return _replied(codec.read_recycle_order, data, self.residents.recycle)

        await serve_verbs(
            self._bus,
            name="neuron",
            version=__version__,
            description=self.name,
            metadata={"node": self.name, "protocol": str(PROTOCOL)},
            endpoints={
                subjects.node_verb(self.name, "describe"): describe,
                subjects.node_verb(self.name, "load"): load,
                subjects.node_verb(self.name, "unload"): unload,
                subjects.node_verb(self.name, "pull"): pull,
                subjects.node_verb(self.name, "recycle"): recycle,
            },
        )

    # -- what it hears -------------------------------------------------------------------------

    def _gateway_heartbeat(self, message: BusMessage) -> None:
        with contextlib.suppress(codec.UnreadableMessage):
            beat = codec.read_gateway_heartbeat(message.data)
            self._gateways.heard(beat.gateway)
            if beat.epoch is not None:
                self.residents.note_epoch(beat.epoch)

    def _own_heartbeat(self, message: BusMessage) -> None:
        self._gateways.echo()

    def _profile_changed(self, key: str, value: bytes | None) -> None:
        with contextlib.suppress(codec.UnreadableMessage, InvalidName):
            record = codec.read_catalogue_record(value) if value else None
            self._offers.list_profile(untoken(key), record.profile if record else None)
            self.residents.refresh_offers()

    def _context_of(self, model: str) -> int:
        records = (resident.record for resident in self.residents if resident.id == model)
        return max((record.context_limit for record in records), default=0)

    async def _reconnected(self) -> None:
        self._gateways.reconnected()
        await self._beat()

    def _loop_held(self, seconds: float) -> None:
        self.loop_held_seconds += seconds

    async def _watch_connection(self) -> None:
        await self._bus.closed.wait()
        raise ConnectionError("NATS closed the connection for good")


def _replied(read: codec.Reader[T], data: bytes, carry_out: Callable[[T], None]) -> bytes:
    """Carries an order out; what is wrong with it goes into the answer."""
    try:
        carry_out(read(data))
    except codec.UnreadableMessage as error:
        wrong = WireError(ErrorCode.INVALID_REQUEST, f"The order cannot be read: {error}.")
        return codec.encode(OrderReply(wrong))
    except FleetError as error:
        return codec.encode(OrderReply(error.error))
    return codec.encode(OrderReply())


def _told_apart(references: tuple[str, ...]) -> tuple[str, ...]:
    names = [sources.model_id(source) for source in references]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"two models are called {name}. Give one of them another name: --model NAME=FOLDER."
            )
    return references
