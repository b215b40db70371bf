"""However large or long a request is, the loop of the service answers, and other streams go on.

The jobs come over the bus, as a gateway would send them; the gateway itself has its own tests.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio

from neuron import demo_model
from neuron.config import NeuronConfig
from neuron.service.node import Node
from protocol import codec, frames, subjects
from protocol.bus import Bus, BusMessage, Delivery
from protocol.errors import ErrorCode
from protocol.fleet import GatewayHeartbeat
from protocol.frames import AnyFrame
from protocol.generate import GenerateRequest, Message, Role, Sampling, Tool, ToolCall
from protocol.job import Cancel, Job
from protocol.render import Render
from tests.support.nats import NatsServer, connected
from tests.support.scripted import Script
from tests.support.waiting import background, until

log = logging.getLogger(__name__)
pytestmark = pytest.mark.xdist_group("wall_clock")

DEMO, OTHER = "cortex-demo", "other"
STEP_SECONDS = 0.02
GAP_SECONDS = 0.25
"""Between two tokens of somebody else's stream."""


def user(text: str) -> Message:
    return Message(Role.USER, text)


TEXT = "the quick brown fox "
TURNS = (user("what is it?"), Message(Role.ASSISTANT, "this and that"))
TOOL = Tool("f", "what it does " * 20, msgspec.Raw(b'{"properties": {"a": {"type": "string"}}}'))
REFUSED, LONG = ErrorCode.INVALID_REQUEST, ErrorCode.CONTEXT_LENGTH_EXCEEDED


def chat(*messages: Message, tools: tuple[Tool, ...] = (), **more: Any) -> GenerateRequest:
    return GenerateRequest(DEMO, messages, tools, **{"sampling": Sampling(max_tokens=5), **more})


def sampled(**sampling: Any) -> GenerateRequest:
    return chat(user("hi"), sampling=Sampling(max_tokens=5, **sampling))


def calls() -> GenerateRequest:
    arguments = '{"a": ' + "[" * 900 + "]" * 900 + "}"
    made = tuple(ToolCall(f"c{n}", "f", arguments) for n in range(3_000))
    return chat(user("hi"), Message(Role.ASSISTANT, tool_calls=made), user("so?"))


HEAVY: dict[str, tuple[Callable[[], GenerateRequest], ErrorCode | None]] = {
    "messages": (lambda: chat(*(user("hi"),) * 180_000), REFUSED),
    "truncated": (lambda: chat(*TURNS * 30_000, user("and now?"), truncates=True), None),
    "truncated texts": (lambda: chat(*(user(TEXT * 50),) * 7_000, truncates=True), None),
    "9,000 tools": (lambda: chat(user("hi"), tools=(TOOL,) * 9_000), LONG),
    "17,000 tools": (lambda: chat(user("hi"), tools=(Tool("f"),) * 17_000), REFUSED),
    "prompt": (lambda: GenerateRequest(DEMO, prompt=TEXT * 380_000), LONG),
    "one message": (lambda: chat(user(TEXT * 380_000)), LONG),
    "ids": (lambda: GenerateRequest(DEMO, prompt=(65,) * 2_000_000), LONG),
    "one word": (lambda: chat(user("a" * 7_000_000)), LONG),
    "spaces": (lambda: GenerateRequest(DEMO, prompt=" " * 7_000_000), LONG),
    "four bytes each": (lambda: GenerateRequest(DEMO, prompt="\U0001f600" * 1_800_000), LONG),
    "last turn": (lambda: chat(*TURNS * 10_000, user(TEXT * 250_000), truncates=True), LONG),
    "stops": (lambda: sampled(stop=tuple(str(n) for n in range(300_000))), REFUSED),
    "biases": (lambda: sampled(logit_bias=tuple((n % 700, 1.0) for n in range(400_000))), REFUSED),
    "allowed": (lambda: sampled(allowed_token_ids=tuple(range(900_000))), REFUSED),
    "options": (
        lambda: chat(user("hi"), template_options={f"option{n}": n for n in range(200_000)}),
        None,
    ),
    "calls": (calls, LONG),
}
"""Requests of up to the 8 MB that the bus carries, and how they end; None: they are answered."""


class Client:
    """A gateway as the node sees it, and what it heard of each job."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.heard: dict[str, list[tuple[float, AnyFrame]]] = {}

    async def listen(self) -> None:
        await self.bus.subscribe("cortex.reply.gw.*", self._hear)

    def _hear(self, message: BusMessage) -> None:
        frame = codec.read_frame(message.data)
        self.heard.setdefault(subjects.last_token(message.subject), []).append(
            (time.perf_counter(), frame)
        )

    async def send(self, job_id: str, data: bytes, model: str = DEMO) -> None:
        await self.bus.publish(subjects.run(model, "n1"), data)

    async def last(self, job_id: str, seconds: float = 60.0) -> frames.Finished | frames.Failed:
        """Waits for a job's end."""

        def ended() -> bool:
            found = self.heard.get(job_id, [])
            return bool(found) and isinstance(found[-1][1], (frames.Finished, frames.Failed))

        await until(ended, seconds=seconds, what=f"the end of {job_id}")
        last = self.heard[job_id][-1][1]
        assert isinstance(last, (frames.Finished, frames.Failed))
        return last

    def longest_gap(self, job_id: str) -> float:
        """Between two tokens."""
        times = [at for at, frame in self.heard[job_id] if isinstance(frame, frames.Delta)]
        return max(after - before for before, after in itertools.pairwise(times))


