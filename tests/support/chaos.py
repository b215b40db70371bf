"""Kills and freezes the processes of a fleet at random while clients use it, and keeps the books.

Everything is drawn from one seed. What a client must see is known in advance (``words``), so each
request is either exact, or an error, or wrong.
"""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.support.processes import MODEL, Process, ProcessFleet, Tape, play, play_on
from tests.support.words import words

KINDS = {
    "kill neuron": 8,
    "freeze neuron": 6,
    "kill gateway": 2,
    "freeze gateway": 2,
    "kill nats": 1,
    "freeze nats": 1,
}
"""How often each is drawn."""
RECONNECT_SECONDS = 25.0
"""For how long a client whose gateway died tries the others."""


@dataclass
class Fault:
    """Something that was done to the fleet."""

    what: str
    began: float
    ended: float = float("inf")


@dataclass
class Books:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[float, float, str]] = field(default_factory=list)
    """(began, ended, what the client was told)"""
    wrong: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def judged(self) -> int:
        """Requests whose clients waited for their end."""
        return sum(self.outcomes[kind] for kind in ("exact", "error", "wrong"))

    def kinds(self) -> Counter[str]:
        """Errors by what they say, numbers and ids left out."""
        return Counter(re.sub(r"[0-9a-f]{32}|\d+", "#", what)[:110] for _, _, what in self.errors)

    def unexplained(self) -> list[tuple[float, float, str]]:
        """Errors without a fault while they ran, or shortly before."""
        return [
            error
            for error in self.errors
            if not any(f.began < error[1] and f.ended > error[0] - 15 for f in self.faults)
        ]


