"""The HTTP application: its routes are the table of contents of the API."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, request_response
from starlette.types import ASGIApp

from cortex import __version__
from cortex.api.access import Access
from cortex.api.dialects.registry import CHAT, COMPLETIONS, DIALECTS, MESSAGES, RESPONSES
from cortex.api.endpoints import openapi
from cortex.api.endpoints.admin import Admin
from cortex.api.endpoints.fleet_view import FleetView
from cortex.api.endpoints.generation import Generation, Streams
from cortex.api.endpoints.models import Models
from cortex.api.endpoints.tokenization import Tokenization
from cortex.api.error_responses import plain_envelope, style_of
from cortex.api.guards import ForOperators, ForPrograms, ForScrapers
from cortex.api.http import BodyReader
from cortex.api.middleware import ForgetsRest, NoTrailingSlash, SharedWithPages
from cortex.gateway import Gateway
from cortex.telemetry.metrics import CONTENT_TYPE
from protocol.job import PROTOCOL

log = logging.getLogger("api")

Endpoint = ASGIApp | Callable[[Request], Awaitable[Response]]
"""An ASGI application, or a coroutine function from a ``Request`` to a ``Response``."""
LOCAL = Access()
"""A gateway that only its own machine reaches, under the names of loopback."""


def make_app(
    gateway: Gateway, metrics_url: str, cors_origins: Sequence[str] = (), access: Access = LOCAL
) -> Starlette:
    """Builds the API of one gateway, which web pages of *cors_origins* may use."""
    access = access._replace(origins=(*access.origins, *cors_origins))
    bodies = BodyReader()
    gateway.on_end.append(bodies.close)
    models = Models(gateway)
    admin = Admin(gateway, bodies)
    fleet = FleetView(gateway)
    texts = Tokenization(gateway.prompts, bodies)
    status = _Status(gateway, metrics_url)
    generations = {
        "/v1/chat/completions": CHAT,
        "/v1/completions": COMPLETIONS,
        "/v1/responses": RESPONSES,
        "/v1/messages": MESSAGES,
    }
    programs = _Routes(ForPrograms, access)
    operators = _Routes(ForOperators, access)
    return Starlette(
        routes=[
            *(
                route
                for path, dialect in generations.items()
                for route in programs.everywhere(path, Generation(gateway, bodies, dialect))
            ),
            *programs.everywhere("/v1/messages/count_tokens", texts.count_tokens()),
            *programs.everywhere("/v1/chat/completions/input_tokens", texts.chat_input_tokens()),
            *programs.everywhere("/v1/responses/input_tokens", texts.response_input_tokens()),
            programs.post("/tokenize", texts.tokenize()),
            programs.post("/detokenize", texts.detokenize()),
            programs.post("/apply-template", texts.apply_template()),
            programs.get("/v1/streams/{job_id}", Streams(gateway, DIALECTS)),
            programs.get("/v1/models", models.list_all),
            programs.get("/v1/models/{model:path}", models.get),
            operators.post("/models/load", admin.load),
            operators.post("/models/unload", admin.unload),
            operators.post("/models/pull", admin.pull),
            operators.post("/models/pin", admin.pin),
            operators.post("/models/unpin", admin.unpin),
            operators.post("/models/add", admin.add),
            operators.post("/models/remove", admin.remove),
            operators.post("/reload", admin.reload),
            operators.post("/nodes/{node}/drain", admin.drain),
            operators.post("/nodes/{node}/undrain", admin.undrain),
            operators.get("/fleet", fleet.fleet),
            operators.get("/fleet/events", fleet.events),
            operators.get("/requests/{request_id}", fleet.request),
            *status.routes(),
        ],
        middleware=[
            Middleware(ForgetsRest),
            Middleware(SharedWithPages, origins=access.origins),
            Middleware(NoTrailingSlash),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )


class _Routes:
    """Makes the routes of one audience."""

    def __init__(self, guard: type[ForPrograms] | type[ForOperators], access: Access) -> None:
        self._guard = guard
        self._access = access

    def get(self, path: str, endpoint: Endpoint) -> Route:
        """Makes a route that answers ``GET``."""
        return self._guarded(path, endpoint, "GET")

    def post(self, path: str, endpoint: Endpoint) -> Route:
        """Makes a route that answers ``POST``."""
        return self._guarded(path, endpoint, "POST")

    def everywhere(self, path: str, endpoint: Endpoint) -> list[Route]:
        """Routes an endpoint with and without ``/v1``, as some clients put that into the base
        address."""
        bare = path.removeprefix("/v1")
        paths = [path, bare, *([f"/anthropic{path}"] if "/messages" in path else [])]
        return [self.post(one, endpoint) for one in paths]

    def _guarded(self, path: str, endpoint: Endpoint, method: str) -> Route:
        is_function = inspect.isroutine(endpoint)
        app = request_response(cast(Any, endpoint)) if is_function else cast(ASGIApp, endpoint)
        return Route(path, self._guard(app, self._access), methods=[method])


def make_metrics_app(gateway: Gateway, access: Access = LOCAL) -> Starlette:
    """Builds what Prometheus scrapes, on its own port."""

    async def metrics(request: Request) -> Response:
        return Response(gateway.metrics.exposition(), media_type=CONTENT_TYPE)

    guarded = ForScrapers(request_response(metrics), access)
    return Starlette(routes=[Route("/metrics", guarded, methods=["GET"])])


class _Status:
    """Status endpoints that are cheap and never wait for a neuron."""

    def __init__(self, gateway: Gateway, metrics_url: str) -> None:
        self._gateway = gateway
        self._metrics_url = metrics_url

    def routes(self) -> list[Route]:
        """Returns the routes that are open to everybody."""
        return [
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/", self.root, methods=["GET"]),
        ]

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
