"""What a flood from one tenant does to another's first tokens.

``python -m bench.flood [--rounds N]``. A gateway and two neurons with eight slots each, as
processes of their own; scripted engines of which a step takes 20 ms, whatever is in it, and a
prefill five. The flood keeps ten times as many requests open as there are slots; the guest asks for
one answer after the other, alone and beside it, in turns.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

import httpx2

from tests.support.nats import running_nats
from tests.support.processes import MODEL, ProcessFleet, Tape, http_client

SLOTS = 8
NODES = 2
FLOOD = 10 * SLOTS * NODES
QUESTIONS = 40


async def first_token(client: httpx2.AsyncClient, url: str, key: str, max_tokens: int) -> float:
    """Seconds to the first piece of an answer, which is read to its end."""
    tape = Tape()
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    headers = {"Authorization": f"Bearer {key}"}
    async with client.stream(
        "POST", f"{url}/v1/chat/completions", json=body, headers=headers
    ) as answer:
        async for line in answer.aiter_lines():
            if '"content":" ' in line and not tape.text:
                tape.saw("x")
    return tape.first_after


async def flood(url: str) -> None:
    """The other process, until it is killed: as soon as a request has ended, the next one."""

    async def keep_asking(client: httpx2.AsyncClient) -> None:
        while True:
            with contextlib.suppress(httpx2.TransportError):
                await first_token(client, url, "flood", 100)

    async with http_client() as client, asyncio.TaskGroup() as tasks:
        for _ in range(FLOOD):
            tasks.create_task(keep_asking(client))


async def ask(url: str) -> list[float]:
    """The guest's first tokens."""
    async with http_client() as client:
        return [await first_token(client, url, "guest", 20) for _ in range(QUESTIONS)]


async def measure(rounds: int) -> None:
    """Prints a row for each round."""
    print("| round | p50 alone | p50 beside | p95 alone | p95 beside | p95 ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    ratios = []
    with tempfile.TemporaryDirectory() as folder, running_nats(Path(folder)) as nats:
        async with ProcessFleet(nats, Path(folder)) as fleet:
            url = await fleet.add_gateway()
            for number in range(NODES):
                await fleet.add_neuron(f"n{number}", slots=SLOTS, step_ms=20, prefill_steps=5)
            await fleet.ready(NODES)
            await ask(url)
            for number in range(rounds):
                alone = await ask(url)
                command = [sys.executable, "-m", "bench.flood", "--flood", url]
                other = await asyncio.create_subprocess_exec(*command)
                await asyncio.sleep(5)
                beside = await ask(url)
                other.kill()
                await other.wait()
                await asyncio.sleep(3)
                ratios.append(p95(beside) / p95(alone))
                print(
                    f"| {number + 1} | {_ms(statistics.median(alone))} | "
                    f"{_ms(statistics.median(beside))} | {_ms(p95(alone))} | {_ms(p95(beside))} | "
                    f"{ratios[-1]:.2f} |",
                    flush=True,
                )
    print(f"\nMedian of the ratios: {statistics.median(ratios):.2f}")


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flood", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    asyncio.run(flood(options.flood) if options.flood else measure(options.rounds))


if __name__ == "__main__":
    main()
