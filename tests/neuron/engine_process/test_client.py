"""Engine processes, end to end: concurrent streams, aborts, deaths and refusals."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from neuron.engine_process.client import EngineProcess
from neuron.engine_process.sequence_stream import EngineDied, SequenceStream
from neuron.engine_process.watchdog import Deadlines
from neuron.ipc.messages import (
    Add,
    FromEngine,
    Loading,
    LoadStage,
    Output,
    Progress,
    Refused,
    SamplingParams,
    Start,
    Step,
)
from protocol.errors import ErrorCode
from protocol.generate import FinishReason
from tests.support.tiny_models import write_checkpoint

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("engine_client")]

Spawn = Callable[..., Awaitable[EngineProcess]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def progress() -> list[Loading]:
    """What the shared engine said while it loaded."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(checkpoint: Path, progress: list[Loading]) -> AsyncIterator[EngineProcess]:
    """One engine with small steps, for the tests that leave it as they found it."""
    start = Start(str(checkpoint), threads=1, max_step_tokens=32)
    engine = await EngineProcess.start(start, on_progress=progress.append)
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def spawn(checkpoint: Path) -> AsyncIterator[Spawn]:
    """Starts engines with one thread; all are stopped at the end."""
    engines: list[EngineProcess] = []

    async def make(deadlines: Deadlines | None = None, **start: Any) -> EngineProcess:
        message = Start(str(checkpoint), threads=1, **start)
        engine = await EngineProcess.start(message, deadlines=deadlines)
        engines.append(engine)
        return engine

    yield make
    await asyncio.gather(*(engine.stop() for engine in engines))


def tap(engine: EngineProcess) -> list[Step | Refused]:
    """Every step and refusal from now on, in the order of the channel."""
    seen: list[Step | Refused] = []
    handle = engine._handle

    def record(message: FromEngine) -> None:
        if isinstance(message, Step | Refused):
            seen.append(message)
        handle(message)

    engine._handle = record  # type: ignore[method-assign]
    return seen


def steps_of(seen: list[Step | Refused]) -> list[Step]:
    return [message for message in seen if isinstance(message, Step)]


def request(number: int, prompt: int = 30, answer: int = 24, **sample: Any) -> Add:
    tokens = [(number * 37 + i * 11) % 250 for i in range(prompt)]
    return Add(number, tokens, SamplingParams(answer, **sample))


async def collect(stream: SequenceStream) -> tuple[list[int], str, FinishReason | None]:
    tokens: list[int] = []
    text, finish, begin = "", None, None
    async for event in stream:
        if isinstance(event, Output):
            begin = event.index if begin is None else begin
            assert event.index == begin + len(tokens), "a token is missing or came twice"
            tokens += event.tokens
            text += event.text
            finish = event.finish
    return tokens, text, finish


async def answer(engine: EngineProcess, add: Add) -> tuple[list[int], str, FinishReason | None]:
    return await collect(await engine.add(add))


def takes_part(step: Step) -> set[int]:
    return {output.id for output in step.outputs} | {one.id for one in step.progress}


async def first_event(stream: SequenceStream) -> Output | Progress | Refused:
    return await anext(stream)


async def test_four_streams_share_steps_and_equal_their_solo_runs(shared: EngineProcess) -> None:
    engine = shared
    adds = [request(1), request(2, 50, temperature=1.0, seed=5), request(3, 3), request(4, 90)]
    adds[3] = Add(4, adds[3].prompt, SamplingParams(24, temperature=0.8, top_p=0.9, top_k=50))
    seen = tap(engine)
    together = await asyncio.gather(*(answer(engine, add) for add in adds))
    assert max(len(step.outputs) for step in steps_of(seen)) == 4
    alone = [await answer(engine, Add(add.id + 10, add.prompt, add.sample)) for add in adds]
    assert together == alone
    assert all(len(tokens) == 24 for tokens, _, _ in together)
    assert all(finish is FinishReason.LENGTH for _, _, finish in together)
    assert len({tuple(tokens) for tokens, _, _ in together}) == 4


