"""``cortex serve``: a gateway on one event loop, from opening its sockets to its ordered end."""

import asyncio
import contextlib
import logging
import resource
import signal
from pathlib import Path

from cortex.app import make_app, make_metrics_app
from cortex.config import GatewayConfig
from cortex.fleet import models_file
from cortex.gateway import Gateway, running_gateway
from cortex.placement.options import PlacementOptions
from protocol.bus import Bus
from protocol.runtime.http_server import http_server
from protocol.runtime.listen import is_loopback, open_socket, url_of
from protocol.runtime.settings import SettingsError, read_token
from protocol.runtime.stop_signals import stop_on_signals

log = logging.getLogger("serve")

LEAVE_BEFORE_SECONDS = 0.25
"""How long before the end of draining a stream that is cut off stops counting as abandoned by its
client."""


def allow_many_connections() -> None:
    """Raises the soft limit of open files, 1,024 on most systems, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(config: GatewayConfig, *, on_ready: asyncio.Event | None = None) -> None:
    """Runs a gateway until SIGTERM or SIGINT; running answers may finish, within bounds."""
    allow_many_connections()
    stop = stop_on_signals()
    loop = asyncio.get_running_loop()
    models_path = Path(config.models_config) if config.models_config else None
    profiles = models_file.load(models_path)
    listener = open_socket(config.gateway.listen)
    metrics_listener = open_socket(config.gateway.metrics_listen)
    bus = await Bus.connect(
        config.nats.url, name="gateway", token=read_token(config.nats.token_file)
    )
    try:
        async with running_gateway(bus, profiles, options_of(config)) as gateway:
            gateway.read_again = lambda: _read_models(gateway, models_path)
            loop.add_signal_handler(signal.SIGHUP, _read_if_usable, gateway)
            metrics_url = f"{url_of(metrics_listener)}/metrics"
            app = make_app(gateway, metrics_url, config.gateway.cors_origins)
            if not is_loopback(listener):
                log.warning("the API does not check keys: everyone who can reach it can use it")
            log.info("API at %s/v1, metrics at %s", url_of(listener), metrics_url)
            async with (
                http_server(make_metrics_app(gateway), metrics_listener, drain_seconds=0),
                http_server(app, listener, drain_seconds=config.gateway.drain_seconds),
            ):
                if on_ready:
                    on_ready.set()
                await stop.wait()
                log.info("stopping; answers still running: %d", gateway.dispatcher.in_flight)
                seconds = max(0.0, config.gateway.drain_seconds - LEAVE_BEFORE_SECONDS)
                loop.call_later(seconds, gateway.dispatcher.leave)
    finally:
        await bus.close()


def options_of(config: GatewayConfig) -> PlacementOptions:
    """Extracts the placement options from the configuration."""
    if ignored := [neuron.name for neuron in config.neurons if neuron.endpoint]:
        log.info(
            "neurons: the endpoints of %s are ignored, because neurons are found through NATS",
            ", ".join(ignored),
        )
    return PlacementOptions(
        strategy=config.eviction.strategy,
        defrag_after_cycles=config.eviction.defrag_after_cycles,
        place_seconds=config.gateway.load_wait_seconds,
        admitted=frozenset(neuron.name for neuron in config.neurons),
    )


def _read_models(gateway: Gateway, path: Path | None) -> None:
    gateway.reload(models_file.load(path))
    log.info("reloaded models.toml")


def _read_if_usable(gateway: Gateway) -> None:
    try:
        gateway.read_again()
    except SettingsError as error:
        log.error("models.toml was not reloaded; the catalogue stays as it was: %s", error)
