"""``GET /v1/models``: every model of the fleet, loaded or not, from memory.

One object serves OpenAI's clients and, with the same keys, Anthropic's.
"""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cortex.api.errors import envelope, status_of
from cortex.api.kept import Kept
from cortex.gateway import Gateway
from cortex.router import Refuse
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
    """Where it is, or is on its way."""
    available_on: list[str]
    """Where it could be loaded."""
    error: str | None
    progress: Progress | None
    root: str
    """The model behind an alias."""
    object: str = "model"
    owned_by: str = "cortex"
    type: str = "model"


class ModelList(msgspec.Struct, frozen=True):
    """The list object."""

    data: list[ModelObject]
    first_id: str | None
    last_id: str | None
    object: str = "list"
    has_more: bool = False


class Models:
    """The two endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self._fleet = gateway.fleet
        self._catalogue = gateway.catalogue
        self._decide = gateway.dispatcher.decide
        self._created = int(gateway.started_at)
        self._list = Kept(self._listed, lambda: (self._fleet.version, self._catalogue.version))

    async def list_all(self, request: Request) -> Response:
        """``GET /v1/models``: all that nodes have or the catalogue lists, under each of their
        names."""
        return Response(self._list(), media_type="application/json")

    def _listed(self) -> bytes:
        ids = {*self._fleet.models(), *self._catalogue.models}
        names = {**self._catalogue.names, **{model: model for model in ids}}
        data = [self._describe(name, model) for name, model in sorted(names.items())]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return msgspec.json.encode(ModelList(data, first, last))

    async def get(self, request: Request) -> Response:
        """``GET /v1/models/{id}``, by any name."""
        name = request.path_params["model"]
        known = self._fleet.models()
        model = self._catalogue.resolve(name, known)
        if model in known or model in self._catalogue.models:
            return _json(self._describe(name, model))
        decision = self._decide(model)
        assert isinstance(decision, Refuse)
        status = status_of(decision.error)
        return Response(envelope(decision.error), status, media_type="application/json")

    def _describe(self, name: str, model: str) -> ModelObject:
        placed = self._fleet.placed(model)
        records = [p.record for p in placed]
        best = min(records, key=lambda r: _PRECEDENCE.index(r.state), default=None)
        decision = self._decide(model)
        error = best.error if best and best.error else None
        if error is None and isinstance(decision, Refuse):
            error = decision.error
        limits = [r.context_limit for r in records if r.context_limit]
        return ModelObject(
            id=name,
            created=self._created,
            max_model_len=min(limits) if limits else None,
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