async def test_resumption_over_the_channel(shared: EngineProcess) -> None:
    engine = shared
    whole = request(1, temperature=1.0, seed=3, stop=("never",))
    tokens, text, _ = await answer(engine, whole)
    resumed = Add(2, whole.prompt, whole.sample, tokens[:10])
    events = [e async for e in await engine.add(resumed) if isinstance(e, Output)]
    assert events[0].index == 10
    assert [token for event in events for token in event.tokens] == tokens[10:]
    assert text.endswith("".join(event.text for event in events))
    finished = Add(3, whole.prompt, whole.sample, tokens)
    (last,) = [e async for e in await engine.add(finished)]
    assert isinstance(last, Output)
    assert (last.tokens, last.finish) == ([], FinishReason.LENGTH)


async def test_a_short_request_overtakes_a_long_prefill(shared: EngineProcess) -> None:
    engine = shared
    seen = tap(engine)
    long = await engine.add(request(1, 1500, 4))
    assert isinstance(await first_event(long), Progress)
    short = await engine.add(request(2, 20, 4))
    assert await collect(short)
    await collect(long)
    steps = steps_of(seen)
    first = {
        number: next(s.number for s in steps if any(o.id == number for o in s.outputs))
        for number in (1, 2)
    }
    assert first[2] < first[1] - 5


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_abort_takes_effect_before_the_next_step(shared: EngineProcess, phase: str) -> None:
    engine = shared
    seen = tap(engine)
    other = await engine.add(request(2, 10, 1000))
    stream = await engine.add(request(5, 1500 if phase == "prefill" else 10, 400))
    wanted = Progress if phase == "prefill" else Output
    for _ in range(3):
        while not isinstance(await anext(stream), wanted):
            pass
    engine.abort(5)
    await collect(stream)  # what had been delivered before; then it ends
    # The engine answers in order: when it refuses the marker, it knows of the abort.
    marker = await engine.add(request(3, temperature=-1.0))
    assert isinstance(await first_event(marker), Refused)
    await collect(other)
    (known,) = (n for n, message in enumerate(seen) if isinstance(message, Refused))
    assert any(5 in takes_part(step) for step in steps_of(seen[:known]))
    assert any(2 in takes_part(step) for step in steps_of(seen[known:]))
    assert not any(5 in takes_part(step) for step in steps_of(seen[known:]))
    assert engine.stats.running == 0
    assert engine.stats.kv_tokens_free == engine.ready.kv_cache_tokens


async def test_refusals_are_typed(spawn: Spawn) -> None:
    engine = await spawn(max_running=1, max_queued=1, max_context=256)
    running = await engine.add(request(1, 10, 200))
    await first_event(running)
    queued = await engine.add(request(2))
    events = [
        await first_event(await engine.add(add))
        for add in (request(3), request(4, 256), request(5, temperature=-1))
    ]
    codes = [event.code for event in events if isinstance(event, Refused)]
    assert codes == [
        ErrorCode.OVERLOADED,
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        ErrorCode.INVALID_REQUEST,
    ]
    with pytest.raises(ValueError, match="already in use"):
        await engine.add(request(2))
    assert (await collect(running))[2] is FinishReason.LENGTH
    assert (await collect(queued))[2] is FinishReason.LENGTH
    tokens, _, finish = await answer(engine, request(6, 250, 1000))
    assert (len(tokens), finish) == (6, FinishReason.LENGTH), "the context limit"
    assert engine.stats.open == 0