def encoded(job_id: str, request: GenerateRequest, attempt: int = 2) -> bytes:
    """A job for the direct lane, which a node with room takes."""
    return codec.encode(Job(job_id, "gw", request, 1, 0.0, attempt=attempt))


class Place(NamedTuple):
    node: Node
    client: Client
    script: Script


@pytest_asyncio.fixture
async def place(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Place]:
    """A node with two models, whose answers have a token every 20 ms."""
    other = tmp_path / OTHER
    shutil.copytree(Path(next(iter(demo_model.__path__))), other)
    script = Script(
        lambda add: [f"{n} " for n in range(add.sample.max_tokens)],
        slots=8,
        step_seconds=STEP_SECONDS,
    )
    async with connected(nats.url, "n1") as bus, connected(nats.url, "gw") as own:
        config = NeuronConfig(name="n1", default_models=(DEMO, str(other)), slots=8)
        node = Node(bus, config, script.start)
        task = asyncio.create_task(node.run())
        client = Client(own)
        await client.listen()
        heartbeat = codec.encode(GatewayHeartbeat("gw", "i"))

        async def beat() -> None:
            while True:
                await own.publish(subjects.gateway_heartbeat("gw"), heartbeat)
                await asyncio.sleep(0.2)

        beating = asyncio.create_task(beat())
        await until(lambda: sum(bool(r.load) for r in node.residents) == 2, what="two models")
        yield Place(node, client, script)
        for ending in (beating, task):
            ending.cancel()
        await asyncio.gather(beating, task, return_exceptions=True)


async def ticking(worst: list[float]) -> None:
    """Measures how late the loop is."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.002)
        worst[0] = max(worst[0], time.perf_counter() - before - 0.002)


@contextlib.asynccontextmanager
async def beside_streams(place: Place, seconds: float = 0.3) -> AsyncIterator[list[float]]:
    """Streams of both models, which must have no gap; gives the loop's largest delay."""
    client, number = place.client, next(_NUMBERS)
    streams = {f"{model}-{number}": model for model in (DEMO, OTHER)}
    for job_id, model in streams.items():
        request = GenerateRequest(model, (user("go on"),), sampling=Sampling(max_tokens=1_500))
        await client.send(job_id, encoded(job_id, request), model)
    await until(lambda: all(has_text(client, job) for job in streams), what="two streams")
    gc.collect()
    worst = [0.0]
    async with background(ticking(worst)):
        yield worst
        await asyncio.sleep(seconds)
    for job_id in streams:
        assert not isinstance(client.heard[job_id][-1][1], frames.Failed)
        gap = client.longest_gap(job_id)
        assert gap < GAP_SECONDS, f"{job_id} waited {gap:.2f} s for a token"
    for job_id in streams:
        await client.bus.publish(subjects.job_control("n1", job_id), codec.encode(Cancel(99)))


_NUMBERS = itertools.count()


def has_text(client: Client, job_id: str) -> bool:
    return any(isinstance(frame, frames.Delta) for _, frame in client.heard.get(job_id, []))


@pytest.mark.parametrize("name", HEAVY)
async def test_a_heavy_request_holds_up_nobody(place: Place, name: str) -> None:
    build, code = HEAVY[name]
    data = encoded("heavy", build())
    quick = encoded("quick", chat(user("hi"), sampling=Sampling(max_tokens=1)))
    async with beside_streams(place) as worst:
        began = time.perf_counter()
        await place.client.send("heavy", data)
        await place.client.send("quick", quick)
        await place.client.last("quick", 3.0)
        took = time.perf_counter() - began
        last = await place.client.last("heavy")
        seconds = time.perf_counter() - began
    log.info("%s: %.2f s, quick one %.2f s, loop %.3f s: %s", name, seconds, took, worst[0], last)
    assert took < 0.5 + STEP_SECONDS * 3
    assert worst[0] < GAP_SECONDS
    found = last.error.code if isinstance(last, frames.Failed) else None
    assert found is code, last


