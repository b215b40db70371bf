"""A model that went leaves its weights in host memory, and everybody can see that."""

import pytest

from neuron.files import locked_pages
from tests.fleet.test_placing import profiles, states
from tests.support.fleet import TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer

pytestmark = pytest.mark.skipif(
    not locked_pages.may_lock(8 << 20), reason="memory may not be locked"
)


def warm(fleet: TestFleet) -> set[str]:
    nodes = fleet.gateway.fleet.alive()
    return {r.model for node in nodes for r in fleet.gateway.fleet.records_of(node) if r.is_warm}


async def test_an_evicted_model_stays_in_host_memory(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a", "b")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100, host_cache_mb=8)
        await until(lambda: len(states(fleet)) == 2)
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200
        assert warm(fleet) == set()
        assert (await fleet.chat(model="b", max_tokens=2)).status_code == 200
        await until(lambda: warm(fleet) == {"a"})
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200
        await until(lambda: warm(fleet) == {"b"})
