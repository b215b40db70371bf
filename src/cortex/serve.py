"""``cortex serve``: a gateway on one event loop, from opening its sockets to its ordered end."""

import asyncio
import contextlib
import logging
import resource
import signal
from pathlib import Path

from cortex.api.access import Access
from cortex.app import make_app, make_metrics_app
from cortex.config import GatewayConfig, GatewaySection
from cortex.fleet import models_file
from cortex.gateway import Gateway, running_gateway
from cortex.placement.options import PlacementOptions
from protocol.bus import Bus
from protocol.runtime.http.crowd import HttpLimits
from protocol.runtime.http_server import http_server
from protocol.runtime.listen import is_loopback, open_socket, url_of
from protocol.runtime.settings import SettingsError, read_token
from protocol.runtime.stop_signals import stop_on_signals

log = logging.getLogger("serve")

METRICS_CONNECTIONS = 64
"""Of those who scrape the metrics."""
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
            settings = config.gateway
            access = Access(settings.hosts, settings.cors_origins, is_loopback(listener))
            app = make_app(gateway, metrics_url, access=access)
            metrics_app = make_metrics_app(
                gateway, access._replace(is_local=is_loopback(metrics_listener))
            )
            if not is_loopback(listener):
                log.warning("the API does not check keys: everyone who can reach it can use it")
            log.info("API at %s/v1, metrics at %s", url_of(listener), metrics_url)
            async with (
                http_server(
                    metrics_app,
                    metrics_listener,
                    drain_seconds=0,
                    limits=HttpLimits(connections=METRICS_CONNECTIONS),
                ),
                http_server(
                    app, listener, drain_seconds=settings.drain_seconds, limits=limits_of(settings)
                ),
            ):
                if on_ready:
                    on_ready.set()
                await stop.wait()
                log.info("stopping; answers still running: %d", gateway.dispatcher.in_flight)
                seconds = max(0.0, settings.drain_seconds - LEAVE_BEFORE_SECONDS)
                loop.call_later(seconds, gateway.dispatcher.leave)
    finally:
        await bus.close()


def limits_of(settings: GatewaySection) -> HttpLimits:
    """Extracts the bounds of the API's server from the configuration."""
    return HttpLimits(
        connections=settings.max_connections,
        per_address=settings.max_connections_per_address,
        http2=settings.http2,
    )


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