RENDERS: dict[str, tuple[Callable[[], Render], ErrorCode | None]] = {
    "pieces": (
        lambda: Render(GenerateRequest(DEMO, prompt=TEXT * 60_000), pieces=True),
        None,
    ),
    "text": (
        lambda: Render(GenerateRequest(DEMO, prompt=TEXT * 150_000)),
        ErrorCode.REQUEST_TOO_LARGE,
    ),
    "more than its memory": (lambda: Render(GenerateRequest(DEMO, prompt=TEXT * 380_000)), REFUSED),
    "some pieces": (lambda: Render(chat(user(TEXT * 5_000)), pieces=True), None),
    "messages": (lambda: Render(chat(*(user("hi"),) * 180_000)), REFUSED),
}


@pytest.mark.parametrize("name", RENDERS)
async def test_a_heavy_question_holds_up_nobody(place: Place, name: str) -> None:
    build, code = RENDERS[name]
    data, small = codec.encode(build()), codec.encode(Render(chat(user("hi"))))
    subject = subjects.node_verb("n1", "render")
    async with beside_streams(place) as worst:
        asking = asyncio.create_task(place.client.bus.request(subject, data, timeout=60))
        began = time.perf_counter()
        answer = await place.client.bus.request(subject, small, timeout=3)
        took = time.perf_counter() - began
        assert answer is not None
        assert codec.read_rendered(answer).tokens
        found = await asking
        seconds = time.perf_counter() - began
    log.info("%s: %.2f s, quick one %.2f s, loop %.3f s", name, seconds, took, worst[0])
    assert took < 0.5
    assert worst[0] < GAP_SECONDS
    assert found is not None
    rendered = codec.read_rendered(found)
    assert (rendered.error.code if rendered.error else None) is code, rendered.error


def text_pids(place: Place) -> tuple[int, ...]:
    return place.node._shelf.pids


async def test_nobody_notices_that_text_processes_are_killed(place: Place) -> None:
    """At random moments, while requests of all sizes come."""
    random.seed(os.environ.get("SEED", "7"))
    sizes = (10, 2_000, 20_000)
    data = {size: chat(user(TEXT * size), truncates=True) for size in sizes}
    async with beside_streams(place) as worst:
        for number in range(24):
            request = data[sizes[number % 3]]
            if number % 3:  # too long for the context: it says so, or else it would be lost
                request = GenerateRequest(DEMO, prompt="a b c " * sizes[number % 3] * 2)
            if number >= 4:  # else the node is busy
                await place.client.last(f"k{number - 4}")
            await place.client.send(f"k{number}", encoded(f"k{number}", request))
            await asyncio.sleep(random.uniform(0.0, 0.1))
            if number % 2:
                for pid in text_pids(place):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        for number in range(24):
            last = await place.client.last(f"k{number}")
            if number % 3:
                assert isinstance(last, frames.Failed)
                assert last.error.code is LONG, last
            else:
                assert isinstance(last, frames.Finished), last
    assert worst[0] < GAP_SECONDS
    assert place.node.residents


async def test_a_frozen_text_process_is_replaced(place: Place) -> None:
    async with beside_streams(place):
        for number in range(3):
            frozen = text_pids(place)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            began = time.perf_counter()
            await place.client.send(f"f{number}", encoded(f"f{number}", chat(user("hi"))))
            last = await place.client.last(f"f{number}")
            seconds = time.perf_counter() - began
            log.info("after a freeze: %.2f s", seconds)
            assert isinstance(last, frames.Finished)
            assert seconds < 4
            for pid in frozen:  # the other model's, which nobody has asked
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


async def test_a_client_that_leaves_holds_up_nobody(place: Place) -> None:
    """What its text process had begun is finished or ended; others get theirs."""
    big = encoded("gone", GenerateRequest(DEMO, prompt=TEXT * 300_000))
    await place.client.send("gone", big)
    await asyncio.sleep(0.05)
    await place.client.bus.publish(subjects.job_control("n1", "gone"), codec.encode(Cancel(99)))
    await place.client.send("stays", encoded("stays", chat(user(TEXT * 20_000), truncates=True)))
    last = await place.client.last("stays")
    assert isinstance(last, frames.Failed | frames.Finished)
    assert "gone" not in place.client.heard


async def test_a_job_is_in_progress_until_its_prompt_is_ready(place: Place) -> None:
    """Else the stream would deliver it again and again, and call it poison."""
    seen: list[bytes] = []
    await place.client.bus.subscribe("acks.*", lambda m: seen.append(m.data))
    assert await place.client.bus.flush()
    for pid in text_pids(place):
        os.kill(pid, signal.SIGSTOP)
    worker = next(r for r in place.node.residents if r.id == DEMO).worker
    assert worker is not None
    data = encoded("slow", chat(user("hi")), attempt=1)
    for number in (1, 2):
        worker._delivered(Delivery(data, f"acks.{number}", number))
    await place.client.last("slow")
    assert b"+WPI" in seen
    accepted = [f for _, f in place.client.heard["slow"] if isinstance(f, frames.Accepted)]
    assert [frame.ack for frame in accepted] == ["acks.2"], "the latest delivery"
