"""``/health`` and ``/metrics`` on a neuron's only port, which is on loopback unless configured.

The only module of neuron that knows Starlette.
"""

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
    """Builds the app: health for supervisors, metrics for Prometheus."""
    registry = CollectorRegistry()
    for name, help_text, read in (
        ("neuron_jobs_running", "Jobs held by the engines.", lambda: _total(node, "running")),
        ("neuron_jobs_queued", "Jobs waiting in the engines.", lambda: _total(node, "queued")),
        ("neuron_models_ready", "Models that accept jobs.", lambda: _ready(node)),
        (
            "neuron_kv_cache_free_tokens",
            "Tokens that still fit into the KV caches; blocks that are only cached count as free.",
            lambda: _engine(node, "kv_tokens_free"),
        ),
        (
            "neuron_kv_cache_cached_tokens",
            "Tokens that the prefix caches can reuse.",
            lambda: _engine(node, "kv_tokens_cached"),
        ),
        (
            "neuron_preemptions",
            "Sequences that were preempted since their engine started.",
            lambda: _engine(node, "preemptions"),
        ),
        (
            "neuron_step_age_seconds",
            "The longest time since a busy engine finished a step.",
            lambda: _step_age(node),
        ),
        (
            "neuron_event_loop_held_seconds",
            "How long anything has held the service's event loop for more than 50 ms, in all.",
            lambda: node.loop_held_seconds,
        ),
        (
            "neuron_event_loop_longest_held_seconds",
            "The longest time for which the service's event loop was held.",
            lambda: node.loop_watch.longest_seconds,
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
