"""The verbs of operators, over HTTP, and what they can see."""

import asyncio
from typing import Any

import httpx2
from click.testing import CliRunner

from cortex.cli.main import cli
from tests.fleet.test_placing import profiles, states
from tests.support.fleet import TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer


async def tell(fleet: TestFleet, path: str, **body: Any) -> httpx2.Response:
    return await fleet.client.post(path, json=body)


def error(response: httpx2.Response) -> str:
    return str(response.json()["error"]["message"])


async def loaded(fleet: TestFleet, node: str = "n1") -> set[str]:
    return {model for model, state in states(fleet, node).items() if state == "ready"}


async def test_a_dry_run_says_where_and_for_what(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a", "b")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await fleet.add_node(script.start, models=(), memory_mb=50, name="n2")
        await until(lambda: len(states(fleet)) == 2 and len(states(fleet, "n2")) == 2)
        assert (await tell(fleet, "/models/load", model="a")).status_code == 202
        await fleet.ready("a")
        plan = (await tell(fleet, "/models/load", model="b", dry_run=True)).json()
        assert plan["status"] == "planned"
        (fit,) = plan["fits"]
        assert (fit["node"], fit["victims"], fit["has_files"]) == ("n1", ["a"], True)
        (misfit,) = plan["misfits"]
        assert misfit["node"] == "n2"
        assert "0 here are that large (memory for models: 50 MiB)" in misfit["why"]
        assert len(script.engines) == 1, "nothing was done"
        there = (await tell(fleet, "/models/load", model="a")).json()
        assert there["nodes"] == ["n1"], "it is there already"
        refused = await tell(fleet, "/models/load", model="b", node="n2")
        assert refused.status_code == 503
        assert "b cannot be loaded. n2: it needs" in error(refused)


async def test_what_is_pinned_stays_and_comes_back(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a", "b")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 2)
        assert "not loaded on any node" in error(await tell(fleet, "/models/pin", model="a"))
        pinned = await tell(fleet, "/models/pin", model="a", nodes=["n1"])
        assert pinned.json() == {"status": "pinned", "model": "a", "nodes": ["n1"]}
        await fleet.ready("a")
        refused = await fleet.chat(model="b")
        assert refused.status_code == 503
        assert "a 60 MiB cannot be evicted now" in error(refused)
        kept = await tell(fleet, "/models/unload", model="a")
        assert kept.status_code == 400
        assert "a is pinned on n1" in error(kept)
        assert (await tell(fleet, "/models/unload", model="a", force=True)).status_code == 202
        await until(lambda: len(script.engines) == 2)
        await fleet.ready("a")
        assert (await tell(fleet, "/models/unpin", model="a")).json()["nodes"] == ["n1"]
        assert "No operator has pinned a" in error(await tell(fleet, "/models/unpin", model="a"))
        assert (await fleet.chat(model="b", max_tokens=2)).status_code == 200


async def test_a_drained_node_is_empty_until_it_is_undrained(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a")) as fleet:
        for name in ("n1", "n2"):
            await fleet.add_node(script.start, models=(), memory_mb=100, name=name)
        await until(lambda: "a" in states(fleet) and "a" in states(fleet, "n2"))
        await tell(fleet, "/models/load", model="a", node="n1")
        await fleet.ready("a")
        assert (await tell(fleet, "/nodes/n1/drain")).status_code == 202
        await until(lambda: states(fleet)["a"] == "absent")
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200
        assert await loaded(fleet, "n2") == {"a"}
        assert "there is no living node 'n3'" in error(await tell(fleet, "/nodes/n3/drain"))
        assert "n2 is not drained" in error(await tell(fleet, "/nodes/n2/undrain"))
        await tell(fleet, "/nodes/n2/drain")
        await until(lambda: states(fleet, "n2")["a"] == "absent")
        refused = await fleet.chat(model="a")
        assert refused.status_code == 503
        assert "n1: the node is draining; n2: the node is draining" in error(refused)
        assert (await tell(fleet, "/nodes/n1/undrain")).status_code == 202
        await until(lambda: not fleet.gateway.placement.intent.is_drained("n1"))
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200
        assert await loaded(fleet, "n1") == {"a"}


async def test_the_fleet_and_its_requests_are_shown(nats: NatsServer) -> None:
    script = Script(answer, load_seconds=0.6)
    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: "a" in states(fleet))
        said = (await fleet.chat(model="a", max_tokens=3)).json()
        shown = (await fleet.client.get("/fleet")).json()
        assert shown["placer"] == shown["gateway"]
        assert shown["epoch"] > 0
        (node,) = shown["nodes"]
        assert [m["record"]["state"] for m in node["models"]] == ["ready"]
        assert node["devices"][-1]["reserved"] == 60 << 20
        assert node["eviction"][0]["model"] == "a"
        found = (await fleet.client.get(f"/requests/{said['id']}")).json()
        assert (found["outcome"], found["node"], found["tokens"]) == ("finished", "n1", 3)
        assert any("loading on n1" in line for line in found["waited_for"])
        assert (await fleet.client.get("/requests/other")).status_code == 404
        forwarded = {"x-forwarded-for": "10.0.0.1"}
        assert (await fleet.client.get("/fleet", headers=forwarded)).status_code == 403


async def test_the_commands_print_what_people_read(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a", "b")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 2)

        async def cortex(*words: str) -> str:
            arguments = [*words, "--url", fleet.url]
            result = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
            assert result.exit_code == 0, result.output
            return result.output

        assert await cortex("ps") == "No model is loaded. List all models with: cortex models\n"
        assert "a on n1: ready" in await cortex("load", "a")
        assert "would be loaded on n1; a would be evicted" in await cortex("load", "b", "--dry-run")
        assert "100 MiB     60 MiB" in await cortex("nodes")
        assert "ready" in await cortex("ps")
        shown = await cortex("show", "a")
        assert "eviction   number 1 on this node: lru" in shown
        assert "memory     60 MiB in total: the profile's vram_mb" in shown
        assert "(this gateway)" in await cortex("status")
        said = (await fleet.chat(model="a", max_tokens=2)).json()
        assert "finished" in await cortex("why", said["id"])
        assert await cortex("pin", "a") == "a on n1: pinned\n"
        assert "pinned" in await cortex("ps")
        assert await cortex("drain", "n1") == (
            "n1: draining. Use it again with: cortex undrain n1\n"
        )
        await until(lambda: states(fleet)["a"] == "absent")
        assert "drained  n1" in await cortex("status")


async def test_the_catalogue_grows_at_run_time_and_is_kept(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: "a" in states(fleet))
        more = {"id": "b", "source": "cortex-demo", "vram_mb": 60, "aliases": ["fast"]}
        assert (await tell(fleet, "/models/add", **more)).status_code == 202
        await until(lambda: "b" in states(fleet))
        assert (await fleet.chat(model="fast", max_tokens=2)).status_code == 200
        for body, says in (
            ({**more, "id": "c"}, "aliases: 'fast' is already a name of b."),
            ({**more, "id": "a", "aliases": []}, "a is defined in models.toml"),
            ({**more, "slots": -1}, "'b': slots = -1: must not be negative."),
            ({**more, "slot": 1}, "unknown field `slot`"),
            ({"source": "x"}, "missing required field `id`"),
        ):
            refused = await tell(fleet, "/models/add", **body)
            assert refused.status_code == 400, body
            assert says in error(refused)
        assert "has no models.toml" in error(await tell(fleet, "/reload"))
        assert "has no model 'c'" in error(await tell(fleet, "/models/remove", model="c"))
    async with running_fleet(nats, profiles("a")) as fleet:
        await until(lambda: "b" in fleet.gateway.catalogue.models)
        assert (await tell(fleet, "/models/remove", model="b")).status_code == 202
        await until(lambda: "b" not in fleet.gateway.catalogue.models)
        assert fleet.gateway.catalogue.models == ["a"]
