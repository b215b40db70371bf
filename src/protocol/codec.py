"""Encodes and decodes messages as JSON: readable on the wire with ``nats sub``, and as cheap as
msgpack thanks to msgspec."""

from typing import Generic, TypeVar

import msgspec

from protocol import catalogue, fleet, frames, job, leader, orders, placement, render

T_co = TypeVar("T_co", covariant=True)

_ENCODER = msgspec.json.Encoder()
encode = _ENCODER.encode
"""Encodes any protocol message as JSON bytes."""


class UnreadableMessage(ValueError):
    """Raised for bytes that are not the expected message: foreign, damaged, or from a newer
    version with a tag that this one does not know. Receivers count and drop them."""


class Reader(Generic[T_co]):
    """Decodes one kind of message; made once and reused."""

    def __init__(self, kind: object) -> None:
        self._decoder: msgspec.json.Decoder[T_co] = msgspec.json.Decoder(kind)

    def __call__(self, data: bytes) -> T_co:
        """Decodes *data*; raises :class:`UnreadableMessage`."""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise UnreadableMessage(f"{error} in {data[:200]!r}") from None


read_job = Reader[job.Job](job.Job)
read_steer = Reader[job.Steer](job.Steer)
read_find = Reader[job.Locate](job.Locate)
read_located = Reader[job.Located](job.Located)
read_take = Reader[job.Claim](job.Claim)
read_taken = Reader[job.Claimed](job.Claimed)
read_frame = Reader[frames.AnyFrame](frames.AnyFrame)
read_node_info = Reader[fleet.NodeInfo](fleet.NodeInfo)
read_node_live = Reader[fleet.NodeLive](fleet.NodeLive)
read_model_record = Reader[fleet.ModelRecord](fleet.ModelRecord)
read_node_heartbeat = Reader[fleet.NodeHeartbeat](fleet.NodeHeartbeat)
read_gateway_heartbeat = Reader[fleet.GatewayHeartbeat](fleet.GatewayHeartbeat)
read_describe = Reader[fleet.Describe](fleet.Describe)
read_load_order = Reader[orders.LoadOrder](orders.LoadOrder)
read_unload_order = Reader[orders.UnloadOrder](orders.UnloadOrder)
read_pull_order = Reader[orders.PullOrder](orders.PullOrder)
read_recycle_order = Reader[orders.RecycleOrder](orders.RecycleOrder)
read_order_reply = Reader[orders.OrderReply](orders.OrderReply)
read_catalogue_record = Reader[catalogue.CatalogueRecord](catalogue.CatalogueRecord)
read_wanted = Reader[placement.Wanted](placement.Wanted)
read_pin = Reader[placement.Pin](placement.Pin)
read_drain = Reader[placement.Drain](placement.Drain)
read_placement = Reader[placement.Placement](placement.Placement)
read_eviction_order = Reader[placement.EvictionOrder](placement.EvictionOrder)
read_leader = Reader[leader.LeaseRecord](leader.LeaseRecord)
read_render = Reader[render.Render](render.Render)
read_rendered = Reader[render.Rendered](render.Rendered)