async def test_a_killed_engine_ends_its_streams_with_the_reason(spawn: Spawn) -> None:
    engine = await spawn()
    streams = [await engine.add(request(number, 30, 3000)) for number in (1, 2)]
    await first_event(streams[0])
    os.kill(engine.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(EngineDied, match="SIGKILL"):
            await collect(stream)
    assert "SIGKILL (from outside, or from the kernel" in await engine.died
    with pytest.raises(EngineDied, match="SIGKILL"):
        await engine.add(request(3))
    engine.abort(1)
    assert engine.stats.open == 0


async def test_idle_is_not_stuck_but_silence_with_work_is(spawn: Spawn) -> None:
    deadlines = Deadlines(step_seconds=1.0, first_step_seconds=1.0, factor=0.0)
    engine = await spawn(deadlines=deadlines)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(engine.died), 1.3)
    stream = await engine.add(request(1, 30, 3000))
    await first_event(stream)
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(EngineDied, match=r"no step finished for .* 1 sequences .*stuck"):
        await collect(stream)


async def test_a_process_that_a_signal_has_stopped_is_ended_soon(spawn: Spawn) -> None:
    engine = await spawn()
    stream = await engine.add(request(1, 30, 3000))
    await first_event(stream)
    os.kill(engine.pid, signal.SIGSTOP)
    async with asyncio.timeout(5):
        with pytest.raises(EngineDied, match=r"a signal had stopped it .* 1 sequences .*stuck"):
            await collect(stream)


async def test_stop_ends_the_process_and_open_streams(spawn: Spawn) -> None:
    engine = await spawn()
    stream = await engine.add(request(1, 10, 3000))
    await first_event(stream)
    await engine.stop()
    with pytest.raises(EngineDied, match=r"stopped \(exit status 0\)"):
        await collect(stream)
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)
    await engine.stop()


async def test_stop_forces_a_process_that_does_not_listen(spawn: Spawn) -> None:
    engine = await spawn()
    os.kill(engine.pid, signal.SIGSTOP)
    await engine.stop(grace_seconds=0.1)
    assert "SIGKILL" in engine.died.result()


async def test_the_engine_ends_when_the_service_closes_the_channel(spawn: Spawn) -> None:
    engine = await spawn()
    engine._ranks._processes[0].channel.close()
    assert "exit status 0" in await engine.died


async def test_ctrl_c_is_not_for_the_engine(shared: EngineProcess) -> None:
    engine = shared
    os.kill(engine.pid, signal.SIGINT)
    assert (await answer(engine, request(1)))[2] is FinishReason.LENGTH


async def test_a_load_reports_its_progress(shared: EngineProcess, progress: list[Loading]) -> None:
    assert list(dict.fromkeys(loading.stage for loading in progress)) == list(LoadStage)
    reading = [loading for loading in progress if loading.stage is LoadStage.READING]
    assert reading[-1].done_bytes == reading[-1].total_bytes > 0
    assert progress[-1].done_bytes == progress[-1].total_bytes == shared.ready.weight_bytes


PARENT = """
import asyncio, sys
from neuron.engine_process.client import EngineProcess
from neuron.ipc.messages import Start

async def main():
    engine = await EngineProcess.start(Start(sys.argv[1], threads=1))
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_even_a_stopped_engine_ends_with_its_parent(checkpoint: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(checkpoint), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    await parent.wait()
    ended: tuple[list[int], list[int], list[int]]
    ended = await asyncio.to_thread(select.select, [watch], [], [], 10)
    os.close(watch)
    assert ended[0], "the engine outlived its parent"


async def test_a_slow_consumer_holds_up_nobody(shared: EngineProcess) -> None:
    ignored = await shared.add(request(50, 10, 400))
    assert len((await answer(shared, request(51, 10, 40)))[0]) == 40
    tokens, _, finish = await collect(ignored)
    assert (len(tokens), finish) == (400, FinishReason.LENGTH)


async def test_a_cancelled_load_leaves_no_process(checkpoint: Path) -> None:
    started = asyncio.Event()
    start = Start(str(checkpoint), threads=1)
    loading = asyncio.create_task(EngineProcess.start(start, on_progress=lambda _: started.set()))
    await started.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
