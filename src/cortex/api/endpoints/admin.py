"""Operators' verbs over HTTP: ``POST /models/…`` and ``POST /nodes/{node}/…``."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cortex.api.error_responses import envelope, status_of
from cortex.api.http import MAX_ORDER_BYTES, BodyReader, ClientGone
from cortex.fleet import models_file
from cortex.gateway import Gateway
from cortex.placement.operations import Planned
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.runtime.settings import SettingsError

T = TypeVar("T")
Answer = dict[str, object]


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    """The body of load, pull and unpin."""

    model: str
    node: str = ""
    """Where; empty means the best fit (load), everywhere (pull), or wherever it is pinned
    (unpin)."""
    source: str = ""
    """A folder on the node or a Hugging Face id; empty means the one that the catalogue or the node
    knows."""
    dry_run: bool = False
    """Only reports what a load would do."""


class _Unload(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    node: str = ""
    """Where to unload it; empty means on every node that has it."""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds after which its remaining streams move to another node; 0 sets no limit."""
    force: bool = False
    """Unloads the model even if it is pinned."""


class _Pin(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    nodes: tuple[str, ...] = ()
    """Nodes to pin it on; empty means those that have it."""


class _Name(msgspec.Struct, forbid_unknown_fields=True):
    model: str


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Admin:
    """The operators' endpoints; each responds as soon as its order is accepted or its change is
    stored."""

    def __init__(self, gateway: Gateway, bodies: BodyReader) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self._control = gateway.placement.operations

    async def load(self, request: Request) -> Response:
        """Loads a model, or reports what that would do."""

        async def work(asked: _Model) -> Answer:
            if asked.dry_run:
                return _explained(self._control.plan(asked.model, asked.node))
            done = await self._control.load(asked.model, asked.node, asked.source)
            if done.already or done.fit is None:
                nodes, victims = sorted(done.already), []
            else:
                nodes, victims = [done.fit.node], [v.model for v in done.fit.victims]
            return {"status": "loading", "model": done.model, "nodes": nodes, "victims": victims}

        return await self._answered(request, _Model, work)

    async def unload(self, request: Request) -> Response:
        """Unloads a model from its nodes."""

        async def work(asked: _Unload) -> Answer:
            model, nodes = await self._control.unload(
                asked.model, asked.node, asked.drain_seconds, force=asked.force
            )
            return {"status": "unloading", "model": model, "nodes": nodes}

        return await self._answered(request, _Unload, work)

    async def pull(self, request: Request) -> Response:
        """Fetches a model's files to nodes."""

        async def work(asked: _Model) -> Answer:
            model, nodes = await self._control.pull(asked.model, asked.node, asked.source)
            return {"status": "fetching", "model": model, "nodes": nodes}

        return await self._answered(request, _Model, work)

    async def pin(self, request: Request) -> Response:
        """Pins a model: it is always loaded."""

        async def work(asked: _Pin) -> Answer:
            model, nodes = await self._control.pin(asked.model, asked.nodes)
            return {"status": "pinned", "model": model, "nodes": nodes}

        return await self._answered(request, _Pin, work)

    async def unpin(self, request: Request) -> Response:
        """Removes a model's operator pins."""

        async def work(asked: _Model) -> Answer:
            model, nodes = await self._control.unpin(asked.model, asked.node)
            return {"status": "unpinned", "model": model, "nodes": nodes}

        return await self._answered(request, _Model, work)

    async def add(self, request: Request) -> Response:
        """Adds a profile to the catalogue: the keys of ``[[models]]`` as JSON."""

        async def work(body: msgspec.Raw) -> Answer:
            profile = models_file.read_one(bytes(body))
            await self._control.add(profile)
            return {"status": "added", "model": profile.id}

        return await self._answered(request, msgspec.Raw, work)

    async def remove(self, request: Request) -> Response:
        """Removes a profile that ``add`` put there."""

        async def work(asked: _Name) -> Answer:
            await self._control.remove(asked.model)
            return {"status": "removed", "model": asked.model}

        return await self._answered(request, _Name, work)

    async def reload(self, request: Request) -> Response:
        """Makes the gateway read models.toml again."""

        async def work(_: _Nothing) -> Answer:
            self._gateway.read_again()
            return {"status": "read"}

        return await self._answered(request, _Nothing, work)

    async def drain(self, request: Request) -> Response:
        """Drains a node: its models are unloaded."""

        async def work(_: _Nothing) -> Answer:
            node = request.path_params["node"]
            await self._control.drain(node)
            return {"status": "draining", "node": node}

        return await self._answered(request, _Nothing, work)

    async def undrain(self, request: Request) -> Response:
        """Lets a drained node take models again."""

        async def work(_: _Nothing) -> Answer:
            node = request.path_params["node"]
            await self._control.undrain(node)
            return {"status": "in use", "node": node}

        return await self._answered(request, _Nothing, work)

    async def _answered(
        self, request: Request, kind: type[T], work: Callable[[T], Awaitable[Answer]]
    ) -> Response:
        try:
            body = await self._bodies.read(request.scope, request.receive, MAX_ORDER_BYTES)
            done = await work(_decoded(body, kind))
        except ClientGone:
            return Response(status_code=400)  # nobody reads it
        except SettingsError as wrong:
            error = WireError(ErrorCode.INVALID_REQUEST, str(wrong))
            return Response(envelope(error), 400, media_type="application/json")
        except FleetError as failure:
            status = status_of(failure.error)
            return Response(envelope(failure.error), status, media_type="application/json")
        return Response(msgspec.json.encode(done), 202, media_type="application/json")


def _explained(planned: Planned) -> Answer:
    """Renders a plan with its reasons."""
    return {
        "status": "planned" if planned.fit else "impossible",
        "model": planned.model,
        "memory": list(planned.lines),
        "fits": [
            {
                "node": fit.node,
                "devices": list(fit.devices),
                "victims": [victim.model for victim in fit.victims],
                "has_files": fit.has_files,
                "left_bytes": fit.left_bytes,
            }
            for fit in planned.answer.fits
        ],
        "misfits": [{"node": m.node, "why": m.why} for m in planned.answer.misfits],
    }


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise FleetError(ErrorCode.INVALID_REQUEST, f"{error}.") from None
