"""``/health`` and ``/metrics``: the only port of a neuron, on loopback unless configured.

The only module of neuron that knows Starlette and Hypercorn.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import hypercorn.asyncio
import hypercorn.config
import msgspec
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from neuron.ipc.messages import EngineStats
from neuron.service.node import Node
from protocol.fleet import ModelState


def make_app(node: Node) -> Starlette:
    """Health for supervisors, metrics for Prometheus."""
    registry = CollectorRegistry()
    for name, help_text, read in (
        ("neuron_jobs_running", "Jobs on the engines.", lambda: _total(node, "running")),
        ("neuron_jobs_queued", "Jobs that wait in the engines.", lambda: _total(node, "queued")),
        ("neuron_models_ready", "Models that take jobs.", lambda: _ready(node)),
        (
            "neuron_kv_cache_free_tokens",
            "Tokens that the KV caches can take; what is only cached counts as free.",
            lambda: _engine(node, "kv_tokens_free"),
        ),
        (
            "neuron_kv_cache_cached_tokens",
            "Tokens that can be found again by their prompt.",
            lambda: _engine(node, "kv_tokens_cached"),
        ),
        (
            "neuron_preemptions",
            "Sequences that gave up their blocks, since their engine started.",
            lambda: _engine(node, "preemptions"),
        ),
        (
            "neuron_step_age_seconds",
            "The longest time since a busy engine finished a step.",
            lambda: _step_age(node),
        ),
    ):
        Gauge(name, help_text, registry=registry).set_function(read)

    async def health(request: Request) -> Response:
        models = {resident.id: str(resident.record.state) for resident in node.residents}
        body = {"status": "ok", "node": node.name, "models": models}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ]
    )


def _total(node: Node, field: str) -> float:
    return float(
        sum(getattr(load, field) for resident in node.residents if (load := resident.load))
    )


def _stats(node: Node) -> list[EngineStats]:
    return [resident.worker.engine_stats for resident in node.residents if resident.worker]


def _engine(node: Node, field: str) -> float:
    return float(sum(getattr(stats, field) for stats in _stats(node)))


def _step_age(node: Node) -> float:
    return max((s.step_age_seconds for s in _stats(node) if s.open), default=0.0)


def _ready(node: Node) -> float:
    return float(sum(resident.record.state is ModelState.READY for resident in node.residents))


@contextlib.asynccontextmanager
async def http_server(node: Node, listener: socket.socket) -> AsyncIterator[None]:
    """Serves for the length of the block."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 0
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        server = tasks.create_task(
            hypercorn.asyncio.serve(make_app(node), config, shutdown_trigger=stop.wait),  # type: ignore[arg-type]
            name="http",
        )
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait([server], timeout=1)
            server.cancel()
