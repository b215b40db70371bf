"""Profiles and aliases, as clients and operators meet them."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx2

from protocol.catalogue import Limits, Profile, SamplingDefaults
from tests.support.fleet import MODEL, TestFleet, running_fleet, sse_events
from tests.support.nats import NatsServer
from tests.support.processes import ProcessFleet, Tape, http_client, play
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer

DEMO = Profile(
    MODEL,
    ("fast", "claude-*"),
    limit=Limits(output=7),
    sampling=SamplingDefaults(temperature=0.0),
)
LISTED = Profile("Qwen/Qwen3-8B", ("big",), nodes=("n9",))


async def listed(fleet: TestFleet) -> dict[str, dict[str, Any]]:
    models = (await fleet.client.get("/v1/models")).json()["data"]
    return {model["id"]: model for model in models}


async def test_an_alias_is_served_and_the_answer_has_its_name(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, (DEMO, LISTED)) as fleet:
        await fleet.add_node(script.start)
        await fleet.ready()
        await until(lambda: len(fleet.gateway.catalogue.models) == 2)
        for name in (MODEL, "fast", "claude-opus-9"):
            whole = (await fleet.chat(model=name, seed=1)).json()
            assert whole["model"] == name
            assert whole["usage"]["completion_tokens"] == 7, "the profile's limit"
            async with fleet.streaming(model=name) as stream:
                names = {event["model"] async for event in sse_events(stream) if event}
            assert names == {name}
        missing = await fleet.chat(model="claud")
        assert missing.status_code == 404
        absent = await fleet.chat(model="big")
        assert absent.status_code == 503
        assert "n1: the model is restricted to n9" in absent.json()["error"]["message"]


async def test_the_list_has_every_name_but_patterns(nats: NatsServer) -> None:
    async with running_fleet(nats, (DEMO, LISTED)) as fleet:
        await fleet.add_node(Script().start)
        await fleet.ready()
        await until(lambda: len(fleet.gateway.catalogue.models) == 2)
        found = await listed(fleet)
        assert {name: model["root"] for name, model in found.items()} == {
            MODEL: MODEL,
            "fast": MODEL,
            "Qwen/Qwen3-8B": "Qwen/Qwen3-8B",
            "big": "Qwen/Qwen3-8B",
        }
        assert (found["fast"]["state"], found["fast"]["nodes"]) == ("ready", ["n1"])
        assert (found["big"]["state"], found["big"]["nodes"]) == ("absent", [])
        assert "restricted to n9" in found["big"]["error"]
        one = (await fleet.client.get("/v1/models/claude-opus-9")).json()
        assert (one["id"], one["root"]) == ("claude-opus-9", MODEL)


async def test_a_stream_that_is_taken_up_keeps_its_name(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.02)
    profile = Profile(MODEL, ("fast",))
    async with running_fleet(nats, (profile,)) as fleet, http_client() as client:
        await fleet.add_node(script.start)
        await fleet.ready()
        await until(lambda: fleet.gateway.catalogue.models)
        tape = Tape()
        playing = asyncio.create_task(
            play(client, fleet.url, tape, model="fast", seed=3, max_tokens=60)
        )
        await until(lambda: len(tape.text) > 50)
        url = f"{fleet.url}/v1/streams/{tape.job_id}"
        async with client.stream("GET", url) as again:
            names = {event["model"] async for event in sse_events(again) if event}
        assert names == {"fast"}
        await playing


async def test_gateways_share_the_catalogue_and_a_file_takes_back_only_its_own(
    nats: NatsServer,
) -> None:
    async with running_fleet(nats, (DEMO, LISTED)) as one, running_fleet(nats) as other:
        for fleet in (one, other):
            await until(lambda f=fleet: len(f.gateway.catalogue.models) == 2)  # type: ignore[misc]
        other.gateway.reload((DEMO,))
        for fleet in (one, other):
            await until(lambda f=fleet: f.gateway.catalogue.models == [MODEL])  # type: ignore[misc]
        one.gateway.reload(None)
        await asyncio.sleep(0.3)
        assert one.gateway.catalogue.models == [MODEL], "without a file nothing is taken back"


async def test_a_file_is_read_again_on_sighup_and_a_broken_one_is_not_taken(
    nats: NatsServer, tmp_path: Path
) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[aliases]\nfast = "cortex-demo"\n')
    async with ProcessFleet(nats, tmp_path) as fleet, httpx2.AsyncClient() as client:
        url = await fleet.add_gateway(models=str(file))
        await fleet.add_neuron("n1", step_ms=1)
        await fleet.ready(1)

        async def status(model: str) -> int:
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
            sent = {**body, "max_tokens": 3}
            return (await client.post(f"{url}/v1/chat/completions", json=sent)).status_code

        await until(lambda: _is(status("fast"), 200))
        file.write_text('[aliases]\nfaster = "cortex-demo"\n')
        fleet.gateways[0].signal(signal.SIGHUP)
        await until(lambda: _is(status("faster"), 200))
        assert await status("fast") == 404
        file.write_text('[[models]]\nidd = "x"\n')
        fleet.gateways[0].signal(signal.SIGHUP)
        log = tmp_path / "gateway1.log"
        await until(lambda: "models.toml:2: models[0].idd: unknown key" in log.read_text())
        assert await status("faster") == 200


async def _is(asked: Any, status: int) -> bool:
    return bool(await asked == status)


async def test_a_profile_says_how_its_model_writes_calls(nats: NatsServer) -> None:
    script = Script(lambda add: ('{"name": "f", ', '"parameters": {"x": 1}}'))
    tools = [{"type": "function", "function": {"name": "f"}}]
    for style, finish in (("auto", "stop"), ("llama", "tool_calls")):
        async with running_fleet(nats, (Profile(MODEL, tool_calls=style),)) as fleet:
            await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
            await fleet.add_node(script.start)
            await fleet.ready()
            (choice,) = (await fleet.chat(tools=tools)).json()["choices"]
            assert choice["finish_reason"] == finish
