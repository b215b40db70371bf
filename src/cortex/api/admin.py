"""``POST /models/load`` and ``/models/unload``: what operators tell the fleet to do.

From this machine only, as long as there are no keys that could tell an operator from a guest; what
a proxy forwards is not from here, and what a web page sends is not JSON.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cortex.api.errors import envelope, http_of, plain_envelope
from cortex.gateway import Gateway
from protocol import codec, subjects
from protocol.errors import ErrorCode, FleetError
from protocol.orders import LoadOrder, UnloadOrder

T = TypeVar("T")
ANSWER_SECONDS = 2.0


class _Load(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    node: str = ""
    """Where; empty = the only node."""
    source: str = ""
    """A folder on the node or a Hugging Face id; empty = the model's id."""


class _Unload(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    node: str = ""
    """Where; empty = wherever it is."""
    drain_seconds: float = 0.0
    """What still runs then goes on elsewhere; 0 = no limit."""


class Admin:
    """The endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def load(self, request: Request) -> Response:
        """Answers as soon as the node has taken the order."""
        return await _answered(request, self._load)

    async def unload(self, request: Request) -> Response:
        """Answers as soon as the nodes have taken the order."""
        return await _answered(request, self._unload)

    async def _load(self, body: bytes) -> dict[str, object]:
        asked = _decoded(body, _Load)
        model = self._gateway.catalogue.resolve(asked.model, self._gateway.fleet.models())
        node = asked.node or self._only_node()
        source = asked.source or self._gateway.catalogue.profile(model).source
        await self._order(node, "load", codec.encode(LoadOrder(model, source)))
        return {"status": "loading", "model": model, "nodes": [node]}

    async def _unload(self, body: bytes) -> dict[str, object]:
        asked = _decoded(body, _Unload)
        fleet = self._gateway.fleet
        model = self._gateway.catalogue.resolve(asked.model, fleet.models())
        nodes = [asked.node] if asked.node else [p.record.node for p in fleet.placed(model)]
        if not nodes:
            have = ", ".join(fleet.models()) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"No node has the model {asked.model!r}. There are: {have}.",
                param="model",
            )
        for node in nodes:
            await self._order(node, "unload", codec.encode(UnloadOrder(model, asked.drain_seconds)))
        return {"status": "unloading", "model": model, "nodes": sorted(nodes)}

    def _only_node(self) -> str:
        names = sorted(self._gateway.fleet.alive_names())
        if len(names) == 1:
            return names[0]
        have = f"There are: {', '.join(names)}." if names else "There is none at the moment."
        raise FleetError(ErrorCode.INVALID_REQUEST, f"node: say which. {have}", param="node")

    async def _order(self, node: str, verb: str, data: bytes) -> None:
        names = self._gateway.fleet.alive_names()
        if node not in names:
            have = ", ".join(sorted(names)) or "none"
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"node: there is no node {node!r}. There are: {have}.",
                param="node",
            )
        subject = subjects.node_verb(node, verb)
        answer = await self._gateway.bus.request(subject, data, timeout=ANSWER_SECONDS)
        if answer is None:
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"Node {node} has not answered within {ANSWER_SECONDS:.0f} s.",
                retry_after_seconds=2,
            )
        reply = codec.read_order_reply(answer)
        if reply.error is not None:
            raise FleetError.of(reply.error)


async def _answered(
    request: Request, work: Callable[[bytes], Awaitable[dict[str, object]]]
) -> Response:
    if not _is_from_here(request):
        message = "Models are loaded and unloaded from the gateway's own machine only."
        body = plain_envelope(message, "forbidden", "permission_error")
        return Response(body, 403, media_type="application/json")
    try:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            message = "Content-Type: it has to be application/json."
            raise FleetError(ErrorCode.INVALID_REQUEST, message)
        done = await work(await request.body())
    except FleetError as error:
        status = http_of(error.error).status
        return Response(envelope(error.error), status, media_type="application/json")
    return Response(msgspec.json.encode(done), 202, media_type="application/json")


def _is_from_here(request: Request) -> bool:
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")):
        return False
    try:
        return ipaddress.ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise FleetError(ErrorCode.INVALID_REQUEST, f"{error}.") from None
