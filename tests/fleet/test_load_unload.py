"""Models come and go while the fleet runs."""

import asyncio
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.datastructures import Address

from cortex.local.supervisor import EX_CONFIG
from neuron import demo_model
from neuron.engine_process.client import EngineLoadError
from tests.support.fleet import MODEL, TestFleet, running_fleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.processes import Tape, http_client, play
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer, words

(DEMO,) = demo_model.__path__


async def tell(fleet: TestFleet, verb: str, **body: Any) -> httpx2.Response:
    return await fleet.client.post(f"/models/{verb}", json=body)


def says(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


async def test_a_model_is_loaded_served_and_unloaded(nats: NatsServer) -> None:
    script = Script(answer)
    async with scripted_fleet(nats, script) as fleet:
        taken = await tell(fleet, "load", model="second", source=DEMO)
        assert taken.status_code == 202
        assert taken.json() == {
            "status": "loading",
            "model": "second",
            "nodes": ["n1"],
            "victims": [],
        }
        await fleet.ready("second")
        assert (await fleet.chat(model="second")).status_code == 200
        assert (await tell(fleet, "load", model="second", source=DEMO)).status_code == 202
        assert len(script.engines) == 2, "it was there"
        left = await tell(fleet, "unload", model="second")
        assert left.json() == {"status": "unloading", "model": "second", "nodes": ["n1"]}
        await until(lambda: not fleet.gateway.fleet.placed("second"))
        assert script.engines[1].died.done(), "its engine is gone"
        assert (await fleet.chat()).status_code == 200, "the other one is not touched"
        assert len(script.engines) == 2
        assert (await fleet.chat(model="second", max_tokens=5)).status_code == 200
        assert len(script.engines) == 3, "it is loaded for whom wants it"


@pytest.mark.xdist_group("wall_clock")
async def test_an_unload_lets_streams_finish(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.02)
    async with scripted_fleet(nats, script) as fleet, http_client() as client:
        tape = Tape()
        playing = asyncio.create_task(play(client, fleet.url, tape, seed=1, max_tokens=100))
        await until(lambda: tape.text)
        assert (await tell(fleet, "unload", model=MODEL)).status_code == 202
        await until(lambda: not fleet.gateway.fleet.ready(MODEL))
        again = await tell(fleet, "load", model=MODEL)
        assert again.status_code == 503
        assert "being loaded or unloaded there" in says(again)[1]
        await playing
        assert tape.text == "".join(words(1, 100))
        assert tape.worst_gap < 1.0
        await until(lambda: not fleet.gateway.fleet.placed(MODEL))


async def test_an_unload_with_a_limit_moves_its_streams(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.02)
    async with scripted_fleet(nats, script, nodes=2) as fleet, http_client() as client:
        tape = Tape()
        playing = asyncio.create_task(play(client, fleet.url, tape, seed=2, max_tokens=150))
        await until(lambda: tape.text)
        busy = next(i for i, engine in enumerate(script.engines) if engine.open)
        told = await tell(fleet, "unload", model=MODEL, node=f"n{busy + 1}", drain_seconds=0.2)
        assert told.json()["nodes"] == [f"n{busy + 1}"]
        await playing
        assert tape.text == "".join(words(2, 150))
        await fleet.ready(nodes=1)


async def test_a_load_that_hangs_or_fails_can_be_unloaded(nats: NatsServer) -> None:
    script = Script(load_seconds=1000.0)
    async with running_fleet(nats) as fleet:
        await fleet.add_node(script.start)
        await until(lambda: fleet.gateway.fleet.placed(MODEL))
        assert (await tell(fleet, "unload", model=MODEL)).status_code == 202
        await until(lambda: not fleet.gateway.fleet.placed(MODEL))
        script.load_seconds = 0.0
        script.load_error = EngineLoadError("corrupt", "it is damaged")
        assert (await tell(fleet, "load", model=MODEL)).status_code == 202
        await until(lambda: fleet.gateway.fleet.placed(MODEL))
        await until(lambda: fleet.gateway.fleet.placed(MODEL)[0].record.error)
        assert (await tell(fleet, "unload", model=MODEL)).status_code == 202
        await until(lambda: not fleet.gateway.fleet.placed(MODEL))


async def test_an_operators_load_tries_at_once_what_has_just_failed(nats: NatsServer) -> None:
    script = Script(answer)
    script.load_error = EngineLoadError("corrupt", "it is damaged")
    async with running_fleet(nats) as fleet:
        await fleet.add_node(script.start, models=())
        await until(lambda: fleet.gateway.fleet.records(MODEL))
        refused = await fleet.chat(max_tokens=5)
        assert refused.status_code == 503
        assert "it is damaged. It may be tried again within 60 s" in says(refused)[1]
        script.load_error = None
        assert (await fleet.chat(max_tokens=5)).status_code == 503, "it is not tried yet"
        assert (await tell(fleet, "load", model=MODEL)).status_code == 202
        assert (await fleet.chat(max_tokens=5)).status_code == 200


async def test_what_was_mended_is_tried_at_once(nats: NatsServer, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(DEMO, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    async with running_fleet(nats) as fleet:
        await fleet.add_node(Script(answer).start, models=(), model_dirs=(str(tmp_path),))
        await until(lambda: fleet.gateway.fleet.records("base"))
        refused = await fleet.chat(model="base", max_tokens=5)
        assert refused.status_code == 503
        assert "chat_template.jinja" in says(refused)[1]
        (folder / "chat_template.jinja").write_text(template)
        began = time.monotonic()
        await until(lambda: not fleet.gateway.fleet.placed("base"), what="forgetting the failure")
        assert (await fleet.chat(model="base", max_tokens=5)).status_code == 200
        assert time.monotonic() - began < 5.0


async def test_folders_come_and_go(nats: NatsServer, tmp_path: Path) -> None:
    async with running_fleet(nats) as fleet:

        async def is_listed(model: str) -> bool:
            listed = (await fleet.client.get("/v1/models")).json()["data"]
            return model in {one["id"] for one in listed}

        await fleet.add_node(Script(answer).start, models=(), model_dirs=(str(tmp_path),))
        await until(lambda: any(fleet.gateway.fleet.alive()))
        shutil.copytree(DEMO, tmp_path / "owner" / "new")
        shutil.copytree(DEMO, tmp_path / "other" / "new")
        await until(lambda: is_listed("owner/new"), seconds=4)
        assert await is_listed("other/new")
        assert (await fleet.chat(model="owner/new", max_tokens=5)).status_code == 200
        shutil.rmtree(tmp_path / "owner")
        assert (await fleet.chat(model="owner/new", max_tokens=5)).status_code == 200, (
            "it is loaded"
        )
        assert (await tell(fleet, "unload", model="owner/new")).status_code == 202
        await until(lambda: not fleet.gateway.fleet.records("owner/new"), seconds=4)
        gone = await fleet.chat(model="owner/new", max_tokens=5)
        assert gone.status_code == 404
        assert "does not exist in this fleet" in says(gone)[1]


@pytest.mark.parametrize(
    ("verb", "body", "status", "says_"),
    [
        ("load", {"model": "x"}, 404, "No node offers the model 'x', nor is it in the catalogue."),
        (
            "load",
            {"model": "x", "source": "demo"},
            400,
            "node: name one. Living nodes: n1, n2.",
        ),
        (
            "load",
            {"model": MODEL, "node": "n3"},
            400,
            "there is no living node 'n3'. Living nodes: n1, n2.",
        ),
        ("load", {"modle": "x"}, 400, "unknown field `modle`"),
        ("unload", {"model": MODEL, "drain_seconds": -1}, 400, "`float` >= 0.0 - at `$.drain_sec"),
        ("load", {}, 400, "missing required field `model`"),
        ("load", {"model": "", "node": "n1", "source": "/"}, 404, "does not name a model"),
        ("unload", {"model": "x"}, 404, "No node has the model 'x' loaded. Loaded models: cor"),
        ("unload", {"model": "x", "node": "n1"}, 404, "Node n1 does not have the model 'x' loaded"),
    ],
)
async def test_orders_that_cannot_be_obeyed(
    nats: NatsServer, verb: str, body: dict[str, Any], status: int, says_: str
) -> None:
    async with scripted_fleet(nats, Script(), nodes=2) as fleet:
        refused = says(await tell(fleet, verb, **body))
        assert refused[0] == status
        assert says_ in refused[1]


async def test_a_second_neuron_with_the_same_name_does_not_start(
    nats: NatsServer, tmp_path: Path
) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        command = [sys.executable, "-m", "neuron", "serve", "--nats", nats.url, "--name", "n1"]
        process = await asyncio.create_subprocess_exec(
            *command, "--listen", "127.0.0.1:0", stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == EX_CONFIG
        assert f"a neuron named n1 runs already, on {socket.gethostname()}." in err.decode()
        assert "Traceback" not in err.decode()
        assert (await fleet.chat()).status_code == 200
        assert [node.name for node in fleet.gateway.fleet.alive()] == ["n1"]


async def test_only_the_own_machine_may(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_fleet(nats, Script()) as fleet:
        for headers, status in (
            ({"X-Forwarded-For": "10.0.0.1"}, 403),
            ({"Content-Type": "text/plain"}, 400),
        ):
            sent = {"Content-Type": "application/json", **headers}
            body = f'{{"model":"{MODEL}"}}'.encode()
            refused = await fleet.client.post("/models/unload", content=body, headers=sent)
            assert refused.status_code == status
        monkeypatch.setattr("starlette.requests.Request.client", Address("10.0.0.7", 1))
        assert says(await tell(fleet, "unload", model=MODEL))[0] == 403
        assert fleet.gateway.fleet.models() == [MODEL]
