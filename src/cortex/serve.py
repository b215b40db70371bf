"""``cortex serve``: a gateway on one event loop; the only module that knows Hypercorn."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import hypercorn.asyncio
import hypercorn.config
from starlette.types import ASGIApp

from cortex.app import make_app, make_metrics_app
from cortex.config import GatewayConfig
from cortex.fleet import models_file
from cortex.gateway import Gateway, running_gateway
from cortex.placement.options import PlacementOptions
from protocol.bus import Bus
from protocol.runtime.listen import BACKLOG, is_loopback, open_socket, url_of
from protocol.runtime.settings import SettingsError, read_token

log = logging.getLogger("serve")


IDLE_CONNECTION_SECONDS = 10.0
"""How long an idle connection is kept: longer than the five seconds after which the usual clients
close theirs. Not more, because Hypercorn holds a connection that its client has closed for the same
time, including its file descriptor and tasks."""


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
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _stop_or_force, stop)
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


def _stop_or_force(stop: asyncio.Event) -> None:
    if stop.is_set():
        raise SystemExit(130)
    stop.set()


@contextlib.asynccontextmanager
async def http_server(
    app: ASGIApp, listener: socket.socket, *, drain_seconds: float
) -> AsyncIterator[None]:
    """Serves *app* on *listener* for the length of the block, then lets answers finish."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = BACKLOG
    config.graceful_timeout = drain_seconds
    config.keep_alive_timeout = IDLE_CONNECTION_SECONDS
    config.keep_alive_max_requests = 10**9
    config.h11_max_incomplete_size = 64 << 10
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        server = tasks.create_task(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait),  # type: ignore[arg-type]
            name="http",
        )
        try:
            yield
        finally:
            stop.set()
            # From Python 3.12 on, Server.wait_closed() waits for open connections without bound.
            await asyncio.wait([server], timeout=drain_seconds + 1)
            server.cancel()
