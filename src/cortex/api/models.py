"""``GET /v1/models``: every model of the fleet, loaded or not, from memory.

One object serves OpenAI's clients and, with the same keys, Anthropic's.
"""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cortex.api.errors import envelope, http_of
from cortex.fleet import Fleet, Placed
from cortex.router import Refuse, decide
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
    error: str | None
    progress: Progress | None
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

    def __init__(self, fleet: Fleet, started_at: float) -> None:
        self._fleet = fleet
        self._created = int(started_at)

    async def list_all(self, request: Request) -> Response:
        """``GET /v1/models``"""
        data = [self._describe(model, self._fleet.placed(model)) for model in self._fleet.models()]
        ids = [m.id for m in data]
        body = ModelList(data, ids[0] if ids else None, ids[-1] if ids else None)
        return _json(body)

    async def get(self, request: Request) -> Response:
        """``GET /v1/models/{id}``"""
        model = request.path_params["model"]
        placed = self._fleet.placed(model)
        if placed:
            return _json(self._describe(model, placed))
        decision = decide(model, placed, self._fleet.models())
        assert isinstance(decision, Refuse)
        status = http_of(decision.error).status
        return Response(envelope(decision.error), status, media_type="application/json")

    def _describe(self, model: str, placed: list[Placed]) -> ModelObject:
        best = min(placed, key=lambda p: _PRECEDENCE.index(p.record.state)).record
        limits = [p.record.context_limit for p in placed if p.record.context_limit]
        return ModelObject(
            id=model,
            created=self._created,
            max_model_len=min(limits) if limits else None,
            display_name=model,
            state=best.state,
            nodes=sorted(p.record.node for p in placed),
            error=best.error.message if best.error else None,
            progress=best.progress,
        )


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
