"""Engines that are forked: as good as others, children of the service, and never in its way."""

import asyncio
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from neuron import demo_model
from neuron.config import engine_environment
from neuron.engine_process import fork_server
from neuron.engine_process.child import Child
from neuron.engine_process.client import EngineProcess
from neuron.engine_process.fork_server import ForkServer
from neuron.engine_process.launch import start_text_python
from neuron.engine_process.sequence_stream import EngineDied
from neuron.ipc.messages import Add, Output, SamplingParams, Start
from neuron.service.texts.model_texts import ModelTexts
from protocol.generate import GenerateRequest, Message, Role, Sampling
from protocol.job import Job
from tests.neuron.text_process.test_bombs import ready
from tests.support.tiny_models import write_checkpoint
from tests.support.waiting import until

READY = ready()

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("engine_client")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[ForkServer]:
    server = ForkServer(engine_environment())
    running = asyncio.create_task(server.run())
    await until(lambda: server.pid)
    yield server
    pid = server.pid
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not pid or not Path(f"/proc/{pid}").exists()
    ctypes.CDLL(None).prctl(fork_server._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def text(engine: EngineProcess, number: int = 1, count: int = 20) -> str:
    stream = await engine.add(Add(number, list(range(5, 25)), SamplingParams(max_tokens=count)))
    return "".join([event.text async for event in stream if isinstance(event, Output)])


async def test_a_forked_engine_is_an_engine_like_any_other(
    server: ForkServer, checkpoint: Path
) -> None:
    start = Start(str(checkpoint), threads=1)
    usual = await EngineProcess.start(start)
    began = time.monotonic()
    forked = await EngineProcess.start(start, launch=server.launch)
    first = time.monotonic() - began
    began = time.monotonic()
    other = await EngineProcess.start(start, launch=server.launch)
    second = time.monotonic() - began
    try:
        assert comm(forked.pid) == comm(other.pid) == "neuron-engine"
        assert comm(usual.pid) != "neuron-engine"
        assert comm(server.pid) == "neuron-forks"
        assert len(os.listdir(f"/proc/{server.pid}/task")) == 1, "threads do not survive a fork"
        assert parent(forked.pid) == os.getpid()
        assert set(server.pids) == {server.pid, forked.pid, other.pid}
        assert os.getsid(forked.pid) == forked.pid
        assert await text(forked) == await text(other) == await text(usual)
        assert min(first, second) < 1.0, f"both waited for imports: {first:.2f} and {second:.2f} s"
    finally:
        await asyncio.gather(usual.stop(), forked.stop(), other.stop())
    assert server.pids == (server.pid,)
    assert forked.died.result() == "it was stopped (exit status 0)"


async def test_text_processes_are_forked(server: ForkServer) -> None:
    demo = Path(next(iter(demo_model.__path__)))
    request = GenerateRequest("m", (Message(Role.USER, "hi"),), sampling=Sampling(max_tokens=5))
    job = Job("j", "g", request, 1, 0.0)
    usual = await ModelTexts.open(start_text_python, str(demo), "auto")
    await until(lambda: server._running and server._running.ready.done())
    began = time.monotonic()
    forked = await ModelTexts.open(server.launch_text, str(demo), "auto")
    seconds = time.monotonic() - began
    (pid,) = forked.pids
    try:
        assert comm(pid) == "neuron-text"
        assert parent(pid) == os.getpid()
        assert os.getsid(pid) == pid
        assert pid in server.pids
        assert seconds < 1.0
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "unlimited" not in limits.split("Max data size")[1].split("bytes")[0].split()[0]
        assert await usual.prepare(job, READY) == await forked.prepare(job, READY)
        os.kill(server.pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        assert (await forked.prepare(job, READY)).tokens, "its successor is a new Python"
        assert forked.pids != (pid,)
    finally:
        await asyncio.gather(usual.close(), forked.close())
    assert not Path(f"/proc/{pid}").exists()
    await until(lambda: server.pid)


async def test_ranks_are_forked(server: ForkServer, checkpoint: Path) -> None:
    alone = await EngineProcess.start(Start(str(checkpoint), threads=1), launch=server.launch)
    both = await EngineProcess.start(
        Start(str(checkpoint), devices=("cpu", "cpu")), launch=server.launch
    )
    try:
        assert [comm(pid) for pid in both.pids] == ["neuron-engine"] * 2
        assert await text(both) == await text(alone)
    finally:
        await asyncio.gather(alone.stop(), both.stop())


async def test_how_a_forked_engine_ended_is_told(server: ForkServer, checkpoint: Path) -> None:
    engine = await EngineProcess.start(Start(str(checkpoint), threads=1), launch=server.launch)
    stream = await engine.add(Add(1, [5, 6], SamplingParams(max_tokens=500)))
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match="signal SIGKILL"):
        async for _ in stream:
            pass


async def test_engines_do_not_notice_that_it_is_killed(
    server: ForkServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_FIRST_PAUSE_SECONDS", 0.2)
    start = Start(str(checkpoint), threads=1)
    engine = await EngineProcess.start(start, launch=server.launch)
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    meanwhile = await EngineProcess.start(start, launch=server.launch)
    try:
        await until(lambda: server.pid not in (0, killed))
        after = await EngineProcess.start(start, launch=server.launch)
        assert comm(after.pid) == "neuron-engine"
        assert await text(engine) == await text(meanwhile) == await text(after)
        await after.stop()
    finally:
        await asyncio.gather(engine.stop(), meanwhile.stop())


@pytest.mark.parametrize("when", ["while it imports", "ready"])
async def test_a_frozen_one_is_done_without_and_replaced(
    server: ForkServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(fork_server, "_FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(fork_server, "IMPORT_SECONDS", 0.3)
    monkeypatch.setattr(fork_server, "FORK_SECONDS", 0.3)
    if when == "ready":
        await until(lambda: server._running and server._running.ready.done(), seconds=20)
    frozen = server.pid
    os.kill(frozen, signal.SIGSTOP)
    engine = await EngineProcess.start(Start(str(checkpoint), threads=1), launch=server.launch)
    assert len(await text(engine)) > 0
    assert comm(engine.pid) != "neuron-engine"
    await engine.stop()
    await until(lambda: server.pid not in (0, frozen))


async def test_a_cancelled_load_leaves_no_process(server: ForkServer, checkpoint: Path) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    await until(lambda: server._running and server._running.ready.done(), seconds=20)
    before = set(children.read_text().split())
    for delay in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1):
        start = Start(str(checkpoint), threads=1)
        loading = asyncio.create_task(EngineProcess.start(start, launch=server.launch))
        await asyncio.sleep(delay)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    engine = await EngineProcess.start(Start(str(checkpoint), threads=1), launch=server.launch)
    await engine.stop()
    await until(lambda: len(set(children.read_text().split()) - before) <= 1)


async def test_one_that_cannot_be_started_costs_nobody_anything(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_FIRST_PAUSE_SECONDS", 0.05)
    spawn = Child.spawn
    refused: list[list[str]] = []

    async def refuse(command: list[str], **more: Any) -> Child:
        if "--fork-server" in command and len(refused) < 2:
            refused.append(command)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await spawn(command, **more)

    monkeypatch.setattr(Child, "spawn", refuse)
    server = ForkServer(engine_environment())
    running = asyncio.create_task(server.run())
    try:
        await until(lambda: len(refused) == 1)
        engine = await EngineProcess.start(Start(str(checkpoint), threads=1), launch=server.launch)
        await engine.stop()
        await until(lambda: server.pid)
        assert len(refused) == 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        ctypes.CDLL(None).prctl(fork_server._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


async def test_the_service_side_never_imports_torch() -> None:
    modules = "neuron.engine_process.client, neuron.engine_process.fork_server"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


PARENT = """
import asyncio, sys
from neuron import demo_model
from neuron.config import engine_environment
from neuron.engine_process.client import EngineProcess
from neuron.engine_process.fork_server import ForkServer
from neuron.ipc.messages import Start

async def main():
    server = ForkServer(engine_environment())
    running = asyncio.create_task(server.run())
    while not server.pid:
        await asyncio.sleep(0.01)
    engine = await EngineProcess.start(Start(sys.argv[1], threads=1), launch=server.launch)
    print(engine.pid, server.pid, flush=True)
    await running

asyncio.run(main())
"""


async def test_even_stopped_ones_end_with_their_service(checkpoint: Path) -> None:
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(checkpoint), stdout=asyncio.subprocess.PIPE
    )
    assert service.stdout is not None
    pids = [int(word) for word in (await service.stdout.readline()).split()]
    watches = [os.pidfd_open(pid) for pid in pids]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    service.kill()
    await service.wait()
    for watch in watches:
        ended: tuple[list[int], list[int], list[int]]
        ended = await asyncio.to_thread(select.select, [watch], [], [], 10)
        os.close(watch)
        assert ended[0], "it outlived the service"
