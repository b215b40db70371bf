"""The command line beside a running fleet."""

import asyncio
import json
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.nats import NatsServer
from tests.support.processes import ProcessFleet


class Said(NamedTuple):
    """What a command printed, and its exit status."""

    out: str
    err: str
    status: int


async def cortex(*arguments: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortex", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return Said(out.decode(), err.decode(), process.returncode or 0)


async def test_models_are_listed_loaded_and_unloaded(nats: NatsServer, tmp_path: Path) -> None:
    async with ProcessFleet(nats, tmp_path) as fleet:
        url = await fleet.add_gateway()
        await fleet.add_neuron("n1", load_seconds=0.3)
        await fleet.ready(1)
        assert (await cortex("models", "--url", url)).out == (
            "MODEL        STATE  NODES\ncortex-demo  ready  n1\n"
        )
        loaded = await cortex("load", "second", "--source", "demo", "--url", url)
        assert loaded.status == 0, loaded
        assert loaded.out.startswith("second on n1: load ordered\n")
        assert loaded.out.endswith("second on n1: ready\n")
        listed = json.loads((await cortex("models", "--json", "--url", url)).out)
        assert [model["id"] for model in listed] == ["cortex-demo", "second"]
        left = await cortex("unload", "second", "--url", url)
        assert left == Said("second on n1: being unloaded\n", "", 0)
        refused = await cortex("unload", "third", "--url", url)
        assert refused.status == 1
        assert refused.err.startswith(
            "cortex: No node has the model 'third' loaded. Loaded models: cortex"
        )


async def test_nobody_answers() -> None:
    said = await cortex("models", "--url", "http://127.0.0.1:9")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("cortex: no gateway answers at http://127.0.0.1:9 (")
    assert "Traceback" not in said.err
