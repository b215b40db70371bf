"""``neuron serve``: start, signal handling and orderly shutdown."""

import asyncio
import logging
import signal

from neuron import config as settings
from neuron.files import warm_tier
from neuron.http import http_server
from neuron.service.node import Node
from protocol.bus import Bus
from protocol.runtime.listen import open_socket
from protocol.runtime.settings import read_token

log = logging.getLogger("neuron")


async def serve(config: settings.NeuronConfig) -> None:
    """Runs a neuron until SIGTERM or SIGINT; raises ``SettingsError`` and ``BusSetupError``."""
    config = settings.resolve(config)
    warm_tier.check(config.host_cache_mb << 20)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _stop_or_force, stop)
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
            async with http_server(node, listener):
                log.info(
                    "node %s, loading at start: %s",
                    node.name,
                    ", ".join(config.default_models) or "-",
                )
                await stop.wait()
                log.info("stopping")
                await node.drain()
            running.cancel()
        await node.leave()
    finally:
        await bus.close()


def _stop_or_force(stop: asyncio.Event) -> None:
    if stop.is_set():
        raise SystemExit(130)
    stop.set()
