"""``GET /fleet``, ``/fleet/events`` and ``/requests/{id}``: what operators see, from memory."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cortex.api.endpoints.cached import Cached
from cortex.api.error_responses import plain_envelope
from cortex.gateway import Gateway
from cortex.placement.eviction import eviction_candidates
from cortex.placement.fit import NodeView
from protocol.fleet import Device, DeviceUsage, ModelLoad, ModelRecord, ModelState
from protocol.placement import EvictionCandidate

EVENT_SECONDS = 0.25
"""The shortest time between two updates of the event stream."""
KEEP_ALIVE_SECONDS = 5.0


class DeviceShown(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device of a node, in bytes."""

    kind: str
    name: str
    memory: int
    budget: int
    """What models may use; 0 means nothing."""
    reserved: int
    """Reserved by models that are loaded or loading."""
    others: int
    """Taken by other programs."""
    usage: DeviceUsage | None = None


class ModelShown(msgspec.Struct, frozen=True):
    """A model as one node has it."""

    record: ModelRecord
    load: ModelLoad
    is_pinned: bool


class NodeShown(msgspec.Struct, frozen=True):
    """A living node with its devices and models."""

    node: str
    host: str
    version: str
    is_draining: bool
    devices: list[DeviceShown]
    models: list[ModelShown]
    eviction: list[EvictionCandidate]
    """The eviction order, first to go first."""


class FleetShown(msgspec.Struct, frozen=True):
    """The whole fleet, as ``/fleet`` shows it."""

    gateway: str
    placer: str
    """The gateway that is the placer; empty when unknown."""
    epoch: int
    """The placer's epoch; 0 when another gateway is the placer."""
    waiting: dict[str, int]
    """Requests that wait for a model that is not ready, over all gateways."""
    pins: dict[str, list[str]]
    nodes: list[NodeShown]
    unusable: dict[str, str]
    """Why living nodes are not used, by name."""
    troubles: dict[str, str]
    """Why NATS cannot store anything, by stream."""


class FleetView:
    """The endpoints that show the fleet."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._kept = Cached(self._made, lambda: gateway.placement.snapshots.version)

    def _made(self) -> bytes:
        return msgspec.json.encode(self._shown())

    async def fleet(self, request: Request) -> Response:
        """``GET /fleet``: the whole fleet at this moment."""
        return Response(self._kept(), media_type="application/json")

    async def request(self, request: Request) -> Response:
        """``GET /requests/{id}``: how a request fared at this gateway."""
        found = self._gateway.history.get(request.path_params["request_id"])
        if found is None:
            message = (
                "This gateway does not know that request; it remembers the last "
                f"{self._gateway.history.size}. Ask the gateway that served it."
            )
            body = plain_envelope(message, "not_found")
            return Response(body, 404, media_type="application/json")
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def events(self, request: Request) -> Response:
        """``GET /fleet/events``: the present states, then every change of a model's state, as
        server-sent events."""
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        shown: dict[tuple[str, str], bytes] = {}
        wrote = time.monotonic()
        while True:
            current = {
                (node.name, record.model): msgspec.json.encode(record)
                for node in self._gateway.fleet.alive()
                for record in self._gateway.fleet.records_of(node)
            }
            changed = [value for key, value in current.items() if shown.get(key) != value]
            gone = [
                msgspec.json.encode({"node": node, "model": model, "state": "gone"})
                for node, model in shown.keys() - current.keys()
            ]
            shown = current
            if changed or gone:
                wrote = time.monotonic()
                yield b"".join(b"data: " + value + b"\n\n" for value in [*changed, *gone])
            elif time.monotonic() - wrote > KEEP_ALIVE_SECONDS:
                wrote = time.monotonic()
                yield b": keep-alive\n\n"
            await asyncio.sleep(EVENT_SECONDS)

    def _shown(self) -> FleetShown:
        gateway, placement = self._gateway, self._gateway.placement
        views = {view.name: view for view in placement.snapshots.look().nodes}
        lease = placement.lease
        return FleetShown(
            gateway=gateway.id,
            placer=lease.holder.gateway if lease.holder else "",
            epoch=lease.epoch.revision if lease.epoch else 0,
            waiting={m: d.waiting for m, d in sorted(placement.demands.by_model().items())},
            pins={m: sorted(nodes) for m, nodes in sorted(placement.intent.pins.items())},
            nodes=[self._node(views[name]) for name in sorted(views)],
            unusable=gateway.fleet.unusable,
            troubles=gateway.storage.troubles,
        )

    def _node(self, view: NodeView) -> NodeShown:
        gateway = self._gateway
        node = gateway.fleet.node(view.name)
        assert node is not None, "it is in the snapshot"
        pinned = {resident.model for resident in view.residents if resident.is_pinned}
        info, beat = node.info, node.heartbeat
        usage = node.live.usage if node.live else ()
        records = sorted(gateway.fleet.records_of(node), key=lambda r: r.model)
        return NodeShown(
            node=view.name,
            host=info.host if info else "",
            version=info.version if info else "",
            is_draining=view.is_draining,
            devices=[
                _device(device, position, usage, records)
                for position, device in enumerate(info.devices if info else ())
            ],
            models=[
                ModelShown(
                    record,
                    beat.models.get(record.model, ModelLoad()) if beat else ModelLoad(),
                    record.model in pinned,
                )
                for record in records
            ],
            eviction=eviction_candidates(view.residents, gateway.placement.strategy),
        )


def _device(
    device: Device,
    position: int,
    usage: tuple[DeviceUsage, ...],
    records: list[ModelRecord],
) -> DeviceShown:
    now = usage[position] if position < len(usage) else None
    held = (r for r in records if r.state is not ModelState.ABSENT and position in r.devices)
    return DeviceShown(
        kind=str(device.kind),
        name=device.name,
        memory=device.memory_bytes,
        budget=device.budget_bytes,
        reserved=sum(record.reserved_bytes for record in held),
        others=now.others_bytes if now else 0,
        usage=now,
    )
