"""Long answers do not hold up the others of a node, and what interrupts them breaks nothing."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from neuron.ipc.messages import Logprobs, Output
from neuron.service.identity import Identity
from neuron.service.jobs.running_job import AT_ONCE, RunningJob
from neuron.text.prompt import Prompt, Rendering
from protocol import codec, frames
from protocol.bus import Bus
from protocol.errors import ErrorCode
from protocol.frames import AnyFrame
from protocol.generate import FinishReason, Sampling
from protocol.job import Job
from tests.neuron.service.jobs.test_running_job import JOB, PROMPT, TEXT
from tests.support.nats import NatsServer, connected
from tests.support.waiting import until

TOKENS = 50_000
MOST_SECONDS = 0.05
LONG = '<tool_call>\n{"name": "f", "arguments": {"a": [1' + ",1" * 32_000


class Pulse:
    """Measures the longest time for which the loop computed without a pause."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.beats = 0

    async def run(self) -> None:
        while True:
            began = time.process_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.process_time() - began)
            self.beats += 1


@contextlib.asynccontextmanager
async def pulse() -> AsyncIterator[Pulse]:
    measured = Pulse()
    gc.collect()
    gc.disable()  # the objects of other tests are not what is measured
    task = asyncio.create_task(measured.run())
    await asyncio.sleep(0)
    try:
        yield measured
        await asyncio.sleep(0)
    finally:
        task.cancel()
        gc.enable()


class Gateway:
    """The frames that a job's gateway gets."""

    def __init__(self) -> None:
        self.frames: list[AnyFrame] = []

    async def listen(self, bus: Bus) -> None:
        await bus.subscribe(
            "cortex.reply.gw.j", lambda m: self.frames.append(codec.read_frame(m.data))
        )

    @property
    def last(self) -> AnyFrame | None:
        return self.frames[-1] if self.frames else None

    @property
    def indexes(self) -> list[int]:
        return [frame.index for frame in self.frames if isinstance(frame, frames.Delta)]


def new_job(bus: Bus, *, tokens: int = 0, job: Job = JOB) -> RunningJob:
    job = msgspec.structs.replace(job, tokens_so_far=tuple(range(tokens)))
    return RunningJob(Identity(bus, "n", "i"), job, PROMPT, TEXT)


def replayed(tokens: int) -> Output:
    """The first output after an earlier attempt's tokens."""
    return Output(1, tokens, [tokens], "!", replayed=[f" {index}" for index in range(tokens)])


