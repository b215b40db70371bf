"""The neuron service: wires connection, records, heartbeats and models; the table of contents."""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from typing import TypeVar

from neuron import __version__
from neuron.config import NeuronConfig, engine_environment, visible_devices
from neuron.discovery import Hardware
from neuron.engine.client import EngineProcess
from neuron.service.announcer import Announcer
from neuron.service.engine import StartEngine
from neuron.service.gateways import Gateways
from neuron.service.job import Identity
from neuron.service.jobs import Jobs
from neuron.service.model import EngineSettings, Model
from protocol import codec, keys, subjects
from protocol.bus import Bus, BusMessage
from protocol.bus.micro import serve_verbs
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import (
    Describe,
    Device,
    DeviceKind,
    ModelRecord,
    NodeHeartbeat,
    NodeInfo,
    NodeLive,
)
from protocol.job import PROTOCOL
from protocol.names import new_instance_id
from protocol.orders import LoadOrder, OrderReply, UnloadOrder
from protocol.settings import SettingsError

log = logging.getLogger("neuron")

T = TypeVar("T")
HEARTBEAT_SECONDS = 0.5
NAME_SECONDS = 0.5
"""For the answer of a namesake; that there is none, NATS says at once."""


class Node:
    """One running neuron."""

    def __init__(
        self,
        bus: Bus,
        config: NeuronConfig,
        start_engine: StartEngine | None = None,
    ) -> None:
        self.name = config.name
        self.instance = new_instance_id()
        self._bus = bus
        self._config = config
        self._identity = Identity(bus, self.name, self.instance)
        self._gateways = Gateways()
        self._jobs = Jobs(self._identity)
        self._announcer = Announcer(bus)
        self._hardware = Hardware(visible_devices=visible_devices())
        self._devices = self._hardware.discover()
        self._live = NodeLive(self.name, self.instance)
        self._draining = False
        settings = _engine_settings(config, self._devices)
        if start_engine is None:
            environment = engine_environment()
            start_engine = functools.partial(EngineProcess.start, environment=environment)
        self._make_model = functools.partial(
            Model,
            identity=self._identity,
            gateways=self._gateways,
            jobs=self._jobs,
            settings=settings,
            start_engine=start_engine,
            publish=self._publish,
        )
        self._models: dict[str, Model] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        for source in config.models:
            model = self._make_model(source)
            if model.id in self._models:
                raise SettingsError(
                    f"two models are called {model.id}. Give one of them another name: "
                    "--model NAME=FOLDER."
                )
            self._models[model.id] = model

    @property
    def models(self) -> list[Model]:
        """All that it has or is about to have."""
        return list(self._models.values())

    async def run(self) -> None:
        """Until cancelled. Raises ``SettingsError`` when another neuron has its name, and
        ``ConnectionError`` when NATS is gone for good."""
        await self._check_name()
        self._announcer.set(keys.node_info(self.name), codec.encode(self._info()))
        await self._bus.subscribe(subjects.all_steers(self.name), self._jobs.steered)
        await self._bus.subscribe(subjects.ALL_FINDS, self._jobs.found)
        await self._bus.subscribe(subjects.all_takes(self.name), self._jobs.taken)
        await self._bus.subscribe(subjects.GATEWAY_HEARTBEATS, self._gateway_heartbeat)
        await self._bus.subscribe(subjects.node_heartbeat(self.name), self._own_heartbeat)
        self._bus.on_reconnect(self._reconnected)
        await self._serve_verbs()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._announcer.run(), name="announcer")
            tasks.create_task(self._pulse(), name="heartbeat")
            tasks.create_task(self._refresh_live(), name="live record")
            tasks.create_task(self._watch_connection(), name="connection")
            self._tasks = tasks
            for model in self.models:
                self._start(model)

    async def _check_name(self) -> None:
        """Two neurons with one name would overwrite each other's records."""
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
        self._draining = True
        await self._beat()
        seconds = self._config.drain_seconds
        await asyncio.gather(*(model.drain(seconds) for model in self.models))

    # -- models come and go --------------------------------------------------------------------

    def load(self, order: LoadOrder) -> None:
        """Begins to load a model; nothing new when it is there or on its way. Raises ``FleetError``
        for one that has no usable name, or that is just being unloaded."""
        if self._draining or order.model in self._leaving:
            what = "the node drains" if self._draining else f"{order.model} is being unloaded"
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{self.name} does not load {order.model} now: {what}. Try again shortly.",
                retry_after_seconds=2,
            )
        if order.model not in self._models:
            source = order.source or order.model
            if not source.startswith(f"{order.model}="):
                source = f"{order.model}={source}"
            model = self._models[order.model] = self._make_model(source)
            log.info("told to load %s", model.id)
            self._start(model)

    def unload(self, order: UnloadOrder) -> None:
        """Begins to unload a model. Raises ``FleetError`` for one that is not here."""
        model = self._models.get(order.model)
        if model is None:
            have = ", ".join(self._models) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{self.name} has no model {order.model!r}. It has: {have}.",
                param="model",
            )
        if order.model not in self._leaving and self._tasks is not None:
            log.info("told to unload %s", model.id)
            self._leaving.add(model.id)
            taking = self._take_down(model, order.drain_seconds or None)
            self._tasks.create_task(taking, name=f"unload {model.id}")

    def _start(self, model: Model) -> None:
        assert self._tasks is not None, "it runs"
        task = self._tasks.create_task(model.run(), name=f"model {model.id}")
        self._running[model.id] = task

    async def _take_down(self, model: Model, seconds: float | None) -> None:
        await model.drain(seconds)
        task = self._running.pop(model.id)
        task.cancel()
        await asyncio.wait([task])
        del self._models[model.id]
        self._leaving.discard(model.id)
        self._announcer.remove(keys.node_model(self.name, model.id))
        log.info("%s is unloaded", model.id)

    async def leave(self) -> None:
        """After :meth:`run` ended: the fleet shall not remember a node that left in order."""
        for model in self.models:
            self._announcer.remove(keys.node_model(self.name, model.id))
        self._announcer.remove(keys.node_live(self.name))
        self._announcer.remove(keys.node_info(self.name))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._announcer.flush()
        self._hardware.close()

    # -- what it says --------------------------------------------------------------------------

    def _info(self) -> NodeInfo:
        return NodeInfo(
            node=self.name,
            instance=self.instance,
            version=__version__,
            host=socket.gethostname(),
            devices=self._devices,
        )

    def _publish(self, record: ModelRecord) -> None:
        self._announcer.set(keys.node_model(self.name, record.model), codec.encode(record))

    async def _pulse(self) -> None:
        while True:
            if self._bus.is_connected:
                await self._beat()
            self._gateways.forget_old()
            self._jobs.expire()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _beat(self) -> None:
        loads = {model.id: load for model in self.models if (load := model.load)}
        beat = NodeHeartbeat(self.name, self.instance, loads, draining=self._draining)
        await self._bus.publish(subjects.node_heartbeat(self.name), codec.encode(beat))

    async def _refresh_live(self) -> None:
        while True:
            # NVML can hang for seconds, so it is asked in a thread.
            usage = await asyncio.to_thread(self._hardware.usage, self._devices)
            self._live = NodeLive(self.name, self.instance, usage, draining=self._draining)
            self._announcer.set(
                keys.node_live(self.name),
                codec.encode(self._live),
                ttl_seconds=keys.LIVE_TTL_SECONDS,
            )
            await asyncio.sleep(keys.LIVE_EVERY_SECONDS)

    async def _serve_verbs(self) -> None:
        async def describe(_: bytes) -> bytes:
            records = tuple(model.record for model in self.models)
            return codec.encode(Describe(self._info(), self._live, records))

        async def load(data: bytes) -> bytes:
            return _replied(codec.read_load_order, data, self.load)

        async def unload(data: bytes) -> bytes:
            return _replied(codec.read_unload_order, data, self.unload)

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
            },
        )

    # -- what it hears -------------------------------------------------------------------------

    def _gateway_heartbeat(self, message: BusMessage) -> None:
        with contextlib.suppress(codec.UnreadableMessage):
            self._gateways.heard(codec.read_gateway_heartbeat(message.data).gateway)

    def _own_heartbeat(self, message: BusMessage) -> None:
        self._gateways.echo()

    async def _reconnected(self) -> None:
        self._gateways.reconnected()
        await self._beat()

    async def _watch_connection(self) -> None:
        await self._bus.closed.wait()
        raise ConnectionError("NATS closed the connection for good")


def _replied(read: codec.Reader[T], data: bytes, obey: Callable[[T], None]) -> bytes:
    """Obeys an order; what is wrong with it goes into the answer."""
    try:
        obey(read(data))
    except codec.UnreadableMessage as error:
        wrong = WireError(ErrorCode.INVALID_REQUEST, f"The order cannot be read: {error}.")
        return codec.encode(OrderReply(wrong))
    except FleetError as error:
        return codec.encode(OrderReply(error.error))
    return codec.encode(OrderReply())


def _engine_settings(config: NeuronConfig, devices: tuple[Device, ...]) -> EngineSettings:
    device = config.device
    if device == "auto":
        gpus = [d for d in devices if d.kind is DeviceKind.CUDA]
        device = f"cuda:{gpus[0].index}" if gpus else "cpu"
    return EngineSettings(
        device=device,
        dtype=config.dtype,
        exact=config.exact.asked,
        slots=config.slots,
        max_context=config.max_context or None,
        kv_cache_bytes=config.kv_cache_mb << 20 or None,
        threads=config.threads or None,
    )
