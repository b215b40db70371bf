"""The neuron service: wires connection, records, heartbeats and models; the table of contents."""

import asyncio
import contextlib
import functools
import logging
import socket

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
from protocol.settings import SettingsError

log = logging.getLogger("neuron")

HEARTBEAT_SECONDS = 0.5


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
        self.models = [
            Model(
                source,
                self._identity,
                self._gateways,
                self._jobs,
                settings,
                start_engine,
                self._publish,
            )
            for source in config.models
        ]
        self._check_ids()

    def _check_ids(self) -> None:
        ids = [model.id for model in self.models]
        for model in ids:
            if ids.count(model) > 1:
                raise SettingsError(
                    f"two models are called {model}. Give one of them another name: "
                    "--model NAME=FOLDER."
                )

    async def run(self) -> None:
        """Until cancelled; raises when NATS is gone for good."""
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
            for model in self.models:
                tasks.create_task(model.run(), name=f"model {model.id}")

    async def drain(self) -> None:
        """Takes no more jobs, lets the running ones finish, and says good-bye."""
        self._draining = True
        await self._beat()
        seconds = self._config.drain_seconds
        await asyncio.gather(*(model.drain(seconds) for model in self.models))

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

        await serve_verbs(
            self._bus,
            name="neuron",
            version=__version__,
            description=self.name,
            metadata={"node": self.name, "protocol": str(PROTOCOL)},
            endpoints={subjects.node_verb(self.name, "describe"): describe},
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
