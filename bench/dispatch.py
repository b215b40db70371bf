"""Who gets the next request: the fleet's pulls against round robin.

``python -m bench.dispatch [--seconds S]``. Three nodes with engines of speeds 1×, 1/3 and 1/10
(scripted, in real services), one slot each or sixteen, at 0.3 and 0.85 of their capacity. Both
policies get the same arrivals and the same answers; round robin is spared the bus and the gateway:
it adds to the engines directly, which queue what they cannot run.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from cortex.streams.events import Broken, Ended
from neuron.ipc.messages import Add, Output, SamplingParams
from protocol.generate import GenerateRequest, Message, Role, Sampling
from tests.support.fleet import MODEL, running_fleet
from tests.support.nats import running_nats
from tests.support.scripted import Script, ScriptedEngine
from tests.support.words import answer

STEP_SECONDS = (0.004, 0.012, 0.040)
MEAN_TOKENS = 40


class Arrival(NamedTuple):
    """A request."""

    at: float
    tokens: int


def scripts(slots: int) -> list[Script]:
    """One for each node; a step of all slots takes twice as long as one of one."""
    return [
        Script(answer, slots=slots, step_seconds=seconds, row_seconds=seconds / slots)
        for seconds in STEP_SECONDS
    ]


def capacity(slots: int) -> float:
    """Requests a second that the three serve together."""
    return sum(slots / (2 * seconds * MEAN_TOKENS) for seconds in STEP_SECONDS)


def arrivals(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson, with lognormal lengths."""
    chance = random.Random(seed)
    at, made = 0.0, []
    while at < seconds:
        at += chance.expovariate(rate)
        tokens = chance.lognormvariate(0, 0.8) * MEAN_TOKENS / 1.38
        made.append(Arrival(at, min(400, max(2, round(tokens)))))
    return made


async def by_fleet(folder: Path, slots: int, plan: list[Arrival]) -> list[float]:
    """Seconds from arrival to the end, for each request."""
    with running_nats(folder) as nats:
        async with running_fleet(nats) as fleet:
            for number, script in enumerate(scripts(slots)):
                await fleet.add_node(script.start, name=f"n{number}", slots=slots)
            await fleet.ready(nodes=3)

            async def one(arrival: Arrival, number: int) -> float:
                request = GenerateRequest(
                    MODEL,
                    (Message(Role.USER, "Hi"),),
                    sampling=Sampling(max_tokens=arrival.tokens),
                )
                began = time.monotonic()
                async with fleet.gateway.dispatcher.stream(request, seed=number) as stream:
                    while True:
                        stream.inbox.arrived.clear()
                        async with asyncio.timeout(60):
                            await stream.inbox.arrived.wait()
                        for event in stream.inbox.drain():
                            if isinstance(event, Broken):
                                raise RuntimeError(event.error.message)
                            if isinstance(event, Ended):
                                return time.monotonic() - began

            for number in range(6):  # the engines' pace has been seen
                await one(Arrival(0, 20), number)
            return await _run(plan, one)


async def by_turns(slots: int, plan: list[Arrival]) -> list[float]:
    """The same by round robin."""
    engines = [ScriptedEngine(script) for script in scripts(slots)]
    turns = itertools.cycle(engines)

    async def one(arrival: Arrival, number: int) -> float:
        began = time.monotonic()
        stream = await next(turns).add(
            Add(number, [1], SamplingParams(arrival.tokens, seed=number))
        )
        async for event in stream:
            if isinstance(event, Output) and event.finish:
                break
        return time.monotonic() - began

    try:
        return await _run(plan, one)
    finally:
        for engine in engines:
            await engine.stop()


async def _run(
    plan: list[Arrival], one: Callable[[Arrival, int], Coroutine[Any, Any, float]]
) -> list[float]:
    tasks = []
    began = time.monotonic()
    for number, arrival in enumerate(plan, 1000):
        await asyncio.sleep(max(0.0, began + arrival.at - time.monotonic()))
        tasks.append(asyncio.create_task(one(arrival, number)))
    return list(await asyncio.gather(*tasks))


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    print("| slots | load | requests | p50 fleet / turns | p95 fleet / turns | p95 ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for slots, load in itertools.product((1, 16), (0.3, 0.85)):
        plan = arrivals(load * capacity(slots), options.seconds, seed=1)
        with tempfile.TemporaryDirectory() as folder:
            ours = asyncio.run(by_fleet(Path(folder), slots, plan))
        turns = asyncio.run(by_turns(slots, plan))
        medians = f"{statistics.median(ours):.2f} / {statistics.median(turns):.2f} s"
        tails = f"{p95(ours):.2f} / {p95(turns):.2f} s"
        ratio = p95(ours) / p95(turns)
        print(f"| {slots} | {load} | {len(plan)} | {medians} | {tails} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
