"""How long a model takes that is asked for in the place of another: ``python -m bench.swap``.

``--models FOLDER`` (twice or more) names folders as Hugging Face has them; there is room for one of
them at a time. A fleet of this project (``cortex up --model-dir``) and, with ``--llama-server``,
llama.cpp's router (``--models-dir``, ``--models-max 1``, on the GGUF that lies in the folder or is
named beside it) take turns, so that both meet the same noise. The loads are at LOADS.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import httpx2

from tests.support.processes import free_port
from tests.support.waiting import until

PROMPT = "Once upon a time there was a machine that"
TOKENS = 16
READY_SECONDS = 180.0
REQUEST_SECONDS = 300.0


class Answer(NamedTuple):
    """One request, as its client saw it."""

    model: str
    swapped: bool
    """Whether this client's last answer was of another model."""
    first_seconds: float
    seconds: float
    failure: str = ""
    """Why there was no answer, if so."""


class Target(NamedTuple):
    """A server that is measured."""

    name: str
    url: str
    models: list[str]
    loads: Callable[[], Awaitable[float]]
    """How many loads it has begun so far."""


# -- servers ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def process(command: list[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a server; its output goes to *log*."""
    with log.open("ab") as out:
        running = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out)
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.wait(), 40)
        if running.returncode is None:
            running.kill()
            await running.wait()


@contextlib.asynccontextmanager
async def cortex(
    folders: list[Path], memory_mb: int, context: int, work: Path
) -> AsyncIterator[Target]:
    """This project, with room for one model."""
    models = work / "models"
    models.mkdir()
    for folder in folders:
        (models / folder.name).symlink_to(folder)
    port, metrics = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "cortex", "up", "--data", str(work / "data")),
        *("--port", str(port), "--metrics-port", str(metrics), "--model-dir", str(models)),
        *("--memory-mb", str(memory_mb), "--max-context", str(context), "--slots", "8"),
    ]
    url = f"http://127.0.0.1:{port}"
    names = [folder.name for folder in folders]
    async with httpx2.AsyncClient() as client, process(command, work / "cortex.log"):

        async def offered() -> bool:
            with contextlib.suppress(httpx2.HTTPError, KeyError):
                listed = (await client.get(f"{url}/v1/models")).json()["data"]
                return set(names) <= {model["id"] for model in listed}
            return False

        async def loads() -> float:
            text = (await client.get(f"http://127.0.0.1:{metrics}/metrics")).text
            lines = (line for line in text.splitlines() if 'order="load"' in line)
            return sum(float(line.split()[-1]) for line in lines)

        await until(offered, seconds=READY_SECONDS)
        await asyncio.sleep(3)  # the fork server imports
        yield Target("cortex", url, names, loads)


@contextlib.asynccontextmanager
async def llama(
    binary: Path, ggufs: dict[str, Path], context: int, work: Path
) -> AsyncIterator[Target]:
    """llama.cpp's router, with room for one model."""
    models = work / "gguf"
    models.mkdir()
    for name, path in ggufs.items():
        (models / name).mkdir()
        (models / name / f"{name}.gguf").symlink_to(path)
    port, log = free_port(), work / "llama.log"
    command = [
        *(str(binary), "--models-dir", str(models), "--models-max", "1", "--port", str(port)),
        *("-c", str(context * 8), "-np", "8", "-t", str(os.cpu_count() or 1), "--no-webui"),
    ]
    url = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient() as client, process(command, log):

        async def answers() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return (await client.get(f"{url}/health")).status_code == 200
            return False

        async def loads() -> float:
            return log.read_text(errors="replace").count("spawning server instance")

        await until(answers, seconds=READY_SECONDS)
        yield Target("llama-server", url, list(ggufs), loads)


# -- clients ---------------------------------------------------------------------------------------


async def ask(client: httpx2.AsyncClient, url: str, model: str, *, swapped: bool) -> Answer:
    """One streamed completion; a refusal or a dropped connection is an answer as well."""
    began = time.perf_counter()
    try:
        first = await first_token(client, url, model)
        failure = "" if first else "the stream had no token"
    except (httpx2.HTTPError, RuntimeError) as error:
        first, failure = 0.0, f"{type(error).__name__}: {error}"
        await asyncio.sleep(0.5)
    return Answer(model, swapped, first, time.perf_counter() - began, failure)


async def first_token(client: httpx2.AsyncClient, url: str, model: str) -> float:
    """Seconds to the first token of a streamed completion; returns at its end."""
    body = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    began, first = time.perf_counter(), 0.0
    async with client.stream(
        "POST", f"{url}/v1/completions", json=body, timeout=REQUEST_SECONDS
    ) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            is_event = line.startswith("data: {") and not first
            # Random weights may choose tokens that are no text.
            if is_event and json.loads(line[6:]).get("choices"):
                first = time.perf_counter() - began
    return first


async def closed_loop(
    url: str, models: Iterable[str], answers: list[Answer], pause: Callable[[], float] = float
) -> None:
    """One client that asks for one model after the other."""
    last = ""
    async with httpx2.AsyncClient() as client:
        for model in models:
            answers.append(await ask(client, url, model, swapped=model != last))
            if not answers[-1].failure:  # else the model before may still be loaded
                last = model
            await asyncio.sleep(pause())


async def one_client(target: Target, models: list[str], rounds: int) -> list[Answer]:
    """A closed loop over *models*."""
    answers: list[Answer] = []
    await closed_loop(target.url, models * rounds, answers)
    return answers


