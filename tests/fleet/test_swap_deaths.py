"""Processes die in the middle of swaps: the stream beside them is exact, whoever waits is served,
and nothing is left."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron import demo_model
from neuron.service.node import Node
from tests.fleet.test_placing import states
from tests.support.fleet import TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.waiting import until

RUNS = [3, pytest.param(20, marks=pytest.mark.slow)]
SWAP_SECONDS = 12.0
"""For a load that dies once and is tried again by a new Python, beside other tests."""
(DEMO,) = demo_model.__path__


def engines() -> set[int]:
    """This process's engines, forked or not."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = set()
    for child in children:
        with contextlib.suppress(OSError):
            if b"neuron.engine\0--fd" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(int(child))
    return found


def pids_of(node: Node, model: str) -> Iterator[int]:
    for resident in node.residents:
        if resident.id == model and resident._engine is not None:
            yield from resident._engine.pids


async def kill(node: Node, kind: str, victim: str, before: set[int]) -> None:
    """Kills somebody, once there is one to kill."""
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        match kind:
            case "standby":
                assert node._fork_server is not None
                pids = {node._fork_server.pid} - {0}
            case "load":
                pids = engines() - before
            case _:
                pids = set(pids_of(node, victim))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        await asyncio.sleep(0.002)


async def counted(fleet: TestFleet) -> str:
    said = await fleet.chat("Count to 40", model="stays", max_tokens=120)
    assert said.status_code == 200, said.text
    text: str = said.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("kind", ["standby", "load", "victim"])
async def test_a_death_in_a_swap(nats: NatsServer, tmp_path: Path, kind: str, runs: int) -> None:
    for name in ("stays", "b", "c"):
        shutil.copytree(DEMO, tmp_path / name)
    rng, swaps = random.Random(kind), []
    async with running_fleet(nats) as fleet:
        node = await fleet.add_node(
            None, models=(), memory_mb=660, threads=1, model_dirs=(str(tmp_path),)
        )
        await until(lambda: {"stays", "b", "c"} <= set(states(fleet)))
        expected = await counted(fleet)
        assert (await fleet.chat(model="c", max_tokens=3)).status_code == 200
        for number in range(runs):
            target, victim = ("b", "c") if number % 2 == 0 else ("c", "b")
            before = engines()
            beside = asyncio.create_task(counted(fleet))
            began = time.monotonic()
            asked = asyncio.create_task(fleet.chat("What is 2 + 3?", model=target, max_tokens=5))
            await asyncio.sleep(rng.random() * 0.3)
            await kill(node, kind, victim, before)
            said = await asked
            swaps.append(time.monotonic() - began)
            assert said.status_code == 200, said.text
            assert await beside == expected
            assert max(swaps) < SWAP_SECONDS, swaps
        await until(lambda: len(engines()) == 2, what="the two models that are loaded")
    sys.stdout.write(f"{kind}: swaps {', '.join(f'{swap:.2f}' for swap in swaps)} s" + "\n")
    await until(lambda: not engines())
