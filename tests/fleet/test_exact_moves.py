"""A moved answer is the same to the bit: real engines that are killed in the middle of answers.

On the demo model, and on one of random weights at temperature 1, where any rounding difference
changes a token sooner or later.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from cortex.telemetry.request_record import Continuity, Record
from neuron import demo_model
from neuron.engine.sampling.gumbel import row_key
from neuron.engine_process.watchdog import Deadlines
from tests.support.fleet import TestFleet, running_fleet, sse_events
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer, running_nats
from tests.support.waiting import until
from tests.support.watched import WatchedEngines

DEMO = Path(next(iter(demo_model.__path__)))
TOKENS = 400
SAMPLED = {"temperature": 1.0, "max_tokens": TOKENS, "ignore_eos": True, "min_tokens": TOKENS}
DEADLINES = Deadlines()
KILLS = RUNS if RUNS > 1 else 2
TwoNodes = tuple[TestFleet, list[WatchedEngines]]
on_shared_nodes = pytest.mark.asyncio(loop_scope="module")
pytestmark = pytest.mark.xdist_group("wall_clock")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's shape and files with weights that mean nothing."""
    folder = tmp_path_factory.mktemp("models") / "random"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: tensor if "norm" in name else torch.randn(tensor.shape, generator=generator) * 0.15
        for name, tensor in load_file(DEMO / "model.safetensors").items()
    }
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


@contextlib.asynccontextmanager
async def two_nodes(nats: NatsServer, model: str) -> AsyncIterator[TwoNodes]:
    """Two nodes with real engines of one model, which the fleet calls ``m``."""
    both = [WatchedEngines(threads=1, deadlines=DEADLINES) for _ in range(2)]
    async with running_fleet(nats) as fleet:
        for number, engines in enumerate(both, 1):
            await fleet.add_node(engines.start, name=f"n{number}", models=(f"m={model}",))
        await until(lambda: len(fleet.gateway.fleet.ready("m")) == 2, seconds=60)
        yield fleet, both


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_random_weights(
    random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TwoNodes]:
    """One for all tests: each engine takes seconds to start."""
    with running_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with two_nodes(nats, str(random_model)) as both:
            yield both


class Pause:
    """The longest time between two pieces of an answer."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: float | None = None

    def __call__(self, length: int) -> None:
        now = time.monotonic()
        if self._last is not None:
            self.seconds = max(self.seconds, now - self._last)
        self._last = now if length else None


async def say(
    fleet: TestFleet, seed: int, *on_text: Callable[[int], None], **body: Any
) -> tuple[str, str]:
    """An answer's text and usage as it was streamed; *on_text* is told how long it is."""
    sent = {"model": "m", "seed": seed, "stream_options": {"include_usage": True}, **body}
    text, usage = "", ""
    async with fleet.streaming("Say something.", **sent) as answer:
        async for event in sse_events(answer):
            assert "error" not in event, event
            for choice in event.get("choices", ()):
                delta = choice["delta"]
                text += delta.get("reasoning_content") or delta.get("content") or ""
            if event.get("usage"):
                event["usage"].pop("prompt_tokens_details")  # a node may know the prompt by now
                usage = json.dumps(event["usage"])
            for told in on_text:
                told(len(text))
    return text, usage


class Killer:
    """Signals the engine that runs the only stream, once, at some length of the answer."""

    def __init__(
        self, both: list[WatchedEngines], at: int, how: signal.Signals = signal.SIGKILL
    ) -> None:
        self._both = both
        self._at = at
        self._how = how
        self.killed = 0

    def __call__(self, length: int) -> None:
        if length >= self._at and not self.killed:
            for engines in self._both:
                engine = engines.engine
                if engine is not None and engine.stats.open:
                    os.kill(engine.pid, self._how)
                    self.killed += 1


async def ready_again(fleet: TestFleet) -> None:
    await until(lambda: len(fleet.gateway.fleet.ready("m")) == 2, seconds=60)


@pytest.fixture(autouse=True)
def quick_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that ends again and again is started again after ever longer pauses."""
    monkeypatch.setattr("neuron.service.residents.resident._LONGEST_PAUSE_SECONDS", 1.0)


@on_shared_nodes
@pytest.mark.timeout(120 + 30 * RUNS)
async def test_an_answer_of_the_demo_model_that_moved_is_the_same_to_the_bit(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(nats, str(DEMO)) as (fleet, both):
        await move_and_compare("the demo model", fleet, both, monkeypatch)


@on_shared_nodes
@pytest.mark.timeout(120 + 30 * RUNS)
async def test_an_answer_that_moved_is_the_same_to_the_bit(
    of_random_weights: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await move_and_compare("random weights", *of_random_weights, monkeypatch)


async def move_and_compare(
    kind: str, fleet: TestFleet, both: list[WatchedEngines], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills the engine in the middle of answers, each of which was given undisturbed before."""
    records: list[Record] = []
    monkeypatch.setattr(
        "cortex.telemetry.metrics.Metrics._count_tokens",
        lambda self, record: records.append(record),
    )
    chance = random.Random(kind)
    pauses = []
    for seed in range(KILLS):
        expected = await say(fleet, seed, **SAMPLED)
        killer = Killer(both, chance.randrange(1, len(expected[0]) - 40))
        pause = Pause()
        moved = await say(fleet, seed, pause, killer, **SAMPLED)
        assert killer.killed == 1
        assert moved == expected
        pauses.append(pause.seconds)
        await until(lambda: records and records[-1].moves)
        assert records.pop().continuity is Continuity.EXACT
        await ready_again(fleet)
    report(f"an engine process is killed ({kind})", pauses, 2.5)


@on_shared_nodes
@pytest.mark.timeout(120 + 30 * RUNS)
async def test_a_frozen_engine_is_left_and_replaced(of_random_weights: TwoNodes) -> None:
    fleet, both = of_random_weights
    pauses = []
    for seed in range(RUNS):
        expected = await say(fleet, seed, **SAMPLED)
        engines = {one.engine.pid for one in both if one.engine}
        pause = Pause()
        killer = Killer(both, 200, signal.SIGSTOP)
        moved = await say(fleet, seed, pause, killer, **SAMPLED)
        assert killer.killed == 1
        assert moved == expected
        pauses.append(pause.seconds)
        await ready_again(fleet)
        assert {one.engine.pid for one in both if one.engine} != engines, "another process"
    report("an engine process is frozen", pauses, 3.5)


@on_shared_nodes
async def test_other_seeds_give_other_answers(of_random_weights: TwoNodes) -> None:
    fleet, _ = of_random_weights
    body = {**SAMPLED, "max_tokens": 30, "min_tokens": 30}
    answers = await asyncio.gather(*(say(fleet, seed, **body) for seed in range(50)))
    assert len({text for text, _ in answers}) == 50


def test_the_noise_depends_on_the_position() -> None:
    """What the exactness of a replay rests on: shifted by one, everything is different."""
    assert len({row_key(7, 0, position) for position in range(1000)}) == 1000