async def each_its_model(target: Target, models: list[str], seconds: float) -> list[Answer]:
    """One client for each model, each in a closed loop."""
    answers: list[Answer] = []

    def until_over(model: str) -> Iterable[str]:
        ends = time.monotonic() + seconds
        return itertools.takewhile(lambda _: time.monotonic() < ends, itertools.repeat(model))

    await asyncio.gather(*(closed_loop(target.url, until_over(m), answers) for m in models))
    return answers


async def many_clients(
    target: Target, models: list[str], seconds: float, clients: int, seed: int = 1
) -> list[Answer]:
    """Clients that think for a second or so and ask for a model by Zipf's law."""
    answers: list[Answer] = []
    weights = [1 / (rank + 1) for rank in range(len(models))]

    def choices(number: int) -> Iterable[str]:
        ends, dice = time.monotonic() + seconds, random.Random(seed * 100 + number)
        while time.monotonic() < ends:
            yield dice.choices(models, weights)[0]

    dice = random.Random(seed)
    loops = (
        closed_loop(target.url, choices(n), answers, lambda: dice.expovariate(1.0))
        for n in range(clients)
    )
    await asyncio.gather(*loops)
    return answers


async def bursts(target: Target, models: list[str], count: int, every: float) -> list[Answer]:
    """Ten requests at once for one model, then for the next."""
    answers: list[Answer] = []
    async with httpx2.AsyncClient() as client:
        for number in range(count):
            began, model = time.monotonic(), models[number % len(models)]
            asked = (ask(client, target.url, model, swapped=True) for _ in range(10))
            answers += await asyncio.gather(*asked)
            await asyncio.sleep(max(0.0, every - (time.monotonic() - began)))
    return answers


class Load(NamedTuple):
    """What clients do."""

    name: str
    run: Callable[[Target, int, float], Awaitable[list[Answer]]]
    """Takes the target, the rounds of a closed loop, and the seconds of other loads."""


LOADS = (
    Load("A B A B", lambda t, rounds, _: one_client(t, t.models[:2], rounds)),
    Load("A B C", lambda t, rounds, _: one_client(t, t.models[:3], rounds)),
    Load(
        "agent A A A B",
        lambda t, rounds, _: one_client(t, [t.models[0]] * 3 + t.models[1:2], rounds),
    ),
    Load("two clients, A and B", lambda t, _, seconds: each_its_model(t, t.models[:2], seconds)),
    Load("ten clients, all models", lambda t, _, seconds: many_clients(t, t.models, seconds, 10)),
    Load("a burst of ten", lambda t, rounds, seconds: bursts(t, t.models, rounds, seconds / 4)),
)


# -- report ----------------------------------------------------------------------------------------


def row(target: str, load: str, answers: list[Answer], seconds: float, loads: float) -> str:
    """One line of the table."""
    failed = [answer for answer in answers if answer.failure]
    answers = [answer for answer in answers if not answer.failure]
    swaps = sorted(answer.first_seconds for answer in answers if answer.swapped) or [0.0]
    p95 = swaps[min(len(swaps) - 1, int(0.95 * len(swaps)))]
    longest = max((answer.first_seconds for answer in answers), default=0.0)
    return (
        f"| {load} | {target} | {statistics.median(swaps):.2f} | {p95:.2f} | {longest:.2f} "
        f"| {60 * len(answers) / seconds:.0f} | {loads / max(1, len(answers)):.2f} "
        f"| {len(failed)} |"
    )


def by_model(answers: list[Answer]) -> str:
    """The median first token of a swap to each model."""
    answers = [answer for answer in answers if not answer.failure]
    models = dict.fromkeys(answer.model for answer in answers)
    times = {
        m: [a.first_seconds for a in answers if a.swapped and a.model == m][1:] for m in models
    }
    return ", ".join(f"{m} {statistics.median(t):.2f}" for m, t in times.items() if t)


async def measure(target: Target, load: Load, rounds: int, seconds: float) -> str:
    """Runs one load; returns its line."""
    before, began = await target.loads(), time.monotonic()
    answers = await load.run(target, rounds, seconds)
    took, loads = time.monotonic() - began, await target.loads() - before
    print(f"{target.name}: {load.name}: {by_model(answers)}", file=sys.stderr)
    for answer in answers:
        if answer.failure:
            print(f"  {answer.model}: {answer.failure}", file=sys.stderr)
    return row(target.name, load.name, answers, took, loads)


async def run(options: argparse.Namespace) -> None:
    """Measures every load on every server."""
    chosen = [load for load in LOADS if not options.only or options.only in load.name]
    print(
        "| load | server | swap p50 s | p95 | longest wait | requests/min "
        "| loads/request | failed |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for round_number, load in enumerate(chosen):
            for kind in ("cortex", "llama") if options.llama_server else ("cortex",):
                work = Path(folder) / f"{kind}-{round_number}"
                work.mkdir()
                server = (
                    cortex(options.models, options.memory_mb, options.context, work)
                    if kind == "cortex"
                    else llama(options.llama_server, ggufs(options.models), options.context, work)
                )
                async with server as target:
                    print(await measure(target, load, options.rounds, options.seconds), flush=True)
                if options.keep_logs:
                    kept = options.keep_logs / work.name
                    kept.mkdir(parents=True, exist_ok=True)
                    for log in work.rglob("*.log"):
                        shutil.copy(log, kept)


def ggufs(folders: list[Path]) -> dict[str, Path]:
    """The same weights for llama.cpp: FOLDER.gguf beside each folder."""
    return {folder.name: folder.with_name(f"{folder.name}.gguf") for folder in folders}


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="bench.swap", description=__doc__)
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--memory-mb", type=int, required=True, help="enough for one model")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--context", type=int, default=2048, help="tokens for each of 8 slots")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep-logs", type=Path)
    subprocess.run(["sync"], check=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
