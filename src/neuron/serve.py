"""``neuron serve``: start, signal handling and orderly shutdown."""

import asyncio
import logging

from neuron import config as settings
from neuron.files import warm_tier
from neuron.http import make_app
from neuron.service.node import Node
from protocol.bus import Bus
from protocol.runtime.http_server import http_server
from protocol.runtime.listen import open_socket
from protocol.runtime.settings import read_token
from protocol.runtime.stop_signals import stop_on_signals

log = logging.getLogger("neuron")


async def serve(config: settings.NeuronConfig) -> None:
    """Runs a neuron until SIGTERM or SIGINT; raises ``SettingsError`` and ``BusSetupError``."""
    config = settings.resolve(config)
    warm_tier.check(config.host_cache_mb << 20)
    stop = stop_on_signals()
    listener = open_socket(config.listen)
    bus = await Bus.connect(
        config.nats_url,
        name=f"node-{config.name}",
        token=read_token(config.nats_token_file),
    )
    node = Node(bus, config)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(node.run(), name="node")
            async with http_server(make_app(node), listener, drain_seconds=0):
                models = ", ".join(config.default_models) or "-"
                log.info("node %s, loading at start: %s", node.name, models)
                await stop.wait()
                log.info("stopping")
                await node.drain()
            running.cancel()
        await node.leave()
    finally:
        await bus.close()
