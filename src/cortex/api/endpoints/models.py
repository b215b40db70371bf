"""``GET /v1/models``: every model of the fleet, loaded or not, from memory.

One object serves both OpenAI's and Anthropic's clients: each finds its own keys.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cortex.api.dialects.request_fields import invalid
from cortex.api.endpoints.cached import Cached
from cortex.api.error_responses import envelope, status_of, style_of
from cortex.dispatch.router import Refuse
from cortex.gateway import Gateway
from protocol.errors import FleetError
from protocol.fleet import ModelState, Progress

_PRECEDENCE = (
    ModelState.READY,
    ModelState.DRAINING,
    ModelState.LOADING,
    ModelState.FETCHING,
    ModelState.FAILED,
)


class ModelObject(msgspec.Struct, frozen=True):
    """One model, with the keys that clients of both dialects look for."""

    id: str
    created: int
    max_model_len: int | None
    display_name: str
    state: ModelState
    nodes: list[str]
    """Nodes that have it, or are loading it."""
    available_on: list[str]
    """Nodes that could load it."""
    error: str | None
    progress: Progress | None
    root: str
    """The model behind an alias."""
    created_at: str
    """The time of ``created``, in Anthropic's format."""
    max_input_tokens: int | None
    max_tokens: int | None
    """The longest answer, in tokens."""
    object: str = "model"
    owned_by: str = "cortex"
    type: str = "model"
    lifecycle: str = "active"
    line: None = None
    capabilities: None = None
    deprecated_at: None = None
    retires_at: None = None


class ModelList(msgspec.Struct, frozen=True):
    """The list of models, as both dialects expect it."""

    data: list[ModelObject]
    first_id: str | None
    last_id: str | None
    object: str = "list"
    has_more: bool = False


class Models:
    """The two endpoints about models."""

    def __init__(self, gateway: Gateway) -> None:
        self._fleet = gateway.fleet
        self._catalogue = gateway.catalogue
        self._decide = gateway.decisions.decide
        self._created = int(gateway.started_at)
        moment = datetime.fromtimestamp(self._created, UTC)
        self._created_at = moment.isoformat().replace("+00:00", "Z")
        self._objects = Cached(self._described, self._version)
        self._list = Cached(self._listed, self._version)

    async def list_all(self, request: Request) -> Response:
        """``GET /v1/models``: every model that nodes have or the catalogue lists, under each of its
        names; in pages if the client asks for pages."""
        asked = request.query_params
        if not {"after_id", "before_id", "limit"} & asked.keys():
            return Response(self._list(), media_type="application/json")
        try:
            page = _page(self._objects(), asked)
        except FleetError as error:
            style = style_of(request.scope)
            body, status = envelope(error.error, style), status_of(error.error, style)
            return Response(body, status, media_type="application/json")
        return _json(page)

    def _version(self) -> tuple[int, int]:
        return self._fleet.version, self._catalogue.version

    def _listed(self) -> bytes:
        data = self._objects()
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return msgspec.json.encode(ModelList(data, first, last))

    def _described(self) -> list[ModelObject]:
        ids = {*self._fleet.models(), *self._catalogue.models}
        names = {**self._catalogue.names, **{model: model for model in ids}}
        return [self._describe(name, model) for name, model in sorted(names.items())]

    async def get(self, request: Request) -> Response:
        """``GET /v1/models/{id}``, by any name."""
        name = request.path_params["model"]
        model = self._catalogue.resolve(name, self._fleet)
        if model in self._fleet or model in self._catalogue:
            return _json(self._describe(name, model))
        decision = self._decide(model)
        assert isinstance(decision, Refuse)
        style = style_of(request.scope)
        body, status = envelope(decision.error, style), status_of(decision.error, style)
        return Response(body, status, media_type="application/json")

    def _describe(self, name: str, model: str) -> ModelObject:
        placed = self._fleet.placed(model)
        records = [p.record for p in placed]
        best = min(records, key=lambda r: _PRECEDENCE.index(r.state), default=None)
        decision = self._decide(model)
        error = best.error if best and best.error else None
        if error is None and isinstance(decision, Refuse):
            error = decision.error
        limits = [r.context_limit for r in records if r.context_limit]
        limit = min(limits, default=None)
        output = self._catalogue.profile(model).limit.output or limit
        return ModelObject(
            id=name,
            created=self._created,
            max_model_len=limit,
            max_input_tokens=limit,
            max_tokens=output,
            created_at=self._created_at,
            display_name=name,
            state=best.state if best else ModelState.ABSENT,
            nodes=sorted(record.node for record in records),
            available_on=sorted(r.node for r in self._fleet.records(model) if not r.error),
            error=error.message if error else None,
            progress=best.progress if best else None,
            root=model,
        )


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _page(models: list[ModelObject], asked: Mapping[str, str]) -> ModelList:
    """Selects one of Anthropic's pages: *limit* models after or before a given one."""
    ids = [model.id for model in models]
    limit = asked.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= 1000):
        raise invalid(f"limit: {limit[:40]!r} is not a number from 1 to 1000.", "limit")
    start, end = 0, len(models)
    for field in ("after_id", "before_id"):
        if field in asked and asked[field] not in ids:
            raise invalid(f"{field}: the model {asked[field][:80]!r} does not exist.", field)
    if "after_id" in asked:
        start = ids.index(asked["after_id"]) + 1
    if "before_id" in asked:
        end = ids.index(asked["before_id"])
        start = max(start, end - int(limit))
    found = models[start : min(end, start + int(limit))]
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    has_more = start > 0 if "before_id" in asked else start + len(found) < end
    return ModelList(found, first, last, has_more=has_more)