class Chaos:
    """One run."""

    def __init__(
        self,
        fleet: ProcessFleet,
        seed: int,
        *,
        mean_pause: float,
        models: Sequence[str] = (MODEL,),
    ) -> None:
        """*models*: clients ask for any of them."""
        self._models = models
        self.books = Books()
        self._fleet = fleet
        self._chance = random.Random(seed)
        self._mean_pause = mean_pause
        self._seeds = iter(range(seed * 1_000_000, 10**9))
        self._busy: set[str] = set()

    async def run(self, seconds: float, clients: int) -> None:
        """Faults and load for so long; returns when all clients and faults have ended."""
        end = time.monotonic() + seconds
        limits = httpx2.Limits(max_connections=4 * clients)
        timeout = httpx2.Timeout(90, connect=5)
        async with (
            httpx2.AsyncClient(timeout=timeout, limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(clients):
                chance = random.Random(self._chance.random())
                tasks.create_task(self._client(client, chance, end), name=f"client {number}")
            while time.monotonic() < end:
                await asyncio.sleep(self._chance.expovariate(1 / self._mean_pause))
                fault = self._draw()
                if fault is not None:
                    tasks.create_task(fault)

    # -- faults --------------------------------------------------------------------------------

    def _draw(self) -> Coroutine[Any, Any, None] | None:
        chance = self._chance
        healthy = [p for p in self._fleet.neurons if p.name not in self._busy]
        gateways = [p for p in self._fleet.gateways if p.name not in self._busy]
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        long = chance.uniform(0.3, 6.0)
        if kind.endswith("neuron") and len(healthy) > 2:
            victim = chance.choice(healthy)
            self._busy.add(victim.name)
            return self._kill(victim, long) if kind[0] == "k" else self._freeze(victim, long)
        if kind.endswith("gateway") and len(gateways) > 1:
            victim = chance.choice(gateways)
            self._busy.add(victim.name)
            return self._kill(victim, 0.2) if kind[0] == "k" else self._freeze(victim, long)
        if kind.endswith("nats") and "nats" not in self._busy:
            self._busy.add("nats")
            return self._nats(kind, chance.uniform(0.05, 2.0))
        return None

    async def _kill(self, victim: Process, pause: float) -> None:
        async def undo() -> None:
            await victim.start()
            await asyncio.sleep(2.0)  # until it serves again

        await victim.kill()
        await self._fault(f"kill {victim.name}", victim.name, pause, undo)

    async def _freeze(self, victim: Process, pause: float) -> None:
        async def undo() -> None:
            victim.thaw()

        victim.freeze()
        await self._fault(f"freeze {victim.name}", victim.name, pause, undo)

    async def _nats(self, kind: str, pause: float) -> None:
        nats = self._fleet.nats

        async def undo() -> None:
            nats.thaw() if kind.startswith("freeze") else nats.start()

        nats.freeze() if kind.startswith("freeze") else nats.kill()
        await self._fault(kind, "nats", pause, undo)

    async def _fault(
        self, what: str, name: str, pause: float, undo: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        fault = Fault(what, time.monotonic())
        self.books.faults.append(fault)
        try:
            await asyncio.sleep(pause)
            await undo()
        finally:
            fault.ended = time.monotonic()
            self._busy.discard(name)

    # -- clients -------------------------------------------------------------------------------

    async def _client(self, client: httpx2.AsyncClient, chance: random.Random, end: float) -> None:
        while time.monotonic() < end:
            seed, count = next(self._seeds), chance.randint(20, 400)
            began = time.monotonic()
            draw = chance.random()
            if draw < 0.05:
                outcome = await self._leave(client, chance, seed, count)
            elif draw < 0.2:
                outcome = await self._whole(client, chance, seed, count, began)
            else:
                outcome = await self._stream(client, chance, seed, count, began)
            self.books.outcomes[outcome] += 1
            await asyncio.sleep(chance.uniform(0, 0.3))

    def _body(self, chance: random.Random, seed: int, count: int) -> dict[str, Any]:
        return {"model": chance.choice(self._models), "seed": seed, "max_tokens": count}

    async def _stream(
        self,
        client: httpx2.AsyncClient,
        chance: random.Random,
        seed: int,
        count: int,
        began: float,
    ) -> str:
        tape = Tape()
        urls = chance.sample(self._fleet.urls, len(self._fleet.urls))
        body = {**self._body(chance, seed, count), "temperature": 1}
        try:
            await play(client, urls[0], tape, **body)
        except httpx2.TransportError:
            if not tape.job_id:
                return "no connection"
            self.books.outcomes["came back"] += 1
            await self._come_back(client, urls, tape)
            if tape.status == 410 and not tape.text:
                return "had to ask again"  # it waited in a line of the gateway that died
        if tape.done and tape.text == "".join(words(seed, count)):
            self.books.gaps.append(tape.worst_gap)
            return "exact"
        if tape.error is None or not "".join(words(seed, count)).startswith(tape.text):
            self.books.wrong.append(f"{tape.job_id}: {len(tape.text)} characters, {tape.error}")
            return "wrong"
        self.books.errors.append((began, time.monotonic(), f"{tape.job_id}: {tape.error}"))
        return "error"

    async def _come_back(self, client: httpx2.AsyncClient, urls: list[str], tape: Tape) -> None:
        deadline = time.monotonic() + RECONNECT_SECONDS
        turn = 0
        while not tape.done and time.monotonic() < deadline:
            turn += 1
            tape.error = None
            try:
                await play_on(client, urls[turn % len(urls)], tape)
            except httpx2.TransportError:
                await asyncio.sleep(0.2)
                continue
            if tape.done or tape.status not in (200, 503):
                return
            await asyncio.sleep(0.2)

    async def _whole(
        self,
        client: httpx2.AsyncClient,
        chance: random.Random,
        seed: int,
        count: int,
        began: float,
    ) -> str:
        body = self._body(chance, seed, count)
        body["messages"] = [{"role": "user", "content": "Go on."}]
        try:
            url = chance.choice(self._fleet.urls)
            answer = await client.post(f"{url}/v1/chat/completions", json=body)
        except httpx2.TransportError:
            return "no connection"
        if answer.status_code != 200:
            self.books.errors.append((began, time.monotonic(), answer.text))
            return "error"
        text = answer.json()["choices"][0]["message"]["content"]
        if text == "".join(words(seed, count)):
            return "exact"
        self.books.wrong.append(f"not streamed: {text[:100]}")
        return "wrong"

    async def _leave(
        self, client: httpx2.AsyncClient, chance: random.Random, seed: int, count: int
    ) -> str:
        url = chance.choice(self._fleet.urls)
        try:
            async with asyncio.timeout(chance.uniform(0.01, 1.0)):
                await play(client, url, Tape(), **self._body(chance, seed, count))
        except (TimeoutError, httpx2.TransportError):
            return "left"
        return "left too late"
