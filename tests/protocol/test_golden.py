"""Every message, byte for byte, as released: half-upgraded fleets depend on it.

No test and no script rewrites these files. A new field is optional and gets a new file beside the
old one (``<name>.2.json``); the old one must still decode.
"""

from pathlib import Path

import msgspec
import pytest

from protocol import (
    catalogue,
    codec,
    errors,
    fleet,
    frames,
    generate,
    job,
    leader,
    orders,
    placement,
    render,
)
from tests.protocol.examples import EXAMPLES

GOLDEN = Path(__file__).parent / "golden"
READERS: dict[type, codec.Reader[object]] = {
    **dict.fromkeys((job.Cancel, job.Resend), codec.read_steer),
    **dict.fromkeys(
        (
            frames.Accepted,
            frames.Delta,
            frames.KeepAlive,
            frames.Finished,
            frames.Failed,
            frames.Busy,
        ),
        codec.read_frame,
    ),
    catalogue.CatalogueRecord: codec.read_catalogue_record,
    orders.LoadOrder: codec.read_load_order,
    orders.UnloadOrder: codec.read_unload_order,
    orders.PullOrder: codec.read_pull_order,
    orders.RecycleOrder: codec.read_recycle_order,
    orders.OrderReply: codec.read_order_reply,
    leader.LeaseRecord: codec.read_leader,
    placement.Wanted: codec.read_wanted,
    placement.Pin: codec.read_pin,
    placement.Drain: codec.read_drain,
    placement.Placement: codec.read_placement,
    placement.EvictionOrder: codec.read_eviction_order,
    render.Render: codec.read_render,
    render.Rendered: codec.read_rendered,
    job.Job: codec.read_job,
    job.Locate: codec.read_find,
    job.Located: codec.read_located,
    job.Claim: codec.read_take,
    job.Claimed: codec.read_taken,
    fleet.NodeInfo: codec.read_node_info,
    fleet.NodeLive: codec.read_node_live,
    fleet.ModelRecord: codec.read_model_record,
    fleet.NodeHeartbeat: codec.read_node_heartbeat,
    fleet.GatewayHeartbeat: codec.read_gateway_heartbeat,
    fleet.Describe: codec.read_describe,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_current_code_writes_the_golden_bytes(name: str) -> None:
    golden = max(GOLDEN.glob(f"{name}.*.json")).read_bytes().rstrip(b"\n")
    assert codec.encode(EXAMPLES[name]) == golden


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda p: p.name)
def test_every_golden_file_decodes(path: Path) -> None:
    example = EXAMPLES[path.name.split(".")[0]]
    decoded = READERS[type(example)](path.read_bytes())
    newest = max(GOLDEN.glob(f"{path.name.split('.')[0]}.*.json"))
    if path == newest:
        assert _comparable(decoded) == _comparable(example)


def _comparable(message: object) -> object:
    """Raw JSON compares by value, not by identity of the buffer."""
    return msgspec.to_builtins(message, enc_hook=lambda raw: bytes(raw).decode())


def test_every_message_has_an_example() -> None:
    structs = {
        value
        for module in (errors, fleet, frames, generate, job, leader, orders, placement, render)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value not in (msgspec.Struct, frames.Frame)
    }
    seen: set[type] = set()

    def walk(value: object) -> None:
        if isinstance(value, msgspec.Struct):
            seen.add(type(value))
            for field in value.__struct_fields__:
                walk(getattr(value, field))
        elif isinstance(value, tuple):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            walk(tuple(value.values()))

    for example in EXAMPLES.values():
        walk(example)
    assert {s.__name__ for s in structs - seen} == set()


def test_unknown_fields_are_ignored_and_unknown_tags_are_typed_errors() -> None:
    newer = b'{"kind":"busy","attempt":1,"instance":"x","node":"n","later":[1]}'
    assert codec.read_frame(newer) == frames.Busy(attempt=1, instance="x", node="n")
    with pytest.raises(codec.UnreadableMessage, match="brandnew"):
        codec.read_frame(b'{"kind":"brandnew"}')
    with pytest.raises(codec.UnreadableMessage):
        codec.read_frame(b"\xff\xfe not json")
