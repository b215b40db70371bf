"""Runs the expectations and prints the table."""

import argparse
import asyncio
import contextlib
import json
import re
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx2

from bench.compat import chat, messages, responses
from bench.compat.world import CHECKS, KEY, OUTPUTS, World
from neuron import demo_model
from neuron.ipc.messages import Add
from neuron.text.tokenizer import Tokenizer
from tests.support.fleet import MODEL, scripted_fleet
from tests.support.nats import running_nats
from tests.support.scripted import Script

EXPECTATIONS = (chat, messages, responses)
"""Imported for what they add to the list."""
START_SECONDS = 90.0


class Engine:
    """Answers by the last scenario that its prompt names."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self._tokenizer = Tokenizer.load(Path(next(iter(demo_model.__path__))))

    def answer(self, add: Add) -> Sequence[str]:
        """The tokens of a scenario's output; the slow one reads its prompt for a while first."""
        text = self._tokenizer.decode(add.prompt)
        self.prompts.append(text)
        named = re.findall(r"scenario: ([a-z ]+)\.", text) or ["plain"]
        output = OUTPUTS.get(named[-1], OUTPUTS["plain"])
        script.prefill_steps = 4000 if named[-1] == "slow" else 1
        return re.findall(r"(?s).{1,3}", output)


script = Script(slots=8, step_seconds=0.002, context=20_000)


class Row(NamedTuple):
    """One expectation and what came of it."""

    what: str
    failures: dict[str, str]
    """By the gateway's name; empty = as expected."""


async def check_all(worlds: Sequence[World]) -> list[Row]:
    """One expectation after the other, each of all gateways."""
    rows = []
    for what, check in CHECKS:
        failures = {}
        for world in worlds:
            try:
                async with asyncio.timeout(30):
                    await check(world)
                failures[world.name] = ""
            except Exception as error:
                failures[world.name] = _told(error)
        rows.append(Row(what, failures))
    return rows


def _told(error: Exception) -> str:
    """The line that was not true, and what it said."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    said = " ".join(str(error).split())
    return (
        f"{line} {said}".strip()[:260] if isinstance(error, AssertionError) else repr(error)[:260]
    )


@contextlib.asynccontextmanager
async def litellm(program: str, url: str) -> AsyncIterator[str]:
    """LiteLLM's proxy in front of *url*."""
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"hosted_vllm/{MODEL}",
                    "api_base": f"{url}/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"drop_params": True, "num_retries": 0, "telemetry": False},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML, too
        command = [program, "--config", str(path), "--port", "4010", "--host", "127.0.0.1"]
        with (Path(folder) / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            await _until_it_answers("http://127.0.0.1:4010/health/liveliness")
            yield "http://127.0.0.1:4010"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has not started
                process.terminate()
            await process.wait()


async def _until_it_answers(url: str) -> None:
    async with httpx2.AsyncClient() as client, asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.5)


async def run(program: str) -> list[Row]:
    """All expectations."""
    engine = Engine()
    script.answer = engine.answer
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        nats = stack.enter_context(running_nats(Path(folder)))
        fleet = await stack.enter_async_context(scripted_fleet(nats, script))
        urls = {"cortex": fleet.url}
        if program:
            urls["LiteLLM"] = await stack.enter_async_context(litellm(program, fleet.url))
        worlds = []
        for name, url in urls.items():
            client = httpx2.AsyncClient(base_url=url, timeout=40)
            await stack.enter_async_context(client)
            worlds.append(World(name, client, engine.prompts))
        return await check_all(worlds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litellm", default="", help="the litellm program; empty = ours alone")
    rows = asyncio.run(run(parser.parse_args().litellm))
    names = list(rows[0].failures)
    print(f"| expectation | {' | '.join(names)} |\n| --- |{' :-: |' * len(names)}")
    for row in rows:
        print(f"| {row.what} | {' | '.join('–' if row.failures[n] else '✓' for n in names)} |")
    scores = (f"{sum(not row.failures[n] for row in rows)} of {len(rows)}" for n in names)
    print(f"| **met** | {' | '.join(scores)} |\n")
    for row in rows:
        for name in names:
            if row.failures[name]:
                print(f"- {name}, {row.what}: `{row.failures[name]}`")


if __name__ == "__main__":
    main()
