"""Whatever is read from the bus, nothing ends: neither a process, nor a stream, nor the service."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from neuron.service.node import Node
from protocol import (
    catalogue,
    frames,
    job,
    keys,
    leader,
    orders,
    placement,
    render,
    subjects,
)
from protocol import (
    fleet as fleet_messages,
)
from protocol.bus.jobs import STREAM
from protocol.job import Priority
from protocol.names import new_job_id
from tests.fleet.test_placing import profiles
from tests.support.absurd import Absurd, is_readable
from tests.support.fleet import MODEL, TestFleet, running_fleet
from tests.support.nats import NatsServer, connected
from tests.support.processes import Tape, http_client, play
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer, words

COUNT = 400


class Target(NamedTuple):
    """Where a kind of message is read."""

    subject: str
    kind: Any
    is_stored: bool = False


def targets(gateway: str, node: str, job_id: str) -> Iterator[Target]:
    """Every subject and key that a gateway or a neuron reads; also those of a node that is not
    there."""
    kind: Any
    for name in (node, "evil"):
        yield Target(subjects.node_heartbeat(name), fleet_messages.NodeHeartbeat)
        for key, kind in (
            (keys.node_info(name), fleet_messages.NodeInfo),
            (keys.node_live(name), fleet_messages.NodeLive),
            (keys.node_model(name, MODEL), fleet_messages.ModelRecord),
        ):
            yield Target(subjects.kv_write(keys.NODES, key), kind, is_stored=True)
    for name in (gateway, "gw-evil"):
        yield Target(subjects.gateway_heartbeat(name), fleet_messages.GatewayHeartbeat)
    for bucket, key, kind in (
        (keys.CATALOGUE, keys.catalogue(MODEL), catalogue.CatalogueRecord),
        (keys.CATALOGUE, keys.catalogue("evil"), catalogue.CatalogueRecord),
        (keys.WANTED, keys.wanted("evil", "gw-evil"), placement.Wanted),
        (keys.PLACEMENT, keys.pin("evil"), placement.Pin),
        (keys.PLACEMENT, keys.drain("evil"), placement.Drain),
        (keys.PLACEMENT, keys.placement(node, MODEL), placement.Placement),
        (keys.EVICTION, keys.eviction(node), placement.EvictionOrder),
        (keys.LEADER, keys.PLACER, leader.LeaseRecord),
        (keys.NODES, "no.key.of.ours", fleet_messages.NodeInfo),
        (keys.CATALOGUE, "=ZZ", catalogue.CatalogueRecord),
    ):
        yield Target(subjects.kv_write(bucket, key), kind, is_stored=True)
    yield Target(subjects.reply(gateway, job_id), frames.AnyFrame)
    yield Target(subjects.reply(gateway, new_job_id()), frames.AnyFrame)
    yield Target(subjects.job_control(node, new_job_id()), job.Steer)
    yield Target(subjects.locate(new_job_id()), job.Locate)
    yield Target(subjects.claim(node, new_job_id()), job.Claim)
    yield Target(subjects.run(MODEL, node), job.Job)
    for priority in Priority:
        yield Target(subjects.job(MODEL, priority), job.Job, is_stored=True)
    for verb, order in (
        ("describe", orders.LoadOrder),
        ("load", orders.LoadOrder),
        ("pull", orders.PullOrder),
        ("recycle", orders.RecycleOrder),
        ("render", render.Render),
    ):
        yield Target(subjects.node_verb(node, verb), order)


async def send(fleet: TestFleet, target: Target, data: bytes) -> None:
    """As somebody else who is on the bus."""
    async with connected(fleet.nats.url, "somebody") as bus:
        if target.is_stored:
            await bus.request(target.subject, data, timeout=0.5)
        else:
            await bus.publish(target.subject, data, reply=bus.new_inbox())
            await bus.flush()


async def survives(fleet: TestFleet, node: Node, sending: Callable[[str], Any]) -> None:
    """A stream runs while it is sent, and a request is served afterwards."""
    async with http_client() as client:
        tape = Tape()
        sent = {"seed": 3, "max_tokens": 400}
        running = asyncio.create_task(play(client, fleet.url, tape, **sent))
        await until(lambda: tape.text, what="the stream begins")
        await sending(tape.job_id)
        await running
    assert tape.text == "".join(words(3, 400)), tape.error
    for model in (MODEL, "cold"):
        await until(lambda: _is_served(fleet, model), seconds=20, what=f"{model} is served")  # noqa: B023
    assert fleet.gateway.fleet.node(node.name) is not None


async def restarts(nats: NatsServer, script: Script) -> None:
    """What is left in the buckets does not keep others from starting."""
    async with running_fleet(nats) as fleet:
        await fleet.add_node(script.start, name="n2", models=("other=cortex-demo",))
        await fleet.ready("other")
        assert (await fleet.client.get("/ready")).status_code == 200
        assert (await fleet.chat(model="other", max_tokens=2)).status_code == 200


async def _is_served(fleet: TestFleet, model: str) -> bool:
    return (await fleet.chat(model=model, max_tokens=2)).status_code == 200


@pytest.mark.parametrize("seed", range(4))
async def test_absurd_messages_end_nothing(nats: NatsServer, seed: int) -> None:
    script = Script(answer, step_seconds=0.01, slots=8)
    async with running_fleet(nats, profiles("cold")) as fleet:
        node = await fleet.add_node(script.start, slots=8)
        await fleet.ready()
        gateway = fleet.gateway
        known = (node.name, node.instance, gateway.id, gateway.instance, MODEL, "evil")
        absurd, choice = Absurd(seed, known), random.Random(seed)

        async def sending(job_id: str) -> None:
            there = list(targets(gateway.id, node.name, job_id))
            readable = 0
            for number in range(COUNT):
                target = there[number % len(there)] if number < len(there) else choice.choice(there)
                data = absurd.message(target.kind)
                readable += is_readable(data, target.kind)
                await send(fleet, target, data)
            assert readable > COUNT / 3, "most of them are of the right types"

        await survives(fleet, node, sending)
        await restarts(nats, script)
        await until(lambda: _lanes_are_empty(fleet), seconds=20, what="nothing stays in a lane")


async def _lanes_are_empty(fleet: TestFleet) -> bool:
    body = json.dumps({"subjects_filter": "cortex.job.>"}).encode()
    answer = await fleet.gateway.bus.request(f"$JS.API.STREAM.INFO.{STREAM}", body)
    found = json.loads(answer or b"{}").get("state", {}).get("subjects") or {}
    return not [subject for subject in found if "=probe" not in subject]
