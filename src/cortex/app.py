"""The HTTP application: its routes are the table of contents of the API."""

import logging
from collections.abc import Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cortex import __version__
from cortex.api.dialects.registry import CHAT, COMPLETIONS, DIALECTS, MESSAGES, RESPONSES
from cortex.api.endpoints import openapi
from cortex.api.endpoints.admin import Admin
from cortex.api.endpoints.fleet_view import FleetView
from cortex.api.endpoints.generation import Generation, Streams
from cortex.api.endpoints.models import Models
from cortex.api.endpoints.tokenization import Tokenization
from cortex.api.error_responses import plain_envelope, style_of
from cortex.api.middleware import ForgetsRest, NoTrailingSlash, SharedWithPages
from cortex.gateway import Gateway
from cortex.telemetry.metrics import CONTENT_TYPE
from protocol.job import PROTOCOL

log = logging.getLogger("api")


def make_app(gateway: Gateway, metrics_url: str, cors_origins: Sequence[str] = ()) -> Starlette:
    """Builds the API of one gateway, which web pages of *cors_origins* may use."""
    models = Models(gateway)
    admin = Admin(gateway)
    fleet = FleetView(gateway)
    texts = Tokenization(gateway.prompts)
    status = _Status(gateway, metrics_url)
    return Starlette(
        routes=[
            *_everywhere("/v1/chat/completions", Generation(gateway, CHAT)),
            *_everywhere("/v1/completions", Generation(gateway, COMPLETIONS)),
            *_everywhere("/v1/responses", Generation(gateway, RESPONSES)),
            *_everywhere("/v1/messages", Generation(gateway, MESSAGES)),
            *_everywhere("/v1/messages/count_tokens", texts.count_tokens()),
            *_everywhere("/v1/chat/completions/input_tokens", texts.chat_input_tokens()),
            *_everywhere("/v1/responses/input_tokens", texts.response_input_tokens()),
            Route("/tokenize", texts.tokenize(), methods=["POST"]),
            Route("/detokenize", texts.detokenize(), methods=["POST"]),
            Route("/apply-template", texts.apply_template(), methods=["POST"]),
            Route("/v1/streams/{job_id}", Streams(gateway, DIALECTS), methods=["GET"]),
            Route("/v1/models", models.list_all, methods=["GET"]),
            Route("/v1/models/{model:path}", models.get, methods=["GET"]),
            Route("/models/load", admin.load, methods=["POST"]),
            Route("/models/unload", admin.unload, methods=["POST"]),
            Route("/models/pull", admin.pull, methods=["POST"]),
            Route("/models/pin", admin.pin, methods=["POST"]),
            Route("/models/unpin", admin.unpin, methods=["POST"]),
            Route("/models/add", admin.add, methods=["POST"]),
            Route("/models/remove", admin.remove, methods=["POST"]),
            Route("/reload", admin.reload, methods=["POST"]),
            Route("/nodes/{node}/drain", admin.drain, methods=["POST"]),
            Route("/nodes/{node}/undrain", admin.undrain, methods=["POST"]),
            Route("/fleet", fleet.fleet, methods=["GET"]),
            Route("/fleet/events", fleet.events, methods=["GET"]),
            Route("/requests/{request_id}", fleet.request, methods=["GET"]),
            Route("/openapi.json", status.openapi, methods=["GET"]),
            Route("/health", status.health, methods=["GET"]),
            Route("/ready", status.ready, methods=["GET"]),
            Route("/version", status.version, methods=["GET"]),
            Route("/", status.root, methods=["GET"]),
        ],
        middleware=[
            Middleware(ForgetsRest),
            Middleware(SharedWithPages, origins=cors_origins),
            Middleware(NoTrailingSlash),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )


def _everywhere(path: str, endpoint: ASGIApp) -> list[Route]:
    """Routes an endpoint with and without ``/v1``, as some clients put that into the base
    address."""
    bare = path.removeprefix("/v1")
    paths = [path, bare, *([f"/anthropic{path}"] if "/messages" in path else [])]
    return [Route(one, endpoint, methods=["POST"]) for one in paths]


def make_metrics_app(gateway: Gateway) -> Starlette:
    """Builds what Prometheus scrapes, on its own port."""

    async def metrics(request: Request) -> Response:
        return Response(gateway.metrics.exposition(), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])])


class _Status:
    """Status endpoints that are cheap and never wait for a neuron."""

    def __init__(self, gateway: Gateway, metrics_url: str) -> None:
        self._gateway = gateway
        self._metrics_url = metrics_url

    async def health(self, request: Request) -> Response:
        """Returns 200 while the process responds."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Returns 200 when a request could be served now, otherwise 503 and the reason."""
        reason = self._gateway.why_not_ready
        if reason:
            body: dict[str, object] = {"status": "not ready", "reason": reason}
            if why := self._gateway.storage.why_not:
                body["storage"] = why
            return _json(body, 503)
        return _json({"status": "ready"})

    async def version(self, request: Request) -> Response:
        """Returns the version, and where the metrics are."""
        return _json(
            {
                "name": "cortex",
                "version": __version__,
                "protocol": PROTOCOL,
                "gateway": self._gateway.id,
                "metrics": self._metrics_url,
            }
        )

    async def openapi(self, request: Request) -> Response:
        """Returns the API's description for programs."""
        return Response(openapi.document(), media_type="application/json")

    async def root(self, request: Request) -> Response:
        """Responds to people, and to clients that check whether a server is there."""
        return _json({"name": "cortex", "version": __version__, "models": "/v1/models"})


def _json(body: dict[str, object], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    allowed = (error.headers or {}).get("Allow", "another method")
    message, code = {
        404: (f"{path} does not exist. See GET /openapi.json.", "unknown_url"),
        405: (f"{path} is not served; use {allowed}.", "method_not_allowed"),
    }.get(error.status_code, (str(error.detail), "http_error"))
    body = plain_envelope(message, code, style=style_of(request.scope))
    return Response(body, error.status_code, error.headers, "application/json")


async def _bug(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    message = "The gateway failed; see its log."
    style = style_of(request.scope)
    body = plain_envelope(message, "internal_error", "server_error", style)
    return Response(body, 500, media_type="application/json")
