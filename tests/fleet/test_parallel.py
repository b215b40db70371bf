"""A model over two ranks, through the whole fleet: it answers as on one."""

from typing import Any

from protocol.catalogue import Profile
from protocol.fleet import ModelState
from tests.support.fleet import MODEL, TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.waiting import until
from tests.support.watched import WatchedEngines, real_fleet

QUESTION = "What is 17 + 25?"
PLAIN: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}


async def parallel(fleet: TestFleet, engines: WatchedEngines, name: str) -> None:
    """Another node with the model over two ranks."""
    await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
    before = len(fleet.gateway.fleet.ready(MODEL))
    await fleet.add_node(engines.start, name=name)
    await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) > before, seconds=60)


async def test_the_demo_model_answers_as_before(nats: NatsServer) -> None:
    async with real_fleet(nats, WatchedEngines()) as fleet:
        expected = (await fleet.chat(QUESTION, **PLAIN)).json()["choices"]
    engines = WatchedEngines()
    async with running_fleet(nats, (Profile(MODEL, min_devices=2),)) as fleet:
        await parallel(fleet, engines, "n1")
        assert (await fleet.chat(QUESTION, **PLAIN)).json()["choices"] == expected
        assert engines.engine is not None
        assert len(engines.engine.pids) == 2
        (placed,) = fleet.gateway.fleet.placed(MODEL)
        assert placed.record.estimate is not None
        assert placed.record.estimate.devices == 1, "on a CPU they share it"
        assert any("2 ranks" in line for line in placed.record.estimate.lines)


async def test_a_number_of_ranks_that_does_not_work_is_refused(nats: NatsServer) -> None:
    async with running_fleet(nats, (Profile(MODEL, min_devices=3),)) as fleet:
        await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
        await fleet.add_node(WatchedEngines().start)

        def failed() -> bool:
            return any(
                placed.record.state is ModelState.FAILED
                for placed in fleet.gateway.fleet.placed(MODEL)
            )

        await until(failed, what="the failure")
        (model,) = (await fleet.client.get("/v1/models")).json()["data"]
    assert "4 attention heads" in model["error"]
    assert "one of 1, 2, 4." in model["error"]