async def test_replays_and_repeated_frames_leave_room_for_others(nats: NatsServer) -> None:
    async with connected(nats.url) as bus, pulse() as measured:
        running = new_job(bus, tokens=TOKENS)
        await running.accept()
        await running.on_event(replayed(TOKENS), 0.01)
        assert running.next_index == TOKENS + 1
        await running.resume(0, 0.0)
    assert measured.beats >= 2 * (TOKENS // AT_ONCE - 1)
    assert measured.longest < MOST_SECONDS


async def test_a_long_piece_of_text_leaves_room_for_others(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        running = new_job(bus)
        await running.accept()
        async with pulse() as measured:
            await running.on_event(Output(1, 0, [1], LONG), 0.01)
    assert measured.longest < MOST_SECONDS


async def test_scores_of_a_long_prompt_leave_room_for_others(nats: NatsServer) -> None:
    scores = [Logprobs(-1.0, [(n, -1.0) for n in range(20)])] * 9_000
    asked = msgspec.structs.replace(JOB.request, echo=True, sampling=Sampling(logprobs=20))
    prompt = Prompt(Rendering("Hi", [1] * (len(scores) + 1)), "h", PROMPT.sample)
    job = msgspec.structs.replace(JOB, request=asked)
    async with connected(nats.url) as bus:
        gateway = Gateway()
        await gateway.listen(bus)
        running = RunningJob(Identity(bus, "n", "i"), job, prompt, TEXT)
        await running.accept()
        async with pulse() as measured:
            await running.on_event(Output(1, 0, [1], "x", prompt_logprobs=scores), 0.01)
        await until(lambda: isinstance(gateway.last, frames.Delta))
    (delta,) = (frame for frame in gateway.frames if isinstance(frame, frames.Delta))
    assert isinstance(delta.parts[0], frames.Text)
    assert len(delta.parts[0].logprobs) == len(scores) + 1
    assert measured.longest < MOST_SECONDS


@pytest.mark.parametrize("pauses", [1, 2, 5])
async def test_a_job_that_is_parked_while_it_is_replayed_goes_on(
    nats: NatsServer, pauses: int
) -> None:
    tokens = 10 * AT_ONCE
    async with connected(nats.url) as bus:
        gateway = Gateway()
        await gateway.listen(bus)
        running = new_job(bus, tokens=tokens)
        await running.accept()
        task = asyncio.create_task(running.on_event(replayed(tokens), 0.01))
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert running.tokens == tuple(range(tokens)), "what the engine is given again"
        assert running.next_index == tokens
        await running.on_event(replayed(tokens), 0.01)
        await running.resume(0, 0.0)
        await until(lambda: isinstance(gateway.last, frames.KeepAlive))
    text = "".join(
        part.text
        for frame in gateway.frames[2:]
        if isinstance(frame, frames.Delta)
        for part in frame.parts
        if isinstance(part, frames.Text)
    )
    assert gateway.indexes == [tokens, *range(tokens + 1)]
    assert text == "".join(f" {index}" for index in range(tokens)) + "!"


async def test_a_piece_that_was_begun_is_completed(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        gateway = Gateway()
        await gateway.listen(bus)
        running = new_job(bus)
        await running.accept()
        task = asyncio.create_task(running.on_event(Output(1, 0, [1], LONG), 0.01))
        await asyncio.sleep(0)
        task.cancel()
        await running.settle()
        assert running.tokens == (1,), "what the engine is given again"
        await asyncio.wait([task])
        assert task.cancelled()
        await running.on_event(Output(1, 1, [2], "]}}</tool_call>", FinishReason.STOP), 0.01)
        await running.resume(0, 0.0)
        await until(lambda: isinstance(gateway.last, frames.Finished) and len(gateway.frames) > 4)
    assert gateway.indexes == [1, 0, 1]


async def continued_job(bus: Bus, tokens: int) -> tuple[RunningJob, Gateway]:
    """A job that has replayed so many tokens, and a gateway that listens from then on."""
    running = new_job(bus, tokens=tokens)
    await running.accept()
    await running.on_event(replayed(tokens), 0.01)
    gateway = Gateway()
    await gateway.listen(bus)
    return running, gateway


async def test_new_tokens_do_not_overtake_those_that_are_sent_again(nats: NatsServer) -> None:
    tokens = 10 * AT_ONCE
    async with connected(nats.url) as bus:
        running, gateway = await continued_job(bus, tokens)
        resending = asyncio.create_task(running.resume(0, 0.0))
        await asyncio.sleep(0)
        await running.on_event(Output(1, tokens + 1, [7], "?"), 0.01)
        await running.keep_alive(0.0)
        await running.on_event(Output(1, tokens + 2, [8], "", FinishReason.STOP), 0.01)
        assert not resending.done()
        await resending
        await until(lambda: isinstance(gateway.last, frames.Finished))
    assert gateway.indexes == list(range(tokens + 3))
    assert len(gateway.frames) == 1 + tokens + 3 + 1, "Accepted, the pieces, Finished"


async def test_who_asks_again_meanwhile_gets_it_from_there(nats: NatsServer) -> None:
    tokens = 10 * AT_ONCE
    async with connected(nats.url) as bus:
        running, gateway = await continued_job(bus, tokens)
        resending = asyncio.create_task(running.resume(AT_ONCE, 0.0))
        await asyncio.sleep(0)
        await running.resume(7, 0.0)
        await resending
        await until(lambda: isinstance(gateway.last, frames.KeepAlive))
    again = gateway.indexes.index(7)
    assert gateway.indexes[:again] == list(range(AT_ONCE, AT_ONCE + again))
    assert gateway.indexes[again:] == list(range(7, tokens + 1))


async def test_what_does_not_fit_into_a_frame_is_not_tried_again(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        gateway = Gateway()
        await gateway.listen(bus)
        running = new_job(bus)
        await running.accept()
        await running.on_event(Output(1, 0, [1], "x" * (9 << 20)), 0.01)
        assert running.is_over
        await running.resume(0, 0.0)
        await until(lambda: len(gateway.frames) == 4)
    for failed in (gateway.frames[1], gateway.frames[3]):
        assert isinstance(failed, frames.Failed)
        assert failed.error.code is ErrorCode.REQUEST_TOO_LARGE
        assert "has 9,437,286 bytes" in failed.error.message
        assert "logprobs" in failed.error.message
        assert not failed.retryable
