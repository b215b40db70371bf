"""Encodes and decodes messages as JSON: readable on the wire with ``nats sub``, and as cheap as
msgpack thanks to msgspec."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from protocol import catalogue, fleet, frames, job, leader, orders, placement, render
from protocol.names import check_host_id, check_job_id, check_model_id

T_co = TypeVar("T_co", covariant=True)

_ENCODER = msgspec.json.Encoder()
encode = _ENCODER.encode
"""Encodes any protocol message as JSON bytes."""


class UnreadableMessage(ValueError):
    """Raised for bytes that are not the expected message: foreign, damaged, or from a newer
    version with a tag that this one does not know. Receivers count and drop them."""


class Reader(Generic[T_co]):
    """Decodes one kind of message; made once and reused."""

    def __init__(self, kind: object, check: Callable[[Any], object] = lambda _: None) -> None:
        """*check* raises ``InvalidName`` for a message with a name that is none: names become
        subjects, and lines in logs."""
        self._decoder: msgspec.json.Decoder[T_co] = msgspec.json.Decoder(kind)
        self._check = check

    def __call__(self, data: bytes) -> T_co:
        """Decodes *data*; raises :class:`UnreadableMessage`."""
        try:
            message = self._decoder.decode(data)
            self._check(message)
            return message
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise UnreadableMessage(f"{error} in {data[:200]!r}") from None


def check_job(message: job.Job) -> None:
    """Raises ``InvalidName`` for a job with a name that is none."""
    check_job_id(message.id)
    check_host_id(message.gateway)
    check_model_id(message.request.model)


def _check_frame(message: frames.AnyFrame) -> None:
    if isinstance(message, frames.Accepted | frames.Failed | frames.Busy):
        check_host_id(message.node)


def _check_node(message: fleet.NodeHeartbeat | fleet.NodeInfo | fleet.NodeLive) -> None:
    check_host_id(message.node)


def _check_model(message: fleet.ModelRecord) -> None:
    check_host_id(message.node)
    check_model_id(message.model)


def _check_gateway(message: fleet.GatewayHeartbeat | job.Claim) -> None:
    check_host_id(message.gateway)


def _check_located(message: job.Located) -> None:
    check_host_id(message.node)


read_job = Reader[job.Job](job.Job, check_job)
read_steer = Reader[job.Steer](job.Steer)
read_find = Reader[job.Locate](job.Locate)
read_located = Reader[job.Located](job.Located, _check_located)
read_take = Reader[job.Claim](job.Claim, _check_gateway)
read_taken = Reader[job.Claimed](job.Claimed)
read_frame = Reader[frames.AnyFrame](frames.AnyFrame, _check_frame)
read_node_info = Reader[fleet.NodeInfo](fleet.NodeInfo, _check_node)
read_node_live = Reader[fleet.NodeLive](fleet.NodeLive, _check_node)
read_model_record = Reader[fleet.ModelRecord](fleet.ModelRecord, _check_model)
read_node_heartbeat = Reader[fleet.NodeHeartbeat](fleet.NodeHeartbeat, _check_node)
read_gateway_heartbeat = Reader[fleet.GatewayHeartbeat](fleet.GatewayHeartbeat, _check_gateway)
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
