"""A stream is taken up again: at another gateway, by a client whose own has died."""

import asyncio
import contextlib
from typing import Any

import httpx2
import pytest

from tests.fleet.test_placing import profiles
from tests.fleet.test_recovery import COUNT, expected
from tests.support.fleet import QUICK, chat_body, running_fleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.processes import Tape, http_client, play, play_on
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer, words


async def test_a_stream_is_taken_up_at_another_gateway(nats: NatsServer) -> None:
    """The first gateway lives on; it is told that the stream went elsewhere."""
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script) as fleet, running_fleet(nats) as other:
        await other.ready()
        async with http_client() as client:
            first = Tape()
            task = asyncio.create_task(
                play(client, fleet.url, first, seed=5, max_tokens=COUNT, **USAGE)
            )
            await until(lambda: len(first.text) > 100)
            half = Tape()
            half.job_id, half.last_id, half.text = first.job_id, first.last_id, first.text
            await play_on(client, other.url, half)
            assert half.status == 200, half.error
            assert half.text == expected(5)
            assert half.done
            await asyncio.wait_for(task, 5)
            assert first.error
            assert "has taken over the stream" in first.error["message"]
        assert len(script.engines[0].steps_of) == 1, "computed once"
        await until(lambda: fleet.gateway.dispatcher.in_flight == 0)
        await until(lambda: other.gateway.dispatcher.in_flight == 0)


async def test_a_stream_is_taken_up_from_its_beginning_and_at_its_own_gateway(
    nats: NatsServer,
) -> None:
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script) as fleet, http_client() as client:
        first, again = Tape(), Tape()
        task = asyncio.create_task(play(client, fleet.url, first, seed=6, max_tokens=COUNT))
        await until(lambda: len(first.text) > 100)
        again.job_id = first.job_id
        async with client.stream("GET", f"{fleet.url}/v1/streams/{first.job_id}") as answer_:
            body = (await answer_.aread()).decode()
        assert body.count('"role":"assistant"') == 1
        assert body.endswith("data: [DONE]\n\n")
        await asyncio.wait_for(task, 5)
        assert first.error


USAGE: dict[str, Any] = {"stream_options": {"include_usage": False}}


async def test_a_gateway_that_ends_leaves_its_streams_to_others(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.02)
    async with scripted_fleet(nats, script) as stays, http_client() as client:
        tape = Tape()
        async with running_fleet(nats) as ends:
            await ends.ready()
            playing_ = asyncio.create_task(play(client, ends.url, tape, seed=12, max_tokens=COUNT))
            await until(lambda: len(tape.text) > 100)
            ends.gateway.dispatcher.leave()
        with contextlib.suppress(httpx2.TransportError):
            await playing_
        assert not tape.done
        await play_on(client, stays.url, tape)
        assert tape.error is None
        assert tape.text == expected(12), (tape.last_id, tape.status)
        assert tape.done


async def test_a_parked_stream_outlives_its_model(nats: NatsServer) -> None:
    """Nobody is waiting for it at the moment, so its model may go for another one."""
    script = Script(answer, step_seconds=0.02)
    async with running_fleet(nats, profiles("a", "b")) as stays, http_client() as client:
        tape = Tape()
        await stays.add_node(script.start, models=(), memory_mb=100)
        async with running_fleet(nats) as ends:
            await until(lambda: len(ends.gateway.fleet.records("a")) == 1)
            body = {"model": "a", "seed": 13, "max_tokens": 200}
            playing_ = asyncio.create_task(play(client, ends.url, tape, **body))
            await until(lambda: len(tape.text) > 100)
            ends.gateway.dispatcher.leave()
        with contextlib.suppress(httpx2.TransportError):
            await playing_
        await until(lambda: not engine_is_used(script), what="parked")
        assert (await stays.chat(model="b", max_tokens=2)).status_code == 200
        assert not stays.gateway.fleet.ready("a")
        await play_on(client, stays.url, tape)
        assert tape.error is None
        assert tape.text == expected(13, 200)
        assert tape.done


def engine_is_used(script: Script) -> bool:
    return any(engine.open for engine in script.engines)


async def test_a_finished_stream_is_kept_for_a_while(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.001)
    async with scripted_fleet(nats, script) as fleet, http_client() as client:
        whole = Tape()
        await play(client, fleet.url, whole, seed=7, max_tokens=COUNT)
        late = Tape()
        late.job_id, late.last_id = whole.job_id, f"{whole.job_id}:{COUNT - 2}"
        await play_on(client, fleet.url, late)
        assert late.text == "".join(words(7, COUNT)[-2:])
        assert late.done


@pytest.mark.parametrize(
    ("job_id", "last_id", "status", "says"),
    [
        ("0" * 32, "", 410, "kept for 30 s"),
        ("x.y>", "", 410, "No node has"),
        ("0" * 32, "nonsense", 400, "not an event id"),
        ("0" * 32, f"{'1' * 32}:5", 400, "belongs to the stream"),
    ],
)
async def test_what_cannot_be_taken_up(
    nats: NatsServer, job_id: str, last_id: str, status: int, says: str
) -> None:
    async with scripted_fleet(nats, Script(answer)) as fleet, http_client() as client:
        tape = Tape()
        tape.job_id, tape.last_id = job_id, last_id
        await play_on(client, fleet.url, tape)
        assert tape.status == status
        assert tape.error
        assert says in tape.error["message"]


async def test_a_stream_belongs_to_the_key_that_began_it(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script, timing=QUICK) as fleet, http_client() as client:
        mine = {"Authorization": "Bearer mine"}
        body = chat_body("Hi", stream=True, seed=8, max_tokens=COUNT)
        url = f"{fleet.url}/v1/chat/completions"
        async with client.stream("POST", url, json=body, headers=mine) as stream:
            job_id = stream.headers["x-request-id"]
            for headers, status in (
                ({}, 410),
                ({"Authorization": "Bearer other"}, 410),
                (mine, 200),
            ):
                async with client.stream(
                    "GET", f"{fleet.url}/v1/streams/{job_id}", headers=headers
                ) as taken:
                    assert taken.status_code == status
